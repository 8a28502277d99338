"""HyperLoRA on Flower: what you need to use it in a program of your own.

``from hyperlora import HyperLoraStrategy, make_client_app`` gives a Flower Strategy for your ServerApp and a ClientApp
around your data; ``personalize`` makes an adapter for data that no client of a run had. Names are imported when they
are first asked for, since torch takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client_app.handlers import make_client_app as make_client_app
    from hyperlora.config.methods import METHODS as METHODS
    from hyperlora.config.schema import ConfigError as ConfigError
    from hyperlora.config.schema import RunConfig as RunConfig
    from hyperlora.data.digits import digits_public as digits_public
    from hyperlora.data.federation import ClientData as ClientData
    from hyperlora.data.federation import DataError as DataError
    from hyperlora.data.federation import Samples as Samples
    from hyperlora.messages.codec import ProtocolError as ProtocolError
    from hyperlora.serving import PersonalizeOptions as PersonalizeOptions
    from hyperlora.serving import personalize as personalize
    from hyperlora.storage.state import StateError as StateError
    from models.adapters.adapted_model import AdaptedModel as AdaptedModel
    from models.adapters.adapter import Adapter as Adapter
    from models.adapters.adapter import AdapterError as AdapterError
    from models.backbones.backbone import BackboneError as BackboneError
    from models.backbones.loading import build_backbone as build_backbone
    from strategies.engine.assembly import HyperLoraStrategy as HyperLoraStrategy
    from strategies.engine.strategy import LoraStrategy as LoraStrategy
    from strategies.federation.roster import FederationError as FederationError
    from strategies.methods.registry import build_method as build_method

_HOMES = {
    "Adapter": "models.adapters.adapter",
    "AdaptedModel": "models.adapters.adapted_model",
    "AdapterError": "models.adapters.adapter",
    "BackboneError": "models.backbones.backbone",
    "ClientData": "hyperlora.data.federation",
    "ConfigError": "hyperlora.config.schema",
    "DataError": "hyperlora.data.federation",
    "FederationError": "strategies.federation.roster",
    "HyperLoraStrategy": "strategies.engine.assembly",
    "LoraStrategy": "strategies.engine.strategy",
    "METHODS": "hyperlora.config.methods",
    "PersonalizeOptions": "hyperlora.serving",
    "ProtocolError": "hyperlora.messages.codec",
    "RunConfig": "hyperlora.config.schema",
    "Samples": "hyperlora.data.federation",
    "StateError": "hyperlora.storage.state",
    "build_backbone": "models.backbones.loading",
    "build_method": "strategies.methods.registry",
    "digits_public": "hyperlora.data.digits",
    "make_client_app": "client_app.handlers",
    "personalize": "hyperlora.serving",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hyperlora' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)

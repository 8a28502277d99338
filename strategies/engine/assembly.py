"""A method put into the round loop: what a ServerApp starts, ours or somebody else's."""

from __future__ import annotations

from hyperlora.config.schema import RunConfig
from hyperlora.task import fresh_adapter
from models.adapters.adapted_model import AdaptedModel
from strategies.engine.screening import Screen
from strategies.engine.settings import RoundSettings
from strategies.engine.strategy import LoraStrategy
from strategies.federation.allow_list import AllowListFile
from strategies.federation.roster import Roster
from strategies.federation.shipping import Shipment
from strategies.methods.registry import build_method


class HyperLoRA(LoraStrategy):
    """HyperLoRA as an ordinary Flower Strategy: ``HyperLoRA(model, ...).start(grid, num_rounds=30)``.

    Args:
        model: the frozen backbone with an adapter on it; every client has the same.
        num_classes: classes of the task.
        min_clients: clients to wait for before round 1.
        config: cohort size, local budget, seed and the method's settings; the defaults where it is None. What is
            under ``data``, ``model``, ``lora`` and ``run`` is not read: the model and the caller decide these.
    """

    def __init__(
        self, model: AdaptedModel, *, num_classes: int, min_clients: int, config: RunConfig | None = None
    ) -> None:
        config = (config or RunConfig()).model_copy(update={"method": "hyperlora"})
        super().__init__(
            build_method(config),
            initial=fresh_adapter(config, model),
            roster=build_roster(model, num_classes),
            settings=round_settings(config, min_clients=min_clients),
        )


def build_roster(
    model: AdaptedModel, num_classes: int, allowed: AllowListFile | None = None, shipment: Shipment | None = None
) -> Roster:
    """Return an empty roster that admits clients with the backbone of ``model``, and of ``allowed`` keys if given.

    Nodes that lack the backbone get it where there is a ``shipment``.
    """
    return Roster(
        fingerprint=model.backbone.fingerprint,
        signature_size=2 * model.backbone.embed_dim + num_classes + 1,
        num_classes=num_classes,
        allowed=allowed,
        shipment=shipment,
    )


def round_settings(config: RunConfig, *, min_clients: int) -> RoundSettings:
    """Return how rounds are made; ``min_clients`` are waited for before round 1."""
    own = config.federation
    return RoundSettings(
        clients_per_round=own.clients_per_round,
        local_steps=config.train.local_steps,
        evaluate_steps=config.evaluation_steps,
        evaluate_every=own.evaluate_every,
        seed=config.seed,
        min_clients=min_clients,
        join_timeout=own.join_timeout,
        round_timeout=own.round_timeout,
        wire=config.wire.dtype,
        screen=Screen(**config.defence.model_dump()),
        min_replies=own.min_replies,
        privacy=config.privacy,
    )

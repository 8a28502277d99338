"""The table of methods: a new method is its own file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from models.synthesizer import FixedKernel
from protocol.config import RunConfig
from strategies.fedit import FedIT
from strategies.flexlora import FlexLoRA
from strategies.hyperlora import HyperLoRA
from strategies.local import Local
from strategies.method import Method


def _hyperlora(config: RunConfig) -> Method:
    own = config.hyperlora
    kernel = FixedKernel(own.temperature, own.self_logit, own.strength)
    return HyperLoRA(kernel, server_step=own.server_step)


BUILDERS: Mapping[str, Callable[[RunConfig], Method]] = {
    "hyperlora": _hyperlora,
    "fedit": lambda _: FedIT(),
    "flexlora": lambda _: FlexLoRA(),
    "local": lambda _: Local(),
}


def build_method(config: RunConfig) -> Method:
    """Return the method that ``config.method`` names."""
    return BUILDERS[config.method](config)

"""From the name of a method to the method: each file ``strategies/<name>.py`` offers ``build(config)``."""

from __future__ import annotations

from importlib import import_module

from hyperlora.config.schema import RunConfig
from strategies.methods.base import Method


def build_method(config: RunConfig) -> Method:
    """Return the method that ``config.method`` names, with its settings."""
    name = f"strategies.methods.{config.method.replace('-', '_')}"
    module = import_module(f"{name}.server" if config.method == "hyperlora" else name)
    method: Method = module.build(config)
    return method

"""From the name of a method to the method: each file ``strategies/<name>.py`` offers ``build(config)``."""

from __future__ import annotations

from importlib import import_module

from protocol.config import RunConfig
from strategies.method import Method


def build_method(config: RunConfig) -> Method:
    """Return the method that ``config.method`` names, with its settings."""
    module = import_module(f"strategies.{config.method.replace('-', '_')}")
    method: Method = module.build(config)
    return method

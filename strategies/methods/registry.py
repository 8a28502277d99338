"""From the name of a method to the method: its file, or ``server.py`` of its folder, offers ``build(config)``."""

from __future__ import annotations

from importlib import import_module

from hyperlora.config.methods import find_method
from hyperlora.config.schema import ConfigError, RunConfig
from strategies.methods.base.server import Method


def build_method(config: RunConfig) -> Method:
    """Return the method that ``config.method`` names, with its settings.

    Raises:
        ConfigError: the module of a method from outside has no ``build``.
    """
    info = find_method(config.method)
    module = info.load("server") or import_module(info.module)
    if not hasattr(module, "build"):
        raise ConfigError(f"method '{config.method}' cannot be used: its module has no function 'build(config)'")
    method: Method = module.build(config)
    return method


def required_rank(config: RunConfig, rank: int) -> int:
    """Return the rank that every client must train, ``rank`` of the run's adapters; 0 where the method takes any."""
    return 0 if find_method(config.method).any_rank else rank

"""What both sides must know of a method: whether it carries the class prior in the head's bias."""

from __future__ import annotations

from protocol.config import RunConfig

USES_PRIOR = {"hyperlora": True, "fedit": False, "flexlora": False, "local": False}


def prior_strength(config: RunConfig) -> float:
    """Return gamma, the strength of the log class frequencies in the head's bias; 0 where the prior is off."""
    on = USES_PRIOR[config.method] if config.prior.use == "method" else config.prior.use == "on"
    return config.prior.gamma if on else 0.0

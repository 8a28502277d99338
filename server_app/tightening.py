"""What an operator under attack may change when a run goes on: settings that trust clients less than before."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hyperlora.config.schema import Scalar

NORM_RULES = ("off", "clip", "reject")
"""From the weakest to the strongest."""


def tightens(name: str, before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> bool:
    """Tell whether the new value of a key makes the run safer and changes nothing else of it.

    Args:
        name: the key.
        before: the flat configuration that the run began with.
        after: the one that it is to go on with.
    """
    rule = TIGHTER.get(name)
    return rule is not None and rule(before[name], after[name])


def _lower(before: Scalar, after: Scalar) -> bool:
    return float(after) < float(before)


def _higher(before: Scalar, after: Scalar) -> bool:
    return float(after) > float(before)


TIGHTER: Mapping[str, Callable[[Scalar, Scalar], bool]] = {
    "defence.norm-rule": lambda before, after: NORM_RULES.index(str(after)) > NORM_RULES.index(str(before)),
    "defence.factor": _lower,
    "defence.aggregation": lambda before, after: before == "mean",
    "defence.trim": _higher,
    "federation.allowed-clients": lambda before, after: bool(after),
    "federation.clients-per-node": _lower,
    "federation.min-replies": _higher,
    "privacy.epsilon": lambda before, after: float(after) > 0 and (not before or _lower(before, after)),
    "privacy.exact-figures": lambda before, after: before is True,
}

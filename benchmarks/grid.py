"""What a tuning suite tries: settings of rounds, each a run of its own, and budgets of use on what a run ends with.

``[grid]`` has keys and their values; every combination is a trial of every variant. ``[grids.NAME]`` is a variant's
own grid in its place, for a method that has settings beside the rate; it must have as many trials as the others have.
``[adapting]`` has the rates and the numbers of steps of use: they are tried without training again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hyperlora.config.schema import Scalar


class SuiteError(ValueError):
    """A suite cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class AdaptingGrid:
    """Budgets of a client that adapts an adapter to use it.

    Attributes:
        rates: learning rates.
        steps: numbers of steps, ascending, without 0.
    """

    rates: tuple[float, ...]
    steps: tuple[int, ...]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> AdaptingGrid | None:
        """Return what a suite has under ``adapting``, None where it has nothing."""
        own = table.get("adapting")
        return cls(tuple(map(float, own["rates"])), tuple(sorted(own["steps"]))) if own else None


def trials(table: Mapping[str, Any], variant: str) -> list[dict[str, Scalar]]:
    """Return the settings of every trial of a variant; one without any where the suite has no grid.

    Raises:
        SuiteError: the variant's own grid has more or fewer trials than the others have.
    """
    common = _combinations(table.get("grid", {}))
    own = table.get("grids", {}).get(variant)
    if own is None:
        return common
    found = _combinations(own)
    if len(found) != len(common):
        raise SuiteError(f"the grid of '{variant}' has {len(found)} trials, the other variants have {len(common)} each")
    return found


def trial_name(variant: str, settings: Mapping[str, Scalar]) -> str:
    """Return what the run of a trial is called: the variant alone where there is no grid."""
    return f"{variant} @ {', '.join(map(str, settings.values()))}" if settings else variant


def _combinations(grid: Mapping[str, Sequence[Scalar]]) -> list[dict[str, Scalar]]:
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

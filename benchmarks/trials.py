"""What a tuning suite tries: settings of rounds, each a run of its own, and budgets of use on what a run ends with.

``[grid]`` has keys and their values; every combination is a trial of every variant. ``[grids.NAME]`` is a variant's
own grid in its place, for a method that has settings beside the rate; it must have as many trials as the others have.
``[adapting]`` has the rates and the numbers of steps of use: they are tried without training again, by all seen clients
or by so many ``clients`` of them, the same for every row.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
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
        clients: how many seen clients try them; 0 for all.
    """

    rates: tuple[float, ...]
    steps: tuple[int, ...]
    clients: int = 0

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> AdaptingGrid | None:
        """Return what a suite has under ``adapting``, None where it has nothing."""
        own = table.get("adapting")
        if not own:
            return None
        return cls(tuple(map(float, own["rates"])), tuple(sorted(own["steps"])), int(own.get("clients", 0)))

    @property
    def scored(self) -> tuple[int, ...]:
        """Numbers of steps after which a client is scored: before any, since its gain is what counts."""
        return (0, *self.steps)

    def drawn(self, seen: Iterable[str], seed: int) -> frozenset[str]:
        """Return those of the ``seen`` clients that try the budgets; the seed alone says which."""
        names = sorted(seen)
        some = bool(self.clients) and self.clients < len(names)
        return frozenset(random.Random(f"adapting:{seed}").sample(names, self.clients) if some else names)


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

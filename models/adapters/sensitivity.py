"""How much the loss depends on each component of an adapter, as AdaLoRA measures it (arXiv 2303.10512).

A component is a column b of B and a row a of A. With its weight lambda taken into b, the sensitivity of lambda is
|<b, dL/db>|; that of a single entry w is |w dL/dw|. Over the local steps t, with I(t) one of these (eqs. 8 to 10),

    mean(t) = beta mean(t-1) + (1 - beta) I(t),   spread(t) = beta spread(t-1) + (1 - beta) |I(t) - mean(t)|,

its score is mean * spread, and that of a component the score of lambda and the mean scores of its two vectors (eq. 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.adapters.adapter import Adapter

BETA = 0.85


class SensitivityMeter:
    """Collects the scores of one client's adapter over its local steps."""

    def __init__(self) -> None:
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}

    def see(self, adapter: Adapter, gradient: Adapter) -> None:
        """Take one step into account: the adapter after it, and the gradient that it was made with."""
        for kind, now in adapter.low_rank.items():
            slope = gradient.low_rank[kind]
            left, right = now.B * slope.B, now.A * slope.A
            self._smooth(f"{kind} weight", left.sum(dim=-2).abs())
            self._smooth(f"{kind} B", left.abs())
            self._smooth(f"{kind} A", right.abs())

    def scores(self) -> dict[str, Tensor]:
        """Return kind -> score of every component, (blocks, r); empty before the first step."""
        kinds = {name.rsplit(" ", 1)[0] for name in self._moments}
        return {
            kind: self._score(f"{kind} weight")
            + self._score(f"{kind} B").mean(dim=-2)
            + self._score(f"{kind} A").mean(dim=-1)
            for kind in sorted(kinds)
        }

    def by_module(self) -> dict[str, Tensor]:
        """Return kind -> sum of the scores of each module's components, (blocks,)."""
        return {kind: one.sum(dim=-1) for kind, one in self.scores().items()}

    def _smooth(self, name: str, found: Tensor) -> None:
        mean, spread = self._moments.get(name, (torch.zeros_like(found), torch.zeros_like(found)))
        mean = BETA * mean + (1 - BETA) * found
        self._moments[name] = mean, BETA * spread + (1 - BETA) * (found - mean).abs()

    def _score(self, name: str) -> Tensor:
        mean, spread = self._moments[name]
        return mean * spread


def agreed(told: Sequence[Mapping[str, Tensor]], before: Mapping[str, float]) -> dict[str, float]:
    """Return module (``<kind> <block>``) -> share of the sensitivity, as the clients of a cohort see it.

    Each client's sensitivities are normalised to shares, and the median over clients is taken, so that fewer than half
    of them cannot move it at will. Rounds are smoothed as AdaLoRA smooths steps.

    Args:
        told: kind -> (blocks,) sensitivities of 0 or more, of each client.
        before: what this function returned for the round before; empty in the first.
    """
    given = [one for one in told if one]
    vectors = [_as_vector(one) for one in given]
    shares = [one / one.sum() for one in vectors if one.sum() > 0]
    if not shares:
        return dict(before)
    names = [f"{kind} {block}" for kind, one in sorted(given[0].items()) for block in range(len(one))]
    median = torch.stack(shares).quantile(0.5, dim=0)
    found = zip(names, median.tolist(), strict=True)
    return {name: BETA * before.get(name, now) + (1 - BETA) * now for name, now in found}


def _as_vector(told: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([told[kind].double() for kind in sorted(told)])

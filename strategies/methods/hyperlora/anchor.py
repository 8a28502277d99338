"""How the anchor moves: dW_anchor <- T_r( dW_anchor + eta sum_i w_i (dW_i - dW_i^start) + share E ).

E is what earlier truncations cut off (:mod:`models.personalization.corrector`); clients are served the running average
of the anchors over rounds, average <- T_r( (1 - a) average + a dW_anchor ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.adapters.adapter import Adapter, combine
from models.adapters.adapter_sum import AdapterSum, sum_for
from models.personalization.corrector import correct
from strategies.methods.base.server import ClientUpdate, example_weights
from strategies.methods.hyperlora.state import HyperLoraState

CANCELLED = 1e-12
"""A weight that is what rounding leaves of zero."""


@dataclass(frozen=True)
class AnchorRule:
    """Settings of the rule.

    Attributes:
        step: eta, along the averaged movements.
        residual_rank: rank of what the corrector carries; 0 where it is off.
        residual_share: how much of that enters again.
        averaging: a, weight of a round's anchor in the running average; 1 serves the last anchor.
    """

    step: float = 1.0
    residual_rank: int = 0
    residual_share: float = 0.5
    averaging: float = 1.0

    def moved(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> HyperLoraState:
        """Return the state with the anchor after a round, its running average, and what was cut off."""
        total, rank = moved_anchor(state.anchor, updates, self.step), state.anchor.rank
        kept, residual = correct(
            total, state.residual, self.residual_share, rank=rank, residual_rank=self.residual_rank
        )
        anchor = kept.aligned(state.anchor)
        return replace(state, anchor=anchor, average=self._average(state, anchor), residual=residual)

    def _average(self, state: HyperLoraState, anchor: Adapter) -> Adapter | None:
        """Return the running average; None where it is the anchor."""
        if self.averaging == 1.0:
            return None
        before = state.served_anchor if state.average is not None else anchor
        mixed = combine([before, anchor], [1.0 - self.averaging, self.averaging])
        return mixed.truncated(anchor.rank).aligned(anchor)


def moved_anchor(anchor: Adapter, updates: Sequence[ClientUpdate], step: float) -> AdapterSum:
    """Return dW_anchor + step sum_i w_i (dW_i - dW_i^start), exactly: its rank is that of all terms together.

    An adapter that several clients started from is one term. Where all started from the anchor and the step is 1, the
    ends are all that is left.

    Args:
        anchor: dW_anchor.
        updates: starts and ends of the cohort; w_i is the share of client i's samples.
        step: eta, length of the step along the averaged movement.
    """
    weights = [step * one for one in example_weights(updates)]
    ends = [(update.end, weight) for update, weight in zip(updates, weights, strict=True)]
    starts = [(update.start, -weight) for update, weight in zip(updates, weights, strict=True)]
    terms = gathered([(anchor, 1.0), *starts, *ends])
    total = sum_for(anchor, len(terms))
    for adapter, weight in terms:
        total.add(adapter, weight)
    return total


def gathered(terms: Sequence[tuple[Adapter, float]]) -> list[tuple[Adapter, float]]:
    """Return the terms with those of the same adapter, the object, put together, and without any that cancel out."""
    weights: dict[int, tuple[Adapter, float]] = {}
    for adapter, weight in terms:
        weights[id(adapter)] = adapter, weights.get(id(adapter), (adapter, 0.0))[1] + weight
    return [(adapter, weight) for adapter, weight in weights.values() if abs(weight) > CANCELLED]

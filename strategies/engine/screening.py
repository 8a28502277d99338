"""Robust screening of a round's updates: each is checked against the client's card and against other clients' updates.

A client's update, its movement, is dW_end - dW_start, with dW = B A, over all modules and the head. One whose norm is
far above the others' (by median and median absolute deviation, MAD) is clipped or rejected before any method sees it.
The norms compared are those of the cohort and, since a cohort of eight may contain five attackers, the last ones of
clients in earlier rounds, as far as the same parts were trained: a head alone moves less than the factors do. Robust
aggregation rules reject or down-weight updates far from the geometric median.

The weighted geometric median minimises sum_i w_i ||x_i - v||; it stays bounded while less than half of the weight is
corrupted (Minsker 2015; as robust federated aggregation, RFA: Pillutla, Kakade, Harchaoui 2022, algorithm 2, smoothed
Weiszfeld). v lies in the hull of the x_i, so weights over clients stand for it and distances need inner products only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low

import torch
from torch import Tensor

from hyperlora.messages.signature import signature_objection
from models.adapters.adapter import Adapter, subtract
from models.lowrank.factors import Factors, align, concatenate, gram, padded, truncate
from strategies.methods.base.server import ClientUpdate, example_weights

log = logging.getLogger(__name__)
ITERATIONS = 100
TOLERANCE = 1e-9
SMOOTHING = 1e-6


def weights_to_median(gram: Tensor, shares: Tensor) -> Tensor:
    """Return weights alpha >= 0 with sum 1 such that sum_i alpha_i x_i is the weighted geometric median.

    Args:
        gram: inner products of the N vectors, (N, N), float64.
        shares: positive weights of the vectors, (N,).
    """
    base = shares / shares.sum()
    least = SMOOTHING * gram.diagonal().clamp(min=0).mean().sqrt().clamp(min=1e-30)
    weights = base
    for _ in range(ITERATIONS):
        new = base / _distances(gram, weights).clamp(min=least)
        new = new / new.sum()
        if torch.allclose(new, weights, rtol=0, atol=TOLERANCE):
            return new
        weights = new
    return weights


def distances_to_median(gram: Tensor, shares: Tensor) -> Tensor:
    """Return ||x_i - v|| for the weighted geometric median v, (N,)."""
    return _distances(gram, weights_to_median(gram, shares))


def farthest(distances: Tensor, count: int) -> set[int]:
    """Return the indices of the ``count`` largest distances; of equal ones the first."""
    return set(torch.argsort(distances, descending=True, stable=True)[:count].tolist())


def _distances(gram: Tensor, weights: Tensor) -> Tensor:
    along = gram @ weights
    return (gram.diagonal() - 2 * along + weights @ along).clamp(min=0).sqrt()


MAD_TO_SIGMA = 1.4826
LEAST_SPREAD = 0.2
"""Least spread that is assumed, as a share of the median: honest clients of a small cohort differ by more by chance."""
SMALLEST_COHORT = 4
MOST_CUTS = 8
MOST_EXAMPLES = 10
"""A client counts for at most so many times the median number of samples of the clients known."""
MOST_ENTRIES = 10.0
"""How much farther than the median client's the entries of a client's factors and head may move."""
ROUNDING = 1e-6
TOO_LONG = "its movement is far longer than the others'"
TOO_FAR = "its movement is among the farthest from the cohort's geometric median"


@dataclass(frozen=True)
class Screened:
    """What is left of a round's updates.

    Attributes:
        updates: that a method is to see.
        left_out: client-id -> reason.
        clipped: client-id -> share that was kept of a movement.
        lengths: client-id -> length of the movement as it was sent, where it was measured.
    """

    updates: list[ClientUpdate]
    left_out: dict[str, str] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Screen:
    """Settings.

    Attributes:
        norm_rule: ``clip`` (cut a long movement to the bound), ``reject`` or ``off``.
        factor: the bound is median + factor * max(1.4826 MAD, 0.2 median) of all clients' last norms.
        aggregation: ``mean``, ``median`` (weights of the geometric median) or ``trimmed`` (the farthest are left out).
        trim: share of the cohort that ``trimmed`` leaves out.
    """

    norm_rule: str = "clip"
    factor: float = 5.0
    aggregation: str = "mean"
    trim: float = 0.3

    def apply(
        self,
        updates: Sequence[ClientUpdate],
        former: Mapping[str, float] | None = None,
        claims: Sequence[int] = (),
    ) -> Screened:
        """Return the updates that a method is to see; fewer than four clients are only checked against their cards.

        Args:
            updates: usable replies of a round.
            former: client-id -> length of the client's last movement before this round.
            claims: numbers of samples that the clients known say to have; no client counts for more than
                ``MOST_EXAMPLES`` times their median.
        """
        result = _known_counts(updates)
        if claims:
            most = MOST_EXAMPLES * median_low(claims)
            result = replace(result, updates=[_counted(update, most) for update in result.updates])
        if self.norm_rule != "off":
            result = self._bounded(result, former or {})
        if len(result.updates) >= SMALLEST_COHORT and self.aggregation != "mean":
            result = self._robust(result)
        return result

    def _bounded(self, before: Screened, former: Mapping[str, float]) -> Screened:
        lengths = {update.card.client_id: movement_norm(update) for update in before.updates}
        known = {**former, **lengths}
        if len(known) < SMALLEST_COHORT:
            return replace(before, lengths=lengths)
        bound, huge = self._bound(list(known.values())), _with_huge_factors(before.updates)
        after = replace(before, updates=[], lengths=lengths)
        for update in before.updates:
            name, length = update.card.client_id, lengths[update.card.client_id]
            if length <= bound and name in huge:
                after.left_out[name] = TOO_LONG
                continue
            if length <= bound:
                after.updates.append(update)
                continue
            shorter, share = self._shortened(update, length, bound)
            if shorter is None:
                after.left_out[name] = TOO_LONG
            else:
                after.clipped[name] = share
                after.updates.append(shorter)
        return after

    def _shortened(self, update: ClientUpdate, length: float, bound: float) -> tuple[ClientUpdate | None, float]:
        """Return the update cut to the bound and the share that is kept of it; None where it is to be left out.

        Cutting to the rank may lengthen a movement, at most twice; it is then cut again.
        """
        share = bound / length
        for _ in range(MOST_CUTS if self.norm_rule == "clip" and not update.core else 0):
            shorter = replace(update, end=scaled_end(update.start, update.end, share))
            found = movement_norm(shorter)
            if found <= bound * (1 + ROUNDING):
                return shorter, share
            share *= bound / found
        return None, 0.0

    def _bound(self, lengths: Sequence[float]) -> float:
        """Return the bound; the lower of two medians, for half of a small cohort may lie."""
        middle = median_low(lengths)
        spread = MAD_TO_SIGMA * median_low([abs(length - middle) for length in lengths])
        return middle + self.factor * max(spread, LEAST_SPREAD * middle)

    def _robust(self, before: Screened) -> Screened:
        """Return the updates by a rule that looks at movements alone, never at what clients say of themselves."""
        products = movement_gram(before.updates)
        equal = torch.ones(len(before.updates), dtype=torch.float64)
        if self.aggregation == "median":
            shares = torch.tensor(example_weights(before.updates), dtype=torch.float64)
            factors = (weights_to_median(products, equal) / shares).tolist()
            weighed = [replace(one, weight=factor) for one, factor in zip(before.updates, factors, strict=True)]
            return replace(before, updates=weighed)
        far = farthest(distances_to_median(products, equal), int(self.trim * len(before.updates)))
        reasons = {before.updates[index].card.client_id: TOO_FAR for index in far}
        kept = [update for index, update in enumerate(before.updates) if index not in far]
        return replace(before, updates=kept, left_out=before.left_out | reasons)


def movement_norm(update: ClientUpdate) -> float:
    """Return the length of a client's movement."""
    return float(movement_gram([update]).clamp(min=0).sqrt())


def movement_gram(updates: Sequence[ClientUpdate]) -> Tensor:
    """Return the inner products of all movements, (N, N) in float64, through r x r products only.

    Holds two float64 tensors (N, N, blocks, 2 r, 2 r) of one module kind on the way.
    """
    movements = [subtract(update.end, update.start).map(_balanced) for update in updates]
    total = _flat_gram([one.head for one in movements])
    for kind in movements[0].low_rank:
        products = gram([one.low_rank[kind] for one in movements])
        total = total + products.flatten(start_dim=2).sum(dim=2)
    for kind, sent in updates[0].core_start.items():
        total = total + _flat_gram([update.core[kind] - sent for update in updates])
    return total


def _with_huge_factors(updates: Sequence[ClientUpdate]) -> set[str]:
    """Return who moved the entries of its factors much farther than the others, whatever became of the product.

    (c B, A / c) is the product of (B, A), and methods that average factors give it c times the weight.
    """
    moved = {one.card.client_id: _entries_moved(one) for one in updates}
    most = MOST_ENTRIES * median_low(list(moved.values()))
    return {name for name, length in moved.items() if length > most > 0}


def _entries_moved(update: ClientUpdate) -> float:
    start, end = update.start.tensors(), update.end.tensors()
    squares = [float((end[name].double() - start[name].double()).square().sum()) for name in end]
    return math.sqrt(sum(squares))


def _balanced(factors: Factors) -> Factors:
    """Return the product with orthonormal rows of A, in float64.

    A client may write its product with huge factors that cancel; the inner products of such factors are rounding.
    """
    Q_B, R_B = torch.linalg.qr(factors.B.to(torch.float64))
    Q_A, R_A = torch.linalg.qr(factors.A.mT.to(torch.float64))
    return Factors(B=Q_B @ (R_B @ R_A.mT), A=Q_A.mT)


def _flat_gram(tensors: Sequence[Tensor]) -> Tensor:
    flat = torch.stack([one.to(torch.float64).flatten() for one in tensors])
    return flat @ flat.mT


def _known_counts(updates: Sequence[ClientUpdate]) -> Screened:
    """Leave out clients whose number of samples is not that of their card, or not that of their new signature."""
    wrong = {}
    for update in updates:
        card, count = update.card, update.metrics.num_examples
        if count != card.num_examples:
            wrong[card.client_id] = f"it trained on {count} samples and has {card.num_examples}"
        elif objection := signature_objection(count, card.signature):
            wrong[card.client_id] = objection
    return Screened([update for update in updates if update.card.client_id not in wrong], wrong)


def _counted(update: ClientUpdate, most: int) -> ClientUpdate:
    """Return the update with no more samples than ``most``: an average and the attention weigh by their number."""
    count = update.metrics.num_examples
    if count <= most:
        return update
    log.warning("client '%s' says it has %d samples and counts for %d", update.card.client_id, count, most)
    return replace(update, metrics=replace(update.metrics, num_examples=most))


def scaled_end(start: Adapter, end: Adapter, share: float) -> Adapter:
    """Return the best adapter of the rank of ``start`` for dW_start + share (dW_end - dW_start).

    Nothing depends on the gauge in which a client wrote ``end``. Where one of a module's two factors did not move it
    stays as it is, since the product is linear in the other.
    """
    low_rank = {kind: _cut_factors(one, end.low_rank[kind], share) for kind, one in start.low_rank.items()}
    return Adapter(low_rank, torch.lerp(start.head, end.head, share))


def _cut_factors(start: Factors, end: Factors, share: float) -> Factors:
    if torch.equal(start.A, end.A) or torch.equal(start.B, end.B):
        return Factors(B=torch.lerp(start.B, end.B, share), A=torch.lerp(start.A, end.A, share))
    total = concatenate([start.to(torch.float64), end.to(torch.float64)], [1 - share, share])
    kept = truncate(total, min(start.rank, *start.shape[-2:])).kept
    return align(padded(kept, start.rank), start).to(start.wide_dtype)

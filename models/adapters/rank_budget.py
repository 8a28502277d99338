"""Allocate ranks to modules under a byte budget: components are kept in the order of their value per byte.

Keeping one more singular value sigma of a module with weights m x n costs m + n numbers and lowers the squared error
of the adapter by sigma^2, so components are kept in the order of sigma^2 / bytes (a greedy knapsack).

This never adds a direction that has not been trained: a product of rank 2 has no third singular value. If the
sensitivity S of the loss to each module is known (:mod:`models.adapters.sensitivity`), a module's k-th component is
worth S / k instead, which makes ranks proportional to S / bytes (D'Hondt's rule). In round 1, its worth may be the
share of the inputs' variance that it explains (:mod:`models.adapters.input_moments`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from types import MappingProxyType

import torch
from torch import Tensor

from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors, truncate

Ranks = Mapping[str, Sequence[int]]
"""Kind -> rank of the module in every block."""
NO_RANKS: Ranks = MappingProxyType({})
Worth = Mapping[str, Sequence[float]]
"""Module (``<kind> <block>``) -> what its first, second, .. component is worth; empty leaves it to the spectrum."""
NO_WORTH: Worth = MappingProxyType({})
BYTES = {"float32": 4, "float16": 2, "int8": 1, "int4": 0.5}
SCALES = 8
"""Bytes of the two float32 scales that one column of B and one row of A have in int8 and int4."""


def share_out(values: Mapping[str, Tensor], costs: Mapping[str, int], most_bytes: int) -> dict[str, int]:
    """Return module -> rank, so that all have at most so many bytes, or rank 1 where even that has more.

    Args:
        values: module -> its singular values, largest first, or the roots of what else a component is worth.
        costs: module -> bytes of one of them.
        most_bytes: of all modules together.
    """
    left, ranks = most_bytes - sum(costs.values()), dict.fromkeys(values, 1)
    worth = [
        (-float(value.double().square()) / costs[name], index, name)
        for name, ones in values.items()
        for index, value in enumerate(ones)
        if index
    ]
    for _, _, name in sorted(worth, key=lambda one: one[:2]):
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def bytes_per_rank(factors: Factors, wire: str) -> int:
    """Return what one component of one module takes in a message: a column of B and a row of A."""
    *_, m, n = factors.shape
    return ceil((m + n) * BYTES[wire]) + (SCALES if BYTES[wire] <= 1 else 0)


def least_bytes(adapter: Adapter, wire: str) -> int:
    """Return what the factors of an adapter of this shape take in a message at rank 1."""
    return sum(len(factors.B) * bytes_per_rank(factors, wire) for factors in adapter.low_rank.values())


def in_proportion(sensitivity: Mapping[str, float], rank: int) -> Worth:
    """Return the worth of ``rank`` components of every module by which ranks are in proportion to its sensitivity."""
    return {name: [one / place for place in range(1, rank + 1)] for name, one in sensitivity.items()}


def within_budget(adapter: Adapter, most_bytes: int, wire: str, worth: Worth = NO_WORTH) -> tuple[Adapter, Ranks]:
    """Return the adapter with as many singular values of every module as a budget allows, zeros in place of the others.

    Training leaves these zeros at zero, since each of the two factors gets its gradient through the other.

    Args:
        adapter: of any rank; a product that is zero keeps orthogonal rows of A and takes its turn by index.
        most_bytes: of all factors in one message.
        wire: number format of the message.
        worth: of the components of every module, in place of the squares of its singular values.
    """
    cuts = {kind: truncate(factors, factors.rank) for kind, factors in adapter.low_rank.items()}
    values, costs = {}, {}
    for kind, cut in cuts.items():
        for block, ones in enumerate(cut.singular_values):
            name = f"{kind} {block}"
            values[name] = torch.tensor(worth[name][: len(ones)]).sqrt() if worth else ones
            costs[name] = bytes_per_rank(cut.kept, wire)
    shared = share_out(values, costs, most_bytes)
    ranks = {kind: [shared[f"{kind} {block}"] for block in range(len(cut.kept.B))] for kind, cut in cuts.items()}
    return Adapter({kind: _masked(cut.kept, ranks[kind]) for kind, cut in cuts.items()}, adapter.head), ranks


def _masked(factors: Factors, ranks: Sequence[int]) -> Factors:
    kept = (torch.arange(factors.rank) < torch.tensor(ranks)[:, None]).to(factors.B)
    return Factors(B=factors.B * kept[:, None, :], A=factors.A * kept[:, :, None])

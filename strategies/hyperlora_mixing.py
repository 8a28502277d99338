"""Mixtures of the memory for many clients: which clients are mixed together, and the mixtures as one map each kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.adapter import HEAD, Adapter
from models.low_rank import Factors
from models.mixtures import Mixtures, distinct_terms

MOST_SPREAD = 5.0
"""How many times more entries than one client attends to a group may: a large product is so much faster per term."""
GROUP_NUMBERS = 2**24
"""Numbers in the largest block of vectors of a group."""
ENTRY_NUMBERS = 2**26
"""Numbers of the largest kind of all entries that a group attends to, beyond what its first client does."""
BLOCK = 12


@dataclass(frozen=True, eq=False)
class MixedMemory:
    """What a group of n clients takes of the memory.

    Attributes:
        low_rank: kind -> the mixtures of all n.
        heads: (n, classes, width + 1), mixed.
    """

    low_rank: Mapping[str, Mixtures]
    heads: Tensor


def alike(rows: Tensor, template: Adapter) -> list[list[int]]:
    """Divide clients into groups that attend to much the same entries.

    Args:
        rows: (clients, N) attention, zero where nothing is taken.
        template: an adapter of the model, whose size bounds a group.

    Returns:
        Indices of clients; every client is in one group, and the same rows give the same groups.
    """
    size = max(one.B.numel() // one.rank + one.A.numel() // one.rank for one in template.low_rank.values())
    most, most_entries = max(1, GROUP_NUMBERS // (BLOCK * size)), ENTRY_NUMBERS // (2 * template.rank * size)
    taken = rows != 0
    overlap = taken.float() @ taken.float().T
    rest, groups = list(range(len(rows))), []
    while rest:
        first = rest[0]
        group, union, own = [first], taken[first].clone(), int(taken[first].sum())
        for other in sorted(rest[1:], key=lambda one: (-float(overlap[first, one]), one)):
            joint, total = union | taken[other], own + int(taken[other].sum())
            entries = int(joint.sum())
            alike_enough = entries * (len(group) + 1) <= MOST_SPREAD * max(total, 1)
            if len(group) < most and alike_enough and (entries <= most_entries or entries == int(union.sum())):
                group, union, own = [*group, other], joint, total
        groups.append(sorted(group))
        rest = sorted(set(rest) - set(group))
    return groups


def mixed_memory(
    entries: Sequence[Adapter],
    weights: Mapping[str, Tensor],
    *,
    anchor: Adapter,
    own: Adapter | None = None,
) -> MixedMemory:
    """Return anchor + sum_j w_ij D_j + own_i for n clients.

    Args:
        entries: the D_j, M of them.
        weights: part -> w, (n, M).
        anchor: the anchor, which deviations of this round hold as well.
        own: an adapter batch of n, already weighted; None for nothing.
    """
    low_rank = {}
    for kind, base in anchor.low_rank.items():
        terms = [Factors(-base.B, base.A), *(one.low_rank[kind] for one in entries)]
        shared, membership = distinct_terms(terms)
        columns = weights[kind] @ membership[1:] - membership[0]
        low_rank[kind] = Mixtures(shared, columns, None if own is None else own.low_rank[kind])
    heads = anchor.head.expand(len(weights[HEAD]), -1, -1)
    if entries:
        heads = heads + torch.einsum("nm,mcw->ncw", weights[HEAD], torch.stack([one.head for one in entries]))
    return MixedMemory(low_rank, heads if own is None else heads + own.head)

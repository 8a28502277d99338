"""Factors whose modules differ in rank, as they travel: the components of a kind side by side, without padding.

In memory the factors of a kind are stacked over its blocks, B (blocks, m, r) and A (blocks, r, n), and a module of a
lower rank ends in zeros. In a message they are B (m, R) and A (R, n), R being the sum of the ranks over the blocks.
Without ranks every function returns what it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.number_formats import Shapes
from models.adapters.rank_budget import Ranks

LEFT, RIGHT = ".lora_B", ".lora_A"


def flattened(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return named tensors of an adapter without what lies beyond the ranks; a head stays as it is."""
    flat = dict(tensors)
    for kind, kept in ranks.items():
        if kind + LEFT in flat:
            blocks = flat[kind + LEFT]
            flat[kind + LEFT] = torch.cat([B[:, :rank] for B, rank in zip(blocks, kept, strict=True)], dim=1)
        if kind + RIGHT in flat:
            blocks = flat[kind + RIGHT]
            flat[kind + RIGHT] = torch.cat([A[:rank] for A, rank in zip(blocks, kept, strict=True)])
    return flat


def flattened_shapes(shapes: Shapes, ranks: Ranks) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of what :func:`flattened` makes of tensors of ``shapes``."""
    flat = dict(shapes)
    for kind, kept in ranks.items():
        if kind + LEFT in flat:
            flat[kind + LEFT] = (flat[kind + LEFT][1], sum(kept))
        if kind + RIGHT in flat:
            flat[kind + RIGHT] = (sum(kept), flat[kind + RIGHT][2])
    return flat


def stacked(flat: Mapping[str, Tensor], ranks: Ranks, rank: int) -> dict[str, Tensor]:
    """Inverse of :func:`flattened`, with zeros up to ``rank``."""
    tensors = dict(flat)
    for kind, kept in ranks.items():
        if kind + LEFT in tensors:
            parts = torch.split(tensors[kind + LEFT], [*kept], dim=1)
            tensors[kind + LEFT] = torch.stack([_padded(one.mT, rank).mT for one in parts])
        if kind + RIGHT in tensors:
            parts = torch.split(tensors[kind + RIGHT], [*kept])
            tensors[kind + RIGHT] = torch.stack([_padded(one, rank) for one in parts])
    return tensors


def ranks_as_list(ranks: Ranks) -> list[int]:
    """Return the ranks of all modules, kinds in the order of the alphabet."""
    return [rank for kind in sorted(ranks) for rank in ranks[kind]]


def ranks_from_list(values: Sequence[int], blocks: Mapping[str, int], most: int) -> dict[str, Sequence[int]]:
    """Inverse of :func:`ranks_as_list` for a model with so many ``blocks`` of every kind; an empty list is no ranks.

    Raises:
        ProtocolError: there is not one rank for each module, or one is not between 1 and ``most``.
    """
    if not values:
        return {}
    if len(values) != sum(blocks.values()):
        raise ProtocolError(f"expected a rank for each of {sum(blocks.values())} modules, got {len(values)}")
    if not all(1 <= one <= most for one in values):
        raise ProtocolError(f"ranks of modules {[*values]} must lie between 1 and {most}")
    given = iter(values)
    return {kind: [next(given) for _ in range(blocks[kind])] for kind in sorted(blocks)}


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))

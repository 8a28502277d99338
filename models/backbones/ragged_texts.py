"""Texts of different lengths in one row: the blocks of an encoder see no padding.

A batch that is padded to its longest text spends its time on padding: of short requests to an assistant 40 % and more
of it. On a CPU texts are laid end to end instead, and attention is masked so that every text reads itself alone
(Krell et al. 2021, arXiv 2107.02027).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

LONGEST_ROW = 256
"""Tokens in a row: attention grows with their square."""
LEAST_PADDING = 0.2
"""The share of padding from which on rows are faster."""


def worth_it(mask: Tensor) -> bool:
    """Tell whether a batch on a CPU has enough padding; ``mask`` is (n, s), 1 at tokens."""
    return mask.device.type == "cpu" and float(mask.mean(dtype=torch.float32)) < 1 - LEAST_PADDING


def run_in_rows(run: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, mask: Tensor) -> Tensor:
    """Return what ``run`` makes of each text, (n, s, d) with zeros at padding.

    Args:
        run: of the hidden states of a row (1, t, d) and what is added to its attention, (1, 1, t, t).
        hidden: (n, s, d), padded.
        mask: (n, s), 1 at tokens.
    """
    present = mask.bool()
    places = present.nonzero(as_tuple=True)
    tokens, owners = hidden[places], places[0]
    least = torch.finfo(hidden.dtype).min
    rows = []
    for part in _rows(present.sum(dim=1).tolist()):
        owner = owners[part]
        apart = (owner[:, None] != owner[None, :]).to(hidden.dtype) * least
        rows.append(run(tokens[part][None], apart[None, None])[0])
    if not rows:
        return torch.zeros_like(hidden)
    return torch.zeros_like(hidden).index_put(places, torch.cat(rows))


def _rows(lengths: list[int]) -> Iterator[slice]:
    """Yield which tokens make up each row: whole texts, as many as fit; a longer text has a row of its own."""
    start = end = 0
    for length in lengths:
        if end > start and end + length - start > LONGEST_ROW:
            yield slice(start, end)
            start = end
        end += length
    if end > start:
        yield slice(start, end)

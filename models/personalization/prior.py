"""The class prior of a client: part of the head's bias during local work, never of what is aggregated.

A client's head starts at bias + gamma log pi; gamma log pi is subtracted again before the head is sent, so that the
shared head is learned free of label skew (logit adjustment, Menon et al. 2021, arXiv 2007.07314, eq. 9).
"""

from __future__ import annotations

from torch import Tensor

from models.adapters.adapter import Adapter


def add_prior(adapter: Adapter, class_frequencies: Tensor, gamma: float) -> Adapter:
    """Return ``adapter`` with the class prior in the bias of its head: bias + gamma log pi.

    Args:
        adapter: with a head of (classes, width + 1).
        class_frequencies: pi, (classes,), positive.
        gamma: strength; 0 adds nothing.
    """
    head = adapter.head.clone()
    head[:, -1] += gamma * class_frequencies.log()
    return Adapter(adapter.low_rank, head)


def remove_prior(adapter: Adapter, class_frequencies: Tensor, gamma: float) -> Adapter:
    """Inverse of :func:`add_prior`."""
    return add_prior(adapter, class_frequencies, -gamma)

"""The corrector C_omega: what truncation to rank r cut off is carried and offered again (error feedback).

kept, cut = T_r( dW + sigmoid(omega_part) E ), and E <- T_R(cut) is carried to the next round. With a gate of 0 it is
plain truncation. Error feedback: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping

from models.adapters.adapter import Adapter, AdapterSum


def correct(
    total: AdapterSum, carried: Adapter | None, gates: Mapping[str, float], *, rank: int, carried_rank: int
) -> tuple[Adapter, Adapter | None]:
    """Truncate ``total`` to ``rank`` with what earlier truncations cut off offered again.

    Args:
        total: a sum of adapters; what is offered again is added to it.
        carried: what was cut off before, or None.
        gates: share of it that is offered, by part, from 0 to 1.
        rank: rank of the result.
        carried_rank: most rank that is carried on; 0 carries nothing.

    Returns:
        The adapter of rank ``rank``, and what is carried to the next round.
    """
    if carried is not None:
        total.add(carried, gates)
    kept, cut = total.split(rank, carried_rank)
    return kept, cut if carried_rank else None

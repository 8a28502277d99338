"""The corrector C_omega: the residual that truncation to rank r cut off is offered again later (error feedback).

kept, residual = T_r( dW + share E ), and E <- T_R(residual) goes to the next round. With a share of 0 it is plain
truncation, with 1 nothing is lost. Error feedback: Karimireddy et al. 2019, arXiv 1901.09847, algorithm 2.
"""

from __future__ import annotations

from models.adapters.adapter import Adapter
from models.adapters.adapter_sum import AdapterSum


def correct(
    total: AdapterSum, residual: Adapter | None, share: float, *, rank: int, residual_rank: int
) -> tuple[Adapter, Adapter | None]:
    """Truncate ``total`` to ``rank`` with the residual of earlier truncations offered again.

    Args:
        total: the sum dW; the share of the residual is added to it.
        residual: E, what earlier truncations cut off, or None.
        share: of it that is offered, from 0 to 1.
        rank: r, rank of the result.
        residual_rank: R, rank of the new residual; 0 keeps none.

    Returns:
        The adapter of rank r, and the residual for the next round.
    """
    if residual is not None:
        total.add(residual, share)
    kept, cut = total.split(rank, residual_rank)
    return kept, cut if residual_rank else None

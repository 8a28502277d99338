"""Adapters of the size of real ones, made up: a part common to all clients and a part of their own."""

from __future__ import annotations

import torch

from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors

VIT_B = {"attn.qkv": (2304, 768), "attn.proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
DEIT_TINY = {"attn.qkv": (576, 192), "attn.proj": (192, 192), "mlp.fc1": (768, 192), "mlp.fc2": (192, 768)}
COMMON_SEED = 2**31


def made_up_adapter(
    seed: int, shapes: dict[str, tuple[int, int]], *, blocks: int, rank: int, common: float = 0.5, classes: int = 7
) -> Adapter:
    """Return an adapter whose factors are ``common`` times those of all clients plus a part of its own."""
    own, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(COMMON_SEED)

    def draw(*size: int) -> torch.Tensor:
        return (1 - common) * torch.randn(*size, generator=own) + common * torch.randn(*size, generator=shared)

    low_rank = {kind: Factors(draw(blocks, m, rank), draw(blocks, rank, n)) for kind, (m, n) in shapes.items()}
    return Adapter(low_rank, draw(classes, next(iter(shapes.values()))[1] + 1))

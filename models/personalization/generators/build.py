"""The generator G_phi (hypernetwork): a client's deviation from the anchor, made from its signature alone.

It serves clients that never trained, join later or are offline. The contract is
:class:`~models.personalization.generators.base.Generator`; the kinds differ in what a signature may decide:

- ``atoms``: coefficients over learned rank-1 atoms per layer (the default);
- ``mlp``: all factors, from one MLP (as HyperFLoRA, SDM 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from models.adapters.adapter import Adapter
from models.personalization.generators.atoms import AtomGenerator
from models.personalization.generators.base import Generator
from models.personalization.generators.mlp import MlpGenerator

__all__ = ["GENERATORS", "Generator", "build_generator"]

GENERATORS: Mapping[str, Callable[..., Generator]] = {"atoms": AtomGenerator, "mlp": MlpGenerator}


def build_generator(
    kind: str, *, template: Adapter, embedding_size: int, rank: int, hidden: int, seed: int
) -> Generator:
    """Return a fresh generator, the same one for the same ``seed``; the global random state stays as it is.

    Args:
        kind: one of ``GENERATORS``.
        template: any adapter of the backbone, for kinds and shapes; its rank plays no part.
        embedding_size: numbers k in the embedding of a signature.
        rank: atoms K per module for ``atoms``, the rank r of the factors for ``mlp``; a deviation's rank.
        hidden: width of the code.
        seed: of the weights at birth.

    Raises:
        ValueError: if the kind is unknown or a size is below 1.
    """
    if kind not in GENERATORS:
        raise ValueError(f"expected a generator kind among {', '.join(GENERATORS)}, got {kind!r}")
    sizes = {"embedding_size": embedding_size, "rank": rank, "hidden": hidden}
    if min(sizes.values()) < 1:
        raise ValueError(f"expected sizes of at least 1, got {sizes}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return GENERATORS[kind](template, embedding_size=embedding_size, rank=rank, hidden=hidden)

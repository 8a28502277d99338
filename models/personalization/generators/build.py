"""The generator G_phi (hypernetwork): a client's deviation from the anchor, made from its signature alone.

It serves clients that never trained, join later or are offline. The contract is
:class:`~models.personalization.generators.base.Generator`; the kinds differ in what a signature may decide:

- ``atoms``: coefficients over learned rank-1 atoms per layer (the default);
- ``mlp``: all factors, from one MLP (as HyperFLoRA, SDM 2024);
- ``attention``: factors, from a transformer over layer tokens (the idea of HyperAdaLoRA);
- ``heads``: the rows of B by attention head of the backbone (the idea of HyRA).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from models.adapters.adapter import Adapter
from models.personalization.generators.atoms import AtomGenerator
from models.personalization.generators.base import Generator
from models.personalization.generators.direct import AttentionGenerator, HeadwiseGenerator, MlpGenerator

__all__ = ["GENERATOR_KINDS", "Generator", "build_generator"]

GENERATOR_KINDS = ("atoms", "mlp", "attention", "heads")


def build_generator(
    kind: str, *, template: Adapter, embedding_size: int, rank: int, hidden: int, seed: int, num_heads: int
) -> Generator:
    """Return a fresh generator, the same one for the same ``seed``; the global random state stays as it is.

    Args:
        kind: one of ``GENERATOR_KINDS``.
        template: any adapter of the backbone, for kinds and shapes; its rank plays no part.
        embedding_size: numbers k in the embedding of a signature.
        rank: atoms K per module for ``atoms``, else the rank r of the factors; a deviation's rank.
        hidden: width of the code.
        seed: of the weights at birth.
        num_heads: attention heads of the backbone (``Backbone.num_heads``), for ``heads`` only.

    Raises:
        ValueError: if the kind is unknown or a size is below 1.
    """
    headwise = functools.partial(HeadwiseGenerator, num_heads=num_heads)
    classes: tuple[Callable[..., Generator], ...] = (AtomGenerator, MlpGenerator, AttentionGenerator, headwise)
    builders = dict(zip(GENERATOR_KINDS, classes, strict=True))
    if kind not in builders:
        raise ValueError(f"expected a generator kind among {', '.join(GENERATOR_KINDS)}, got {kind!r}")
    sizes = {"embedding_size": embedding_size, "rank": rank, "hidden": hidden, "num_heads": num_heads}
    if min(sizes.values()) < 1:
        raise ValueError(f"expected sizes of at least 1, got {sizes}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return builders[kind](template, embedding_size=embedding_size, rank=rank, hidden=hidden)

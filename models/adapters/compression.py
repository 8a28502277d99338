"""A finished adapter in fewer bytes: every module's product keeps its strongest singular values, from the factors.

Training at a higher rank and cutting afterwards is LoRA-Squeeze's way to a small adapter. Where a rank is asked for,
all modules keep as many singular values; where a size is, they share it (:mod:`models.adapters.rank_budget`). PEFT
reads modules of different ranks by ``rank_pattern`` and ``alpha_pattern``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from models.adapters.adapter import Adapter, AdapterError
from models.adapters.rank_budget import share_out
from models.lowrank.factors import Factors, Truncation, padded, truncate

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

LEFT, RIGHT, PREFIX = ".lora_B.weight", ".lora_A.weight", "base_model.model."
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class Compressed:
    """An adapter of lower ranks.

    Attributes:
        tensors: under PEFT's names, as they stand in ``adapter_model.safetensors``.
        ranks: module -> rank.
        errors: module -> ||B A - its approximation|| / ||B A||, both Frobenius.
        error: the same of all modules together.
    """

    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    errors: Mapping[str, float]
    error: float

    def content(self) -> bytes:
        """Return the file of the weights."""
        return file_of(self.tensors)

    def configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the ``adapter_config.json`` of these ranks, the scaling of every module being that of ``config``."""
        power = 0.5 if config.get("use_rslora") else 1.0
        scaling, largest = config["lora_alpha"] / config["r"] ** power, max(self.ranks.values())
        others = {_plain(name): rank for name, rank in self.ranks.items() if rank != largest}
        return {
            **config,
            "r": largest,
            "lora_alpha": scaling * largest**power,
            "rank_pattern": others,
            "alpha_pattern": {name: scaling * rank**power for name, rank in others.items()},
        }


def compress(tensors: Mapping[str, Tensor], *, rank: int = 0, most_bytes: int = 0) -> Compressed:
    """Return the adapter of a PEFT file cut to one rank, or to what a size allows; no m x n matrix is formed.

    Args:
        tensors: what the file holds, under PEFT's names.
        rank: r of every module; one that has fewer already is left at that.
        most_bytes: size of the file instead; every module keeps a rank of at least 1.

    Raises:
        AdapterError: the adapter is no larger than asked for, or does not fit at rank 1.
    """
    products = products_of(tensors)
    spectra = {name: truncate(one, min(one.rank, *one.shape)) for name, one in products.items()}
    if most_bytes:
        costs = {name: _bytes_per_rank(one.kept) for name, one in spectra.items()}
        values = {name: one.singular_values for name, one in spectra.items()}
        ranks = share_out(values, costs, most_bytes - _bytes_beside(tensors, products))
    else:
        ranks = {name: min(rank, one.rank) for name, one in products.items()}
    if all(ranks[name] == one.rank for name, one in products.items()):
        largest, size = max(one.rank for one in products.values()), len(file_of(tensors))
        raise AdapterError(f"the adapter has rank {largest} and {size} bytes already: ask for less")
    kept = dict(tensors)
    for name, spectrum in spectra.items():
        kept[name + LEFT] = spectrum.kept.B[:, : ranks[name]].contiguous()
        kept[name + RIGHT] = spectrum.kept.A[: ranks[name]].contiguous()
    size = len(file_of(kept))
    if most_bytes and size > most_bytes:
        raise AdapterError(f"at rank 1 the adapter has {size} bytes, and {most_bytes} were asked for")
    return Compressed(kept, ranks, *_errors(spectra, ranks))


def products_of(tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Return module -> its factors; raises AdapterError where a PEFT file holds none, or one without the other."""
    names = [name.removesuffix(RIGHT) for name in tensors if name.endswith(RIGHT)]
    try:
        found = {name: Factors(B=tensors[name + LEFT], A=tensors[name + RIGHT]) for name in names}
    except (KeyError, ValueError) as error:
        raise AdapterError(f"the file holds no pairs of LoRA factors: {error}") from error
    if not found:
        raise AdapterError("the file holds no LoRA factors that could be cut to a lower rank")
    return found


def file_of(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors file of PEFT's tensors."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, METADATA)


def adapter_of(tensors: Mapping[str, Tensor], model: AdaptedModel) -> Adapter:
    """Return what a PEFT file holds as an adapter for ``model``, padded with zeros where modules differ in rank.

    Raises:
        AdapterError: the file is not of an adapter for the modules of this model.
    """
    backbone, products = model.backbone, products_of(tensors)
    most = max(one.rank for one in products.values())
    low_rank = {}
    try:
        for kind, paths in backbone.adapted_layers(backbone.num_blocks - model.first_block).items():
            ones = [padded(products[PREFIX + path], most) for path in paths]
            low_rank[kind] = Factors(B=torch.stack([one.B for one in ones]), A=torch.stack([one.A for one in ones]))
        head = f"{PREFIX}{backbone.head_name}"
        return Adapter(low_rank, torch.cat([tensors[f"{head}.weight"], tensors[f"{head}.bias"][:, None]], dim=1))
    except KeyError as error:
        raise AdapterError(f"the file holds no adapter for '{backbone.name}': it lacks {error}") from error


def _bytes_per_rank(factors: Factors) -> int:
    return factors.B.shape[0] * factors.B.itemsize + factors.A.shape[1] * factors.A.itemsize


def _bytes_beside(tensors: Mapping[str, Tensor], products: Mapping[str, Factors]) -> int:
    """Return the bytes of the file that are no factors: head and header, whose shapes have no more digits later."""
    return len(file_of(tensors)) - sum(one.B.nbytes + one.A.nbytes for one in products.values())


def _errors(spectra: Mapping[str, Truncation], ranks: Mapping[str, int]) -> tuple[dict[str, float], float]:
    energies = {name: one.singular_values.double().square() for name, one in spectra.items()}
    lost = {name: energy[ranks[name] :].sum() for name, energy in energies.items()}
    whole = {name: energy.sum().clamp_min(torch.finfo(torch.float64).tiny) for name, energy in energies.items()}
    errors = {name: float((lost[name] / whole[name]).sqrt()) for name in energies}
    return errors, float((sum(lost.values()) / sum(whole.values())) ** 0.5)


def _plain(name: str) -> str:
    """Return the path of a module in the backbone, by which PEFT's patterns find it."""
    return name.removeprefix(PREFIX)

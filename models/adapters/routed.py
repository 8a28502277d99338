"""FlyLoRA: of a layer's components each token uses the few that answer it most (arXiv 2510.08396).

y = W x + s B (t(A x) * A x), where t keeps the k of r components with the largest |A x| and A is sparse, random, fixed
and the same for all. What t keeps depends on x and A alone, so that the layer is linear in B and the average of
clients' B is, for every input, the average of what their layers add. The paper shifts the choice by a bias that each
client moves towards a balanced load; clients would then choose differently for one token, so there is none here.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor

from models.adapters.adapter import AdapterError


class RoutedLoraLinear(LoraLinear):
    """A LoRA layer that PEFT made, whose components are chosen for each token; ``active_components`` is k."""

    active_components: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return W x + s B (t(A x) * A x) for x (..., n), or W x where adapters are disabled."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if not self.disable_adapters:
            (name,) = self.active_adapters
            kept = strongest(self.lora_A[name](x), self.active_components)
            result = result + self.scaling[name] * self.lora_B[name](kept)
        return result


def strongest(components: Tensor, count: int) -> Tensor:
    """Return (..., r) with all but the ``count`` numbers of largest magnitude of every row set to zero."""
    kept = components.abs().topk(count, dim=-1).indices
    return torch.zeros_like(components).scatter(-1, kept, components.gather(-1, kept))


def sparse_rows(rows: int, columns: int, share: float, generator: torch.Generator) -> Tensor:
    """Return a random A (rows, columns) of which each row has round(``share`` columns) numbers that are not zero.

    They are normal; a row is about as long as one of a fresh LoRA, 1 / sqrt(3), so that local steps are as large as
    there. In the paper their standard deviation is 1 / r.
    """
    filled = max(1, round(share * columns))
    values = torch.randn(rows, columns, generator=generator) / (3 * filled) ** 0.5
    chosen = torch.rand(rows, columns, generator=generator).argsort(dim=1)[:, :filled]
    return torch.zeros_like(values).scatter(1, chosen, values.gather(1, chosen))


def route(layer: LoraLayer, active: int) -> None:
    """Have ``layer`` choose ``active`` components for each token; raises AdapterError where it is no plain layer."""
    if type(layer) is not LoraLinear or layer.lora_variant:
        raise AdapterError(f"lora.adapter = fly needs linear layers, got {type(layer).__name__}")
    layer.__class__ = RoutedLoraLinear
    cast(RoutedLoraLinear, layer).active_components = active

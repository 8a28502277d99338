"""PEFT's form of an adapter: the configuration that it is made by, and a directory of another rank than the model's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from models.adapters.adapter import Adapter
from models.backbones.backbone import Backbone

ADAPTER_NAME = "default"


def lora_config(backbone: Backbone, *, rank: int, alpha: float, last_blocks: int, rslora: bool) -> LoraConfig:
    """Return PEFT's configuration of the adapter: the adapted layers of the last blocks, and the head."""
    if backbone.extra_stacks:
        paths = backbone.adapted_layers(last_blocks).values()
        layers: dict[str, Any] = {"target_modules": [path for of_kind in paths for path in of_kind]}
    else:
        first = backbone.num_blocks - last_blocks
        layers = {
            "target_modules": list(backbone.target_modules),
            "layers_to_transform": list(range(first, backbone.num_blocks)),
            "layers_pattern": backbone.blocks,
        }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT divides it, any number works
        use_rslora=rslora,
        modules_to_save=[backbone.head_name],
        lora_dropout=0.0,
        **layers,
    )


def save_of_another_rank(
    model: PeftModel, paths: Mapping[str, Sequence[str]], adapter: Adapter, directory: Path
) -> None:
    """Write the factors of ``adapter``, with the head of the model, as a PEFT directory of its own rank.

    Args:
        model: that carries an adapter of another rank.
        paths: kind -> modules of its blocks.
        adapter: whose factors are written; the scaling of its products is that of the model's.
        directory: that is made.
    """
    config = cast(LoraConfig, copy.copy(model.peft_config[ADAPTER_NAME]))
    share = adapter.rank / config.r
    config.lora_alpha *= share**0.5 if config.use_rslora else share  # type: ignore[assignment]  # the same scaling
    config.r, config.inference_mode = adapter.rank, True
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(directory))
    save_file(_tensors(model, paths, adapter), directory / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})


def _tensors(model: PeftModel, paths: Mapping[str, Sequence[str]], adapter: Adapter) -> dict[str, Tensor]:
    """Return PEFT's own names with the factors of ``adapter``; the head is that of the model."""
    tensors = dict(get_peft_model_state_dict(model, save_embedding_layers=False))
    for kind, factors in adapter.low_rank.items():
        for path, lora_A, lora_B in zip(paths[kind], factors.A, factors.B, strict=True):
            name = f"base_model.model.{path}"
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = lora_A, lora_B
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

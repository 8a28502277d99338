"""The merged model: an adapter added into the backbone's weights, written so that timm or transformers loads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import digits_vit
from models.adapted_model import AdaptedModel
from models.adapter import AdapterError
from models.image_transform import ImageTransform
from models.merge_transformers import how_to_load, pretrained_part, save_merged_transformers

LOAD_TIMM = """
import timm

model = timm.create_model("local-dir:{directory}", pretrained=True)
"""
DIGITS_ARCHITECTURE = "vit_tiny_patch16_224"


def merged(model: AdaptedModel, adapter: Path) -> nn.Module:
    """Return the bare network with the adapter of a PEFT directory added into its weights; uses ``model`` up.

    Raises:
        AdapterError: the directory holds no adapter, or one of another shape.
    """
    try:
        weights = load_peft_weights(str(adapter), device="cpu")
        left: Any = set_peft_model_state_dict(model.peft_model, weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise AdapterError(f"the adapter in '{adapter}' does not fit '{model.backbone.name}': {error}") from error
    if left.unexpected_keys:
        raise AdapterError(f"the adapter in '{adapter}' has unknown parts: {', '.join(left.unexpected_keys[:3])}")
    return cast(nn.Module, model.peft_model.merge_and_unload())


def save_merged(network: nn.Module, model: AdaptedModel, class_names: Sequence[str], directory: Path) -> str:
    """Write ``model.safetensors`` and ``config.json`` for timm or transformers; return Python lines that load them.

    Raises:
        AdapterError: the network is neither a VisionTransformer of timm nor a model of transformers.
    """
    if pretrained_part(network) is not None:
        transform = model.backbone.transform
        save_merged_transformers(network, transform, class_names, directory)
        return how_to_load(network, transform, directory.name)
    if not isinstance(network, VisionTransformer):
        raise AdapterError(
            f"'{model.backbone.name}' is no ViT of timm and no model of transformers: "
            "export it without --merged, as a PEFT directory"
        )
    description = _timm_description(model, class_names)
    (directory / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return LOAD_TIMM.format(directory=directory.name)


def _timm_description(model: AdaptedModel, class_names: Sequence[str]) -> dict[str, Any]:
    backbone, transform = model.backbone, model.backbone.transform
    if not isinstance(transform, ImageTransform):
        raise AdapterError(f"'{backbone.name}' takes no images: export it without --merged, as a PEFT directory")
    embedded = backbone.name == digits_vit.NAME
    return {
        "architecture": DIGITS_ARCHITECTURE if embedded else backbone.name.split(".")[0],
        "num_classes": len(class_names),
        "label_names": list(class_names),
        "model_args": digits_vit.ARCHITECTURE if embedded else {"img_size": transform.size},
        "pretrained_cfg": {
            "input_size": [transform.channels, transform.size, transform.size],
            "mean": transform.mean,
            "std": transform.std,
            "num_classes": len(class_names),
            "first_conv": "patch_embed.proj",
            "classifier": backbone.head_name,
        },
    }

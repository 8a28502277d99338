"""The merged model: an adapter added into the backbone's weights, written so that timm or transformers loads it.

A merged transformers model is a ``save_pretrained`` directory that AutoModel loads, next to a file with the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTImageProcessor

from hyperlora.storage.files import write_json
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import AdapterError
from models.backbones import digits_vit
from models.backbones.transforms import ImageTransform, TextTransform

HEAD_FILE = "head.safetensors"
LANGUAGE_MODEL = "language_model"
FEATURES = {
    "vision": "features: pooler_output (for CLIP times projection.weight.T), divided by its norm",
    "text": "features: the mean of last_hidden_state over the tokens of the text",
    "encoder": "features: last_hidden_state[:, 0], the class token",
}
LOAD_LANGUAGE_MODEL = """
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{directory}")
tokenizer = AutoTokenizer.from_pretrained("{directory}")
"""
LOAD_TRANSFORMERS = """
from safetensors.torch import load_file
from transformers import AutoModel

model = AutoModel.from_pretrained("{directory}")
head = load_file("{directory}/{head_file}")
# {features}
# logits = features @ head["classifier.weight"].T + head["classifier.bias"]
"""
LOAD_TIMM = """
import timm

model = timm.create_model("local-dir:{directory}", pretrained=True)
"""
DIGITS_ARCHITECTURE = "vit_tiny_patch16_224"


def merged(model: AdaptedModel, adapter: Path) -> nn.Module:
    """Return the bare network with the adapter of a PEFT directory added into its weights; ``model`` is used up.

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
    """Write a merged network for timm or transformers, and return Python lines that load it.

    Raises:
        AdapterError: the network is neither a VisionTransformer of timm nor a model of transformers.
    """
    parts = {name: part for name, part in network.named_children() if isinstance(part, PreTrainedModel)}
    if parts:
        return _save_for_transformers(network, next(iter(parts)), model.backbone.transform, class_names, directory)
    if not isinstance(network, VisionTransformer):
        raise AdapterError(
            f"'{model.backbone.name}' is no ViT of timm and no model of transformers: "
            "export it without --merged, as a PEFT directory"
        )
    write_json(directory / "config.json", _timm_description(model, class_names))
    save_file(_on_cpu(network.state_dict()), directory / "model.safetensors", {"format": "pt"})
    return LOAD_TIMM.format(directory=directory.name)


def _save_for_transformers(
    network: nn.Module, name: str, transform: Any, class_names: Sequence[str], directory: Path
) -> str:
    """Write the child ``name`` of ``network``, its tokenizer or image processor, and all other weights as the head.

    A causal language model predicts by a head of its own, so there is no ``head.safetensors``.
    """
    part = cast(PreTrainedModel, network.get_submodule(name))
    if name != LANGUAGE_MODEL:
        part.config.id2label = dict(enumerate(class_names))
        part.config.label2id = {label: index for index, label in enumerate(class_names)}
        rest = {key: value for key, value in network.state_dict().items() if not key.startswith(f"{name}.")}
        save_file(_on_cpu(rest), directory / HEAD_FILE)
    part.save_pretrained(str(directory))
    if isinstance(transform, TextTransform):
        transform.tokenizer.save_pretrained(str(directory))
    else:
        size = {"height": transform.size, "width": transform.size}
        processor = ViTImageProcessor(size=size, image_mean=list(transform.mean), image_std=list(transform.std))
        processor.save_pretrained(str(directory))
    if name == LANGUAGE_MODEL:
        return LOAD_LANGUAGE_MODEL.format(directory=directory.name)
    features = FEATURES["text" if isinstance(transform, TextTransform) else name]
    return LOAD_TRANSFORMERS.format(directory=directory.name, head_file=HEAD_FILE, features=features)


def _timm_description(model: AdaptedModel, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the ``config.json`` by which timm builds the model."""
    backbone, transform = model.backbone, cast(ImageTransform, model.backbone.transform)
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


def _on_cpu(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}

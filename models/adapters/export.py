"""The merged model: an adapter added into the backbone's weights, written so that timm or transformers loads it.

A merged transformers model: a ``save_pretrained`` directory that AutoModel loads, and the head beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from peft.utils import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import PreTrainedModel, ViTImageProcessor

from hyperlora.storage.files import write_json
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import AdapterError
from models.backbones import digits_vit
from models.backbones.backbone import Transform
from models.backbones.transforms import ImageTransform, TextTransform

HEAD_FILE = "head.safetensors"
LANGUAGE_MODEL = "language_model"
FEATURES = {
    "vision": "features: pooler_output (for CLIP times projection.weight.T), divided by its norm",
    "text": "features: the mean of last_hidden_state over the tokens of the text",
    "encoder": "features: last_hidden_state[:, 0], the class token",
}


def pretrained_part(network: nn.Module) -> tuple[str, PreTrainedModel] | None:
    """Return name and module of the transformers model inside a backbone's network; None where there is none."""
    parts = ((name, part) for name, part in network.named_children() if isinstance(part, PreTrainedModel))
    return next(parts, None)


def save_merged_transformers(
    network: nn.Module, transform: Transform, class_names: Sequence[str], directory: Path
) -> None:
    """Write the transformers model, its tokenizer or image processor, and ``head.safetensors`` with all other weights.

    A causal language model predicts by a head of its own, so there is no ``head.safetensors``.

    Raises:
        AdapterError: there is no transformers model in the network.
    """
    found = pretrained_part(network)
    if found is None:
        raise AdapterError("there is no transformers model in the network")
    name, part = found
    if name != LANGUAGE_MODEL:
        part.config.id2label = dict(enumerate(class_names))
        part.config.label2id = {label: index for index, label in enumerate(class_names)}
        rest = {key: value for key, value in network.state_dict().items() if not key.startswith(f"{name}.")}
        save_file({key: value.detach().cpu().contiguous() for key, value in rest.items()}, directory / HEAD_FILE)
    part.save_pretrained(str(directory))
    if isinstance(transform, TextTransform):
        transform.tokenizer.save_pretrained(str(directory))
    elif isinstance(transform, ImageTransform):
        _processor(transform).save_pretrained(str(directory))


def how_to_load(network: nn.Module, transform: Transform, directory: str) -> str:
    """Return Python lines that load what was written, and say what the head is applied to."""
    found = pretrained_part(network)
    if found is not None and found[0] == LANGUAGE_MODEL:
        return (
            "\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{directory}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{directory}")\n'
        )
    kind = "text" if isinstance(transform, TextTransform) else "vision" if found and found[0] == "vision" else "encoder"
    return (
        "\nfrom safetensors.torch import load_file\nfrom transformers import AutoModel\n\n"
        f'model = AutoModel.from_pretrained("{directory}")\n'
        f'head = load_file("{directory}/{HEAD_FILE}")\n'
        f"# {FEATURES[kind]}\n"
        '# logits = features @ head["classifier.weight"].T + head["classifier.bias"]\n'
    )


def _processor(transform: ImageTransform) -> ViTImageProcessor:
    size = {"height": transform.size, "width": transform.size}
    mean, std = list(transform.mean), list(transform.std)
    return ViTImageProcessor(size=size, image_mean=mean, image_std=std)


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
    write_json(directory / "config.json", description)
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

"""A merged transformers model: a ``save_pretrained`` directory that AutoModel loads, and the head beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, ViTImageProcessor

from models.adapter import AdapterError
from models.backbone import Transform
from models.image_transform import ImageTransform
from models.text_transform import TextTransform

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

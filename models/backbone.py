"""The frozen backbone: a timm VisionTransformer, split into a cached prefix and an adapted suffix.

The free functions work on the bare module and on one whose blocks carry PEFT's LoRA layers and whose head
is wrapped by PEFT (``peft_model.base_model.model``): they call timm's own submodules in timm's order.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

TARGET_MODULES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LAYERS_PATTERN = "blocks"
HEAD_NAME = "head"

Pretraining = Callable[[], tuple[Tensor, Tensor]]


class BackboneError(ValueError):
    """A backbone cannot be built or used as asked; the message is one sentence for a person."""


@dataclass(frozen=True)
class Backbone:
    """A frozen VisionTransformer with a zero head, and what its users have to know of it.

    ``fingerprint`` is the SHA-256 of everything but the head; two parties may exchange adapters only if
    theirs are equal. ``image_size`` is in pixels, ``mean`` and ``std`` are per channel, for values in [0, 1].
    """

    name: str
    module: nn.Module
    fingerprint: str
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target_modules: tuple[str, ...] = TARGET_MODULES
    layers_pattern: str = LAYERS_PATTERN
    head_name: str = HEAD_NAME

    @property
    def num_blocks(self) -> int:
        """Return the number of transformer blocks."""
        return len(_vit(self.module).blocks)

    @property
    def embed_dim(self) -> int:
        """Return the width d of tokens and pooled features."""
        return int(_vit(self.module).embed_dim)

    def prepare(self, images: Tensor) -> Tensor:
        """Normalise uint8 images (n, c, h, w) to float32 of the same shape, on the same device.

        Raises:
            BackboneError: for another type, rank, number of channels or size; nothing is resized here.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise BackboneError(
                f"backbone '{self.name}' takes uint8 images of shape (n, {', '.join(map(str, expected))}), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images.float() / 255 - mean) / std


def embed_prefix(module: nn.Module, images: Tensor, first_block: int) -> Tensor:
    """Run prepared images (n, c, h, w) through the embedding and ``blocks[:first_block]``.

    Returns:
        tokens (n, t, d), prefix tokens (class, register) included. They depend on frozen weights only
        as long as no adapter sits below ``first_block``, so they may be computed once per image.

    Raises:
        ValueError: if ``first_block`` is not in [0, number of blocks].
    """
    vit = _vit(module)
    _check_first_block(vit, first_block)
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    for block in vit.blocks[:first_block]:
        tokens = block(tokens)
    return torch.as_tensor(tokens)


def forward_suffix(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    """Run tokens (n, t, d) through ``blocks[first_block:]``, the norm and the head: logits (n, classes)."""
    return torch.as_tensor(_vit(module).forward_head(_suffix_tokens(module, tokens, first_block)))


def pooled_features(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    """Return what the head would receive for tokens (n, t, d): pooled features (n, d)."""
    last = _suffix_tokens(module, tokens, first_block)
    return torch.as_tensor(_vit(module).forward_head(last, pre_logits=True))


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 (hex) of the sorted names, types, shapes and bytes of all weights but the head's.

    It does not depend on the number of classes, the device or trained heads; it does on every other bit.
    """
    digest = hashlib.sha256()
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    for name in sorted(tensors):
        if name.split(".")[0] != HEAD_NAME:
            values = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build_backbone(
    *, name: str, weights: str, image_size: int, num_classes: int, pretraining: Pretraining | None = None
) -> Backbone:
    """Build the frozen backbone in evaluation mode with a head of zeros for ``num_classes`` classes.

    Args:
        name: ``digits-vit`` (embedded) or the name of a timm VisionTransformer.
        weights: absolute path of a safetensors file; empty takes the model's own pretrained weights.
        image_size: side of the square input in pixels.
        num_classes: size of the fresh head.
        pretraining: gives public images (n, 1, 16, 16) uint8 and labels (n,); only digits-vit calls it,
            and only where its weights are not cached yet.

    Raises:
        BackboneError: for an unknown name, a model that is no VisionTransformer, an unusable input size, or
            weights that are missing, unreadable or of another architecture.
    """
    from models import digits_vit

    if num_classes < 1:
        raise BackboneError(f"a classifier needs at least one class, got {num_classes}")
    with torch.random.fork_rng(devices=[]):
        if name == digits_vit.NAME:
            vit = digits_vit.build(weights=weights, image_size=image_size, pretraining=pretraining)
            mean, std = digits_vit.MEAN, digits_vit.STD
        else:
            vit, mean, std = _build_timm(name, weights, image_size)
        vit.reset_classifier(num_classes)
    for parameter in vit.head.parameters():
        nn.init.zeros_(parameter)
    vit.requires_grad_(False).eval()
    channels = vit.patch_embed.proj.in_channels
    return Backbone(name, vit, fingerprint(vit), image_size, channels, mean, std)


def read_weights(path: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, without those of its classifier head.

    Raises:
        BackboneError: if the path is relative, no file is there or it is no safetensors file.
    """
    if not Path(path).is_absolute():
        raise BackboneError(f"the path of the weights must be absolute, got '{path}'")
    if not Path(path).is_file():
        raise BackboneError(f"there is no weights file at '{path}'")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"'{path}' is not a readable safetensors file: {error}") from error
    return {name: tensor for name, tensor in state.items() if name.split(".")[0] != HEAD_NAME}


def misfit(path: str, name: str, reason: str) -> BackboneError:
    """Return the error for weights of another architecture; ``reason`` is what torch or timm said."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    first = " ".join(lines[1:2] or lines)[:200]
    return BackboneError(f"the weights in '{path}' are not those of '{name}': {first}")


def _build_timm(
    name: str, weights: str, image_size: int
) -> tuple[VisionTransformer, tuple[float, ...], tuple[float, ...]]:
    """Return the model with its weights, and the mean and standard deviation per channel of its inputs."""
    reference = _reference(name)
    patch = reference.patch_embed.patch_size
    if image_size < 1 or any(image_size % side for side in patch):
        raise BackboneError(f"'{name}' needs an image size that is a multiple of {patch[0]} px, got {image_size} px")
    config: Any = reference.pretrained_cfg
    if weights:
        vit = _load_file(name, weights, image_size, reference)
    else:
        vit = _load_pretrained(name, image_size, config["num_classes"])
    return vit, tuple(config["mean"]), tuple(config["std"])


def _load_pretrained(name: str, image_size: int, num_classes: int) -> VisionTransformer:
    try:
        return _vit(timm.create_model(name, pretrained=True, num_classes=num_classes, img_size=image_size))
    except Exception as error:  # the hub's client raises from half a dozen unrelated hierarchies
        raise BackboneError(
            f"the pretrained weights of '{name}' could not be loaded ({type(error).__name__}); "
            "connect to the hub or set model.weights to the absolute path of a safetensors file"
        ) from error


def _load_file(name: str, weights: str, image_size: int, reference: VisionTransformer) -> VisionTransformer:
    """Load a file without its head, strictly; timm resamples ``pos_embed``, and no patch of another size."""
    state = read_weights(weights)
    expected, patches = reference.patch_embed.proj.weight, state.get("patch_embed.proj.weight")
    if patches is None or patches.shape != expected.shape:
        found = None if patches is None else tuple(patches.shape)
        raise misfit(weights, name, f"patch_embed.proj.weight is {found} and not {tuple(expected.shape)}")
    overlay = {"state_dict": state, "source": "", "custom_load": False, "num_classes": 0}
    try:
        vit: Any = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=image_size
        )
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise misfit(weights, name, str(error)) from error
    vit.pretrained_cfg.pop("state_dict", None)
    return _vit(vit)


def _reference(name: str) -> VisionTransformer:
    """Return the named model without weights (meta device), checked to be one that can be adapted."""
    if not timm.is_model(name):
        known = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise BackboneError(f"timm has no model named '{name}'{hint}")
    try:
        with torch.device("meta"):
            vit = _vit(timm.create_model(name, pretrained=False))
        for target in TARGET_MODULES:
            vit.blocks[0].get_submodule(target)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise BackboneError(f"'{name}' is not a plain timm VisionTransformer: {str(error).splitlines()[0]}") from error
    return vit


def _vit(module: nn.Module) -> VisionTransformer:
    """Return ``module`` if its forward pass is the one that this file takes apart, else raise TypeError."""
    own = ("forward", "forward_features", "forward_head")
    if not isinstance(module, VisionTransformer) or any(
        getattr(type(module), method) is not getattr(VisionTransformer, method) for method in own
    ):
        raise TypeError(f"expected a VisionTransformer, got {type(module).__name__}")
    return module


def _check_first_block(vit: VisionTransformer, first_block: int) -> None:
    if not 0 <= first_block <= len(vit.blocks):
        raise ValueError(f"first_block must be in [0, {len(vit.blocks)}], got {first_block}")


def _suffix_tokens(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    vit = _vit(module)
    _check_first_block(vit, first_block)
    for block in vit.blocks[first_block:]:
        tokens = block(tokens)
    return torch.as_tensor(vit.norm(tokens))

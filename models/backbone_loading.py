"""Building the frozen backbone: by name, with weights from timm, from a file, or pretrained on the spot."""

from __future__ import annotations

import difflib
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import digits_vit
from models.backbone import TARGET_MODULES, Backbone, BackboneError, as_vit, fingerprint
from models.weights_file import misfit, read_weights


def build_backbone(
    *, name: str, weights: str, image_size: int, num_classes: int, pretraining: digits_vit.Pretraining | None = None
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
        return as_vit(timm.create_model(name, pretrained=True, num_classes=num_classes, img_size=image_size))
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
    return as_vit(vit)


def _reference(name: str) -> VisionTransformer:
    """Return the named model without weights (meta device), checked to be one that can be adapted."""
    if not timm.is_model(name):
        known = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise BackboneError(f"timm has no model named '{name}'{hint}")
    try:
        with torch.device("meta"):
            vit = as_vit(timm.create_model(name, pretrained=False))
        for target in TARGET_MODULES:
            vit.blocks[0].get_submodule(target)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise BackboneError(f"'{name}' is not a plain timm VisionTransformer: {str(error).splitlines()[0]}") from error
    return vit

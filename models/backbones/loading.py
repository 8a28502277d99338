"""Building the frozen backbone: the family that knows the name builds it."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import cast

import torch

import models.backbones.families as found
from models.backbones.backbone import Backbone, BackboneError, Family, Pretraining, Request


@cache
def families() -> tuple[Family, ...]:
    """Return the ``FAMILY`` of every file of :mod:`models.backbones.families`, in the order of their names."""
    names = sorted(info.name for info in pkgutil.iter_modules(found.__path__))
    return tuple(cast(Family, import_module(f"{found.__name__}.{name}").FAMILY) for name in names)


def build_backbone(
    *,
    name: str,
    weights: str,
    image_size: int,
    num_classes: int,
    max_length: int = 128,
    class_names: Sequence[str] = (),
    prompt: str = "a photo of a {}.",
    pretraining: Pretraining | None = None,
    text_tower: bool = False,
    revision: str = "",
) -> Backbone:
    """Build the frozen backbone in evaluation mode with a fresh head.

    The head is of zeros, or made from ``class_names`` where the family does so. The caller's random state stays
    as it was.

    Args:
        name: ``digits-vit`` (embedded), a model of timm, or ``hf:`` and a hub name or absolute directory.
        weights: a safetensors file or, for ``hf:``, a directory; empty takes the model's own.
        image_size: side of square images in pixels.
        num_classes: outputs of the head.
        max_length: most tokens of a text.
        class_names: names of the classes, for a head that is made from them.
        prompt: text of a class for CLIP, with one ``{}`` for its name.
        pretraining: gives images and labels for the embedded model to be pretrained on.
        text_tower: whether the text tower of CLIP or SigLIP is adapted too.
        revision: commit of the weights' repository on the hub; empty takes the newest.

    Raises:
        BackboneError: for an unknown name, a model that cannot be adapted, an unusable input size, or weights that
            are missing, unreadable or of another architecture.
    """
    if num_classes < 1:
        raise BackboneError(f"a classifier needs at least one class, got {num_classes}")
    names = tuple(class_names)
    request = Request(
        name, weights, image_size, num_classes, max_length, names, prompt, pretraining, text_tower, revision
    )
    with torch.random.fork_rng(devices=[]):
        family = next((family for family in families() if family.claims(request)), None)
        if family is None:
            raise BackboneError(f"no family of backbones takes '{name}'; docs/backbones.md lists those that there are")
        backbone = family.build(request)
    if text_tower and not backbone.extra_stacks:
        raise BackboneError(f"model.text-tower is true, but '{name}' is neither CLIP nor SigLIP")
    return backbone

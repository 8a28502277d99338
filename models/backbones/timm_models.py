"""Models of timm by name, run in two parts, with timm's own weights or those of a safetensors file."""

from __future__ import annotations

import difflib
import logging
from functools import lru_cache
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from models.backbones import digits_vit
from models.backbones.backbone import Backbone, BackboneError, Request, checked_first_block, frozen, zero_head
from models.backbones.transforms import ImageTransform
from models.backbones.weights import fingerprint, misfit, read_weights

log = logging.getLogger(__name__)
HF_PREFIX = "hf:"


class TimmFamily:
    """Models of timm with ``blocks``, a last ``norm`` and a ``head``; a subclass says which, and how they embed."""

    def embed(self, model: Any, inputs: Tensor) -> Tensor:
        """Return tokens (n, t, d) before the first block for images (n, c, h, w)."""
        raise NotImplementedError

    def run_last(self, model: Any, tokens: Tensor, first_block: int) -> Tensor:
        """Return the tokens that the head reads after the blocks from ``first_block`` on."""
        for block in model.blocks[first_block:]:
            tokens = block(tokens)
        return tokens

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return tokens (n, t, d), prefix tokens (class, register) included, for images (n, c, h, w)."""
        model: Any = module
        last = checked_first_block(first_block, len(model.blocks))
        tokens = self.embed(model, inputs)
        for block in model.blocks[:last]:
            tokens = block(tokens)
        return torch.as_tensor(tokens)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes) for tokens (n, t, d)."""
        return torch.as_tensor(cast(Any, module).head(self.pooled_features(module, tokens, first_block)))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return pooled features (n, d) for tokens (n, t, d); the head pools as timm declares."""
        model: Any = module
        tokens = self.run_last(model, tokens, checked_first_block(first_block, len(model.blocks)))
        return torch.as_tensor(model.forward_head(model.norm(tokens), pre_logits=True))

    def backbone(
        self,
        request: Request,
        model: Any,
        transform: ImageTransform,
        *,
        target_modules: tuple[str, ...],
        num_tokens: int,
        num_heads: int,
    ) -> Backbone:
        """Return the backbone of ``model``, which is frozen and gets a head of zeros."""
        model.reset_classifier(request.num_classes)
        model.head = zero_head(int(model.num_features), request.num_classes)
        return Backbone(
            name=request.name,
            module=frozen(model),
            fingerprint=fingerprint(model),
            anatomy=self,
            transform=transform,
            blocks="blocks",
            target_modules=target_modules,
            head_name="head",
            embed_dim=model.embed_dim,
            num_tokens=num_tokens,
            num_heads=num_heads,
        )


def is_timm(name: str, kind: type[nn.Module]) -> bool:
    """Tell whether ``name`` is that of a timm model of class ``kind``; raises BackboneError where timm has none."""
    elsewhere = name == digits_vit.NAME or name.startswith(HF_PREFIX)
    return not elsewhere and isinstance(timm_reference(name), kind)


@lru_cache(maxsize=8)
def timm_reference(name: str) -> nn.Module:
    """Return the named model without weights (on the meta device).

    Raises:
        BackboneError: timm has none of that name, or it cannot be built without weights.
    """
    if not timm.is_model(name):
        known = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
        close = difflib.get_close_matches(name, known + timm.list_models(module="mlp_mixer"), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise BackboneError(f"timm has no model named '{name}'{hint} (a transformers model is named 'hf:...')")
    try:
        with torch.device("meta"):
            reference: nn.Module = timm.create_model(name, pretrained=False)
            return reference
    except (RuntimeError, NotImplementedError, TypeError, AttributeError) as error:
        raise BackboneError(f"'{name}' cannot be built: {str(error).splitlines()[0]}") from error


def load_timm(request: Request, embedding: str) -> nn.Module:
    """Return the model for square images of the size asked for with its pretrained weights or those of a file.

    Args:
        request: name, weights, image size and revision of the weights on the hub.
        embedding: path of the weight of the patch embedding, which is never resampled.

    Raises:
        BackboneError: the size is no multiple of the patch, or the weights cannot be had or do not fit.
    """
    name, weights, image_size = request.name, request.weights, request.image_size
    reference = timm_reference(name)
    patches = reference.get_parameter(embedding)
    side = patches.shape[-1]
    if image_size < 1 or image_size % side:
        raise BackboneError(f"'{name}' needs an image size that is a multiple of {side} px, got {image_size} px")
    if weights:
        return _load_file(name, weights, image_size, embedding, tuple(patches.shape))
    config: Any = reference.pretrained_cfg
    return _load_pretrained(request, config["num_classes"], str(config.get("hf_hub_id") or ""))


def timm_transform(name: str, image_size: int, channels: int) -> ImageTransform:
    """Return the input transform that timm declares for the model."""
    config: Any = timm_reference(name).pretrained_cfg
    return ImageTransform(name, image_size, channels, tuple(config["mean"]), tuple(config["std"]))


def _load_pretrained(request: Request, num_classes: int, hub_name: str) -> nn.Module:
    name, pinned = request.name, {"hf_hub_id": f"{hub_name}@{request.revision}"}
    overlay: dict[str, Any] = {"pretrained_cfg_overlay": pinned} if request.revision else {}
    if not request.revision:
        log.warning("the weights of '%s' are taken as they are on the hub today; model.revision names a commit", name)
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=True, num_classes=num_classes, img_size=request.image_size, **overlay
        )
    except Exception as error:  # the hub's client raises from half a dozen unrelated hierarchies
        raise BackboneError(
            f"the pretrained weights of '{name}' could not be loaded ({type(error).__name__}); "
            "connect to the hub or set model.weights to the absolute path of a safetensors file"
        ) from error
    return model


def _load_file(name: str, weights: str, image_size: int, embedding: str, expected: tuple[int, ...]) -> nn.Module:
    """Load a file without its head, strictly; timm resamples position embeddings, and no patch of another size."""
    state = read_weights(weights)
    found = tuple(state[embedding].shape) if embedding in state else None
    if found != expected:
        raise misfit(weights, name, f"{embedding} is {found} and not {expected}")
    overlay = {"state_dict": state, "source": "", "custom_load": False, "num_classes": 0}
    try:
        model: Any = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=image_size
        )
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise misfit(weights, name, str(error)) from error
    model.pretrained_cfg.pop("state_dict", None)
    return cast(nn.Module, model)

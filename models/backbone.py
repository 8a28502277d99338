"""The frozen backbone: a timm VisionTransformer, split into a cached prefix and an adapted suffix.

The free functions work on the bare module and on one whose blocks carry PEFT's LoRA layers and whose head
is wrapped by PEFT (``peft_model.base_model.model``): they call timm's own submodules in timm's order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import chain

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

TARGET_MODULES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
LAYERS_PATTERN = "blocks"
HEAD_NAME = "head"


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
        return len(as_vit(self.module).blocks)

    @property
    def embed_dim(self) -> int:
        """Return the width d of tokens and pooled features."""
        return int(as_vit(self.module).embed_dim)

    def matmul_work(self, batch_size: int) -> int:
        """Return the floating-point operations of the largest matrix product of a block (its MLP's) on a batch."""
        vit = as_vit(self.module)
        width = vit.get_parameter("blocks.0.mlp.fc1.weight").shape[0]
        return int(2 * batch_size * vit.patch_embed.num_patches * self.embed_dim * width)

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
    vit = as_vit(module)
    _check_first_block(vit, first_block)
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    for block in vit.blocks[:first_block]:
        tokens = block(tokens)
    return torch.as_tensor(tokens)


def forward_suffix(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    """Run tokens (n, t, d) through ``blocks[first_block:]``, the norm and the head: logits (n, classes)."""
    return torch.as_tensor(as_vit(module).forward_head(_suffix_tokens(module, tokens, first_block)))


def pooled_features(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    """Return what the head would receive for tokens (n, t, d): pooled features (n, d)."""
    last = _suffix_tokens(module, tokens, first_block)
    return torch.as_tensor(as_vit(module).forward_head(last, pre_logits=True))


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


def as_vit(module: nn.Module) -> VisionTransformer:
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
    vit = as_vit(module)
    _check_first_block(vit, first_block)
    for block in vit.blocks[first_block:]:
        tokens = block(tokens)
    return torch.as_tensor(vit.norm(tokens))

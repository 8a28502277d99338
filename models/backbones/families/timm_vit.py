"""timm's VisionTransformers by name, and the embedded ``digits-vit``.

Where the head reads the class token alone, the last block computes nothing else: keys and values are those of all
tokens; the query, the projection and the MLP are those of the class token. For two adapted blocks this is a third of
the local work; the logits are the same.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.backbones import digits_vit
from models.backbones.backbone import Backbone, BackboneError, Request
from models.backbones.timm_models import TimmFamily, is_timm, load_timm, timm_reference, timm_transform
from models.backbones.transforms import ImageTransform

TARGET_MODULES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class TimmViT(TimmFamily):
    """Plain VisionTransformers: calls timm's own submodules in timm's order."""

    def claims(self, request: Request) -> bool:
        """Claim ``digits-vit`` and every name whose model is a VisionTransformer."""
        return request.name == digits_vit.NAME or is_timm(request.name, VisionTransformer)

    def build(self, request: Request) -> Backbone:
        """Build a VisionTransformer; one with a forward pass of its own is refused."""
        name, size = request.name, request.image_size
        if name == digits_vit.NAME:
            vit = digits_vit.build(weights=request.weights, image_size=size, pretraining=request.pretraining)
            transform = ImageTransform(name, size, 1, digits_vit.MEAN, digits_vit.STD)
        else:
            _check_plain(name)
            vit = cast(VisionTransformer, load_timm(request, "patch_embed.proj.weight"))
            transform = timm_transform(name, size, vit.patch_embed.proj.in_channels)
        return self.backbone(
            request,
            vit,
            transform,
            target_modules=TARGET_MODULES,
            num_tokens=vit.patch_embed.num_patches,
            num_heads=cast(Attention, vit.blocks[0].get_submodule("attn")).num_heads,
        )

    def embed(self, model: VisionTransformer, inputs: Tensor) -> Tensor:
        """Return the patches with positions, prefix tokens (class, register) first."""
        return torch.as_tensor(model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(inputs)))))

    def run_last(self, model: VisionTransformer, tokens: Tensor, first_block: int) -> Tensor:
        """Return all tokens, or the class token alone where the head reads no other."""
        if first_block == len(model.blocks) or not _reads_class_token_only(model):
            return super().run_last(model, tokens, first_block)
        for block in model.blocks[first_block:-1]:
            tokens = block(tokens)
        return _class_token_after(model.blocks[-1], tokens)


FAMILY = TimmViT()


def _check_plain(name: str) -> None:
    """Raise BackboneError unless the model runs timm's own forward pass through blocks with the adapted layers."""
    vit = timm_reference(name)
    methods = ("forward", "forward_features", "forward_head")
    try:
        if any(getattr(type(vit), method) is not getattr(VisionTransformer, method) for method in methods):
            raise TypeError(f"expected a VisionTransformer, got {type(vit).__name__}")
        for target in TARGET_MODULES:
            cast(VisionTransformer, vit).blocks[0].get_submodule(target)
    except (TypeError, AttributeError) as error:
        raise BackboneError(f"'{name}' is not a plain timm VisionTransformer: {str(error).splitlines()[0]}") from error


def _reads_class_token_only(vit: VisionTransformer) -> bool:
    """Tell whether the head of ``vit`` reads the class token alone and its last block can be taken apart."""
    block = vit.blocks[-1]
    plain = type(block) is Block and type(block.attn) is Attention and block.attn.gate is None
    return bool(plain and vit.global_pool == "token" and vit.has_class_token and vit.attn_pool is None)


def _class_token_after(block: nn.Module, tokens: Tensor) -> Tensor:
    """Return the first token after ``block``, shape (n, 1, d), for tokens (n, t, d) before it."""
    attention, first = cast(Attention, block.get_submodule("attn")), tokens[:, :1]
    normed = block.get_submodule("norm1")(tokens)
    attended = block.get_submodule("ls1")(_attention_of_first(attention, normed))
    first = first + block.get_submodule("drop_path1")(attended)
    out = block.get_submodule("ls2")(block.get_submodule("mlp")(block.get_submodule("norm2")(first)))
    return torch.as_tensor(first + block.get_submodule("drop_path2")(out))


def _attention_of_first(attention: Attention, tokens: Tensor) -> Tensor:
    """Return the output of attention for the first token, shape (n, 1, d)."""
    count, length, _ = tokens.shape
    heads, width = attention.num_heads, attention.head_dim
    split = attention.qkv(tokens).reshape(count, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)
    query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, 1, heads * width)
    return torch.as_tensor(attention.proj(attention.norm(mixed)))

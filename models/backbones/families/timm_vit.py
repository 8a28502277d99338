"""timm's VisionTransformers by name, and the embedded ``digits-vit``.

The last block of a ViT whose head reads the class token alone: what no other token needs is not computed.

Keys and values are those of all tokens, the query, the projection and the MLP are those of the class token. For two
adapted blocks this is a third of the local work; the logits are the same.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.backbones import digits_vit
from models.backbones.backbone import (
    Backbone,
    BackboneError,
    Request,
    checked_first_block,
    fingerprint,
    frozen,
    zero_head,
)
from models.backbones.timm_models import is_timm, load_timm, timm_reference, timm_transform
from models.backbones.transforms import ImageTransform


def reads_class_token_only(vit: VisionTransformer) -> bool:
    """Tell whether the head of ``vit`` reads the class token alone and its last block can be taken apart."""
    block = vit.blocks[-1]
    plain = type(block) is Block and type(block.attn) is Attention and block.attn.gate is None
    return plain and vit.global_pool == "token" and vit.has_class_token and vit.attn_pool is None


def class_token_of(block: nn.Module, tokens: Tensor) -> Tensor:
    """Return the first token after ``block``, shape (n, 1, d), for tokens (n, t, d) before it."""
    attention, first = cast(Attention, block.get_submodule("attn")), tokens[:, :1]
    normed = block.get_submodule("norm1")(tokens)
    attended = block.get_submodule("ls1")(_attended(attention, normed))
    first = first + block.get_submodule("drop_path1")(attended)
    out = block.get_submodule("ls2")(block.get_submodule("mlp")(block.get_submodule("norm2")(first)))
    result: Tensor = first + block.get_submodule("drop_path2")(out)
    return result


def _attended(attention: Attention, tokens: Tensor) -> Tensor:
    """Return what attention puts out for the first token, shape (n, 1, d)."""
    count, length, _ = tokens.shape
    heads, width = attention.num_heads, attention.head_dim
    split = attention.qkv(tokens).reshape(count, length, 3, heads, width).permute(2, 0, 3, 1, 4)
    query, key, value = split.unbind(0)
    query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, 1, heads * width)
    result: Tensor = attention.proj(attention.norm(mixed))
    return result


TARGET_MODULES = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


class TimmViT:
    """Plain VisionTransformers: calls timm's own submodules in timm's order; the head pools as timm declares."""

    def claims(self, request: Request) -> bool:
        """Claim ``digits-vit`` and every name whose model is a VisionTransformer."""
        return request.name == digits_vit.NAME or is_timm(request.name, VisionTransformer)

    def build(self, request: Request) -> Backbone:
        """Build a VisionTransformer; one whose forward pass is another is refused."""
        if request.name == digits_vit.NAME:
            vit = digits_vit.build(
                weights=request.weights, image_size=request.image_size, pretraining=request.pretraining
            )
            transform = ImageTransform(request.name, request.image_size, 1, digits_vit.MEAN, digits_vit.STD)
        else:
            _check_plain(request.name)
            vit = as_vit(load_timm(request, "patch_embed.proj.weight"))
            transform = timm_transform(request.name, request.image_size, vit.patch_embed.proj.in_channels)
        vit.reset_classifier(request.num_classes)
        vit.head = zero_head(int(vit.num_features), request.num_classes)
        frozen(vit)
        return Backbone(
            name=request.name,
            module=vit,
            fingerprint=fingerprint(vit),
            anatomy=self,
            transform=transform,
            blocks="blocks",
            target_modules=TARGET_MODULES,
            head_name="head",
            embed_dim=vit.embed_dim,
            num_tokens=vit.patch_embed.num_patches,
        )

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return tokens (n, t, d), prefix tokens (class, register) included, for images (n, c, h, w)."""
        vit = as_vit(module)
        checked_first_block(first_block, len(vit.blocks))
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(inputs))))
        for block in vit.blocks[:first_block]:
            tokens = block(tokens)
        return torch.as_tensor(tokens)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes) for tokens (n, t, d)."""
        return torch.as_tensor(as_vit(module).forward_head(_last_tokens(module, tokens, first_block)))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return pooled features (n, d) for tokens (n, t, d)."""
        last = _last_tokens(module, tokens, first_block)
        return torch.as_tensor(as_vit(module).forward_head(last, pre_logits=True))


FAMILY = TimmViT()


def as_vit(module: nn.Module) -> VisionTransformer:
    """Return ``module`` if its forward pass is the one that this file takes apart, else raise TypeError."""
    own = ("forward", "forward_features", "forward_head")
    if not isinstance(module, VisionTransformer) or any(
        getattr(type(module), method) is not getattr(VisionTransformer, method) for method in own
    ):
        raise TypeError(f"expected a VisionTransformer, got {type(module).__name__}")
    return module


def _check_plain(name: str) -> None:
    try:
        vit = as_vit(timm_reference(name))
        for target in TARGET_MODULES:
            vit.blocks[0].get_submodule(target)
    except (TypeError, AttributeError) as error:
        raise BackboneError(f"'{name}' is not a plain timm VisionTransformer: {str(error).splitlines()[0]}") from error


def _last_tokens(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    vit = as_vit(module)
    checked_first_block(first_block, len(vit.blocks))
    short = first_block < len(vit.blocks) and reads_class_token_only(vit)
    for block in vit.blocks[first_block : -1 if short else None]:
        tokens = block(tokens)
    if short:
        tokens = class_token_of(vit.blocks[-1], tokens)
    return torch.as_tensor(vit.norm(tokens))

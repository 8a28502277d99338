"""The last block of a ViT whose head reads the class token alone: what no other token needs is not computed.

Keys and values are those of all tokens, the query, the projection and the MLP are those of the class token. For two
adapted blocks this is a third of the local work; the logits are the same.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


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

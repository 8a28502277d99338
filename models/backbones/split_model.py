"""Models of transformers under a linear head, run in two parts: the frozen prefix and the adapted suffix.

A family subclasses :class:`SplitModel` to say how the model's embedding, blocks and pooling are called. Between the
two parts, texts pack their attention mask as one more column of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.backbone import (
    Backbone,
    BackboneError,
    Request,
    Transform,
    block_list,
    checked_first_block,
    frozen,
    linear_kinds,
    zero_head,
)
from models.backbones.transformers_models import model_type
from models.backbones.transforms import TextTransform
from models.backbones.weights import fingerprint


class SplitModel(nn.Module):
    """The parts of a model. Hidden states are (n, s, d); the mask is (n, s) for texts and None for images.

    Attributes:
        blocks: path of the list of blocks in this module.
        classifier: the linear head.
    """

    blocks: str
    classifier: nn.Module

    def embed(self, inputs: Tensor) -> tuple[Tensor, Any]:
        """Return the hidden states before the first block, and the mask."""
        raise NotImplementedError

    def run(self, hidden: Tensor, mask: Any, first: int, last: int) -> Tensor:
        """Return the hidden states after the blocks from ``first`` to before ``last``."""
        for block in block_list(self, self.blocks)[first:last]:
            hidden = first_output(block(hidden))
        return hidden

    def pool(self, hidden: Tensor, mask: Any) -> Tensor:
        """Return the features (n, d) of the hidden states after the last block."""
        raise NotImplementedError

    def logits(self, hidden: Tensor, mask: Any) -> Tensor:
        """Return the logits (n, classes) of the hidden states after the last block."""
        return torch.as_tensor(self.classifier(self.pool(hidden, mask)))

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Return the hidden states and the mask of the tokens between the two parts."""
        return tokens, None

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of transformed inputs."""
        return SPLIT.forward_suffix(self, SPLIT.embed_prefix(self, inputs, 0), 0)


class EncoderModel(SplitModel):
    """One encoder of transformers, without its pooler."""

    encoder: Any

    def __init__(self, encoder: Any, num_classes: int) -> None:
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.encoder, self.classifier = encoder, zero_head(encoder.config.hidden_size, num_classes)
        self.blocks = f"encoder.{_list_of_blocks(encoder, encoder.config.num_hidden_layers)}"


class SplitAnatomy:
    """The :class:`~models.backbones.backbone.Anatomy` of every :class:`SplitModel`."""

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return tokens, (n, t, d) for images and (n, t, d + 1) for texts, whose last column is the mask."""
        model = cast(SplitModel, module)
        last = checked_first_block(first_block, len(block_list(model, model.blocks)))
        hidden, mask = model.embed(inputs)
        hidden = model.run(hidden, mask, 0, last)
        return hidden if mask is None else pack(hidden, mask)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes), of a language model (n, vocabulary, t)."""
        return cast(SplitModel, module).logits(*self._after_blocks(module, tokens, first_block))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return pooled features (n, d)."""
        return cast(SplitModel, module).pool(*self._after_blocks(module, tokens, first_block))

    def _after_blocks(self, module: nn.Module, tokens: Tensor, first_block: int) -> tuple[Tensor, Any]:
        model = cast(SplitModel, module)
        hidden, mask = model.unpack(tokens)
        count = len(block_list(model, model.blocks))
        return model.run(hidden, mask, checked_first_block(first_block, count), count), mask


SPLIT = SplitAnatomy()


@dataclass(frozen=True)
class TransformersFamily:
    """A :class:`~models.backbones.backbone.Family` of the models of some types, as transformers calls them."""

    model_types: tuple[str, ...]
    build: Callable[[Request], Backbone]

    def claims(self, request: Request) -> bool:
        """Tell whether the requested model is of one of the types."""
        return model_type(request) in self.model_types


def split_backbone(
    request: Request, module: SplitModel, transform: Transform, *, embed_dim: int, num_tokens: int, num_heads: int
) -> Backbone:
    """Return the backbone of ``module``, which is frozen; every linear layer of its blocks is adapted."""
    weights = fingerprint(frozen(module), "classifier")
    return Backbone(
        name=request.name,
        module=module,
        fingerprint=transform.fingerprint(weights) if isinstance(transform, TextTransform) else weights,
        anatomy=SPLIT,
        transform=transform,
        blocks=module.blocks,
        target_modules=linear_kinds(module, module.blocks),
        head_name="classifier",
        embed_dim=embed_dim,
        num_tokens=num_tokens,
        num_heads=num_heads,
    )


def first_output(output: Any) -> Tensor:
    """Return the hidden states of what a block of transformers returns."""
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)


def longest(mask: Tensor) -> int:
    """Return the tokens of the longest text under a mask (n, t); texts are padded on the right."""
    return int(mask.sum(dim=1).max())


def pack(hidden: Tensor, mask: Tensor) -> Tensor:
    """Put hidden states (n, s, d), s at most t, and their mask (n, t) into tokens (n, t, d + 1), padded with zeros."""
    padded = F.pad(hidden, (0, 0, 0, mask.shape[1] - hidden.shape[1]))
    return torch.cat([padded, mask[:, :, None].to(hidden.dtype)], dim=2)


def mean_of_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (n, d) of hidden states (n, s, d) over the tokens of each text, for a mask (n, s)."""
    return (hidden * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)


def _list_of_blocks(module: nn.Module, count: int) -> str:
    """Return the path of the first list of ``count`` blocks in ``module``; raises BackboneError where there is none."""
    for path, found in module.named_modules():
        if isinstance(found, nn.ModuleList) and len(found) == count:
            return str(path)
    raise BackboneError(f"a {type(module).__name__} has no list of {count} blocks")

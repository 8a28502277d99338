"""CLIP and SigLIP: the image tower, adapted, under a head made from the names of the classes.

A class reads as ``model.prompt`` says. The text tower runs once, when the head is made, and is then dropped. With
``model.text-tower`` it stays, its attention is adapted too, and it makes the weights of the head in every forward pass;
of the head itself the bias alone is left, which carries the class prior, and its weight stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from models.backbones.backbone import (
    Backbone,
    BackboneError,
    BlockStack,
    Request,
    block_list,
    frozen,
    linear_kinds,
    zero_head,
)
from models.backbones.split_model import SplitModel, TransformersFamily, first_output, split_backbone
from models.backbones.transformers_models import image_transform, load_encoder, load_tokenizer, num_patches

CLIP, SIGLIP = "clip", "siglip"
TEXT_BLOCKS = "text.model.encoder.layers"
ATTENTION, TEXT_PREFIX = "self_attn.", "text."


class PromptTower(nn.Module):
    """Text tower, projection and logit scale of ``model`` with the prompts of the classes of ``request``."""

    def __init__(self, model: Any, request: Request) -> None:
        super().__init__()
        self.model, self.logit_scale = model.text_model, model.logit_scale
        self.projection = getattr(model, "text_projection", nn.Identity())
        prompts = [request.prompt.format(name.replace("_", " ")) for name in request.class_names]
        self._prompts = _encoded(prompts, model.config, request)

    def forward(self) -> Tensor:
        """Return logit scale times the unit features of the classes' prompts, (classes, d)."""
        device = self.logit_scale.device
        output = self.model(**{name: ids.to(device) for name, ids in self._prompts.items()})
        return torch.as_tensor(self.logit_scale.exp() * F.normalize(self.projection(output.pooler_output), dim=1))


def _encoded(texts: Sequence[str], config: Any, request: Request) -> dict[str, Tensor]:
    """Tokenize texts. CLIP's text tower masks padding; SigLIP's was trained to see it."""
    length = config.text_config.max_position_embeddings
    encoded = load_tokenizer(request)(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    names = ("input_ids", "attention_mask") if config.model_type == CLIP else ("input_ids",)
    return {name: torch.as_tensor(encoded[name]) for name in names}


@torch.no_grad()
def read_texts(request: Request, texts: Sequence[str]) -> Tensor:
    """Return what the text tower, loaded for this, makes of texts: (n, d), beside the image features."""
    model: Any = frozen(load_encoder(AutoModel, request))
    output = model.text_model(**_encoded(texts, model.config, request))
    return torch.as_tensor(getattr(model, "text_projection", nn.Identity())(output.pooler_output))


class ImageTower(SplitModel):
    """The vision tower with its projection (CLIP) or pooling head (SigLIP), and a linear head on unit features."""

    blocks = "vision.encoder.layers"
    vision: Any

    def __init__(self, vision: Any, projection: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.vision, self.projection, self.classifier = vision, projection, head

    def embed(self, inputs: Tensor) -> tuple[Tensor, None]:
        """Return tokens for images (n, 3, h, w); positions are interpolated to their size."""
        tokens = self.vision.embeddings(inputs, interpolate_pos_encoding=True)
        return self.vision.pre_layrnorm(tokens) if hasattr(self.vision, "pre_layrnorm") else tokens, None

    def run(self, hidden: Tensor, mask: None, first: int, last: int) -> Tensor:
        """Run the blocks, whose mask is a required argument."""
        for block in block_list(self, self.blocks)[first:last]:
            hidden = first_output(block(hidden, None))
        return hidden

    def pool(self, hidden: Tensor, mask: None) -> Tensor:
        """Return unit image features."""
        if hasattr(self.vision, "head"):
            pooled = self.vision.head(self.vision.post_layernorm(hidden))
        else:
            pooled = self.vision.post_layernorm(hidden[:, 0])
        return torch.as_tensor(F.normalize(self.projection(pooled), dim=1))


class TwoTowers(ImageTower):
    """The image tower under a head that the text tower makes from the names of the classes."""

    def __init__(self, vision: Any, projection: nn.Module, head: nn.Linear, text: PromptTower) -> None:
        super().__init__(vision, projection, head)
        self.text = text

    def logits(self, hidden: Tensor, mask: None) -> Tensor:
        """Return scaled cosines with the classes, plus the head's bias."""
        features = self.pool(hidden, mask)
        return torch.as_tensor(features @ self.text().mT + self.classifier(torch.zeros_like(features)))


def build(request: Request) -> Backbone:
    """Build the image tower and its head; without class names the head is of zeros.

    Raises:
        BackboneError: the image size does not fit, or the text tower is to make the head of unnamed classes.
    """
    model: Any = frozen(load_encoder(AutoModel, request))
    config = model.config.vision_config
    tokens = num_patches(request, config)
    projection = getattr(model, "visual_projection", nn.Identity())
    width = projection.out_features if isinstance(projection, nn.Linear) else config.hidden_size
    module = _tower(model, projection, zero_head(width, request.num_classes), request)
    backbone = split_backbone(
        request,
        module,
        image_transform(request),
        embed_dim=width,
        num_tokens=tokens,
        num_heads=config.num_attention_heads,
    )
    backbone = replace(backbone, read_texts=partial(read_texts, request))
    if not request.text_tower:
        return backbone
    attention = tuple(kind for kind in linear_kinds(module, TEXT_BLOCKS) if kind.startswith(ATTENTION))
    return replace(backbone, extra_stacks=(BlockStack(TEXT_BLOCKS, attention, TEXT_PREFIX),))


FAMILY = TransformersFamily((CLIP, SIGLIP), build)


def _tower(model: Any, projection: nn.Module, head: nn.Linear, request: Request) -> ImageTower:
    if not request.class_names:
        if request.text_tower:
            raise BackboneError(f"the text tower of '{request.name}' needs the names of the classes to make a head")
        return ImageTower(model.vision_model, projection, head)
    text = PromptTower(model, request)
    if request.text_tower:
        return TwoTowers(model.vision_model, projection, head, text)
    with torch.no_grad():
        head.weight.copy_(text())
    return ImageTower(model.vision_model, projection, head)

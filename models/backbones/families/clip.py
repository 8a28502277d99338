"""CLIP and SigLIP: the image tower, adapted, under a head made from the names of the classes.

A class reads as ``model.prompt`` says. The text tower runs once, when the head is made, and is then dropped. With
``model.text-tower`` it stays, its attention is adapted too, and it makes the weights of the head in every forward pass;
of the head itself the bias alone is left, which carries the class prior, and its weight stays zero.

The text tower of CLIP and SigLIP over the names of the classes: the weights of a linear head on image features.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from models.backbones.backbone import (
    Backbone,
    BackboneError,
    Request,
    Stack,
    block_list,
    checked_first_block,
    fingerprint,
    frozen,
    linear_kinds,
    zero_head,
)
from models.backbones.transformers_models import image_transform, load_encoder, load_tokenizer, model_type

MASKED = ("clip",)
"""Model types whose text tower is told which tokens are padding; SigLIP's was trained to see them."""


class PromptTower(nn.Module):
    """Text tower, projection and logit scale of ``model`` with the prompts of the classes of ``request``."""

    def __init__(self, model: Any, request: Request) -> None:
        super().__init__()
        self.model, self.logit_scale = model.text_model, model.logit_scale
        self.projection = getattr(model, "text_projection", nn.Identity())
        self._prompts = _encoded(model.config, request)

    def forward(self) -> Tensor:
        """Return logit scale times the unit features of the classes' prompts, (classes, d)."""
        device = self.logit_scale.device
        output = self.model(**{name: one.to(device) for name, one in self._prompts.items()})
        return torch.as_tensor(self.logit_scale.exp() * F.normalize(self.projection(output.pooler_output), dim=1))


def _encoded(config: Any, request: Request) -> dict[str, Tensor]:
    prompts = [request.prompt.format(name.replace("_", " ")) for name in request.class_names]
    length = config.text_config.max_position_embeddings
    encoded = load_tokenizer(request)(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    wanted = ("input_ids", "attention_mask") if config.model_type in MASKED else ("input_ids",)
    return {name: torch.as_tensor(encoded[name]) for name in wanted}


CLIP, SIGLIP = "clip", "siglip"
BLOCKS, TEXT_BLOCKS = "vision.encoder.layers", "text.model.encoder.layers"
ATTENTION, TEXT_PREFIX = "self_attn.", "text."
HALF = (0.5, 0.5, 0.5)


class ImageTower(nn.Module):
    """The vision tower with its projection (CLIP) or pooling head (SigLIP), and a linear head on unit features."""

    def __init__(self, vision: nn.Module, projection: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.vision, self.projection, self.classifier = vision, projection, head

    def classify(self, features: Tensor) -> Tensor:
        """Map unit image features (n, d) to logits (n, classes)."""
        return torch.as_tensor(self.classifier(features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (n, 3, h, w) to logits (n, classes)."""
        return FAMILY.forward_suffix(self, FAMILY.embed_prefix(self, inputs, 0), 0)


class TwoTowers(ImageTower):
    """The image tower under a head that the text tower makes from the names of the classes."""

    def __init__(self, vision: nn.Module, projection: nn.Module, head: nn.Linear, text: PromptTower) -> None:
        super().__init__(vision, projection, head)
        self.text = text

    def classify(self, features: Tensor) -> Tensor:
        """Map unit image features (n, d) to scaled cosines with the classes, plus the head's bias."""
        return torch.as_tensor(features @ self.text().mT) + super().classify(torch.zeros_like(features))


class Clip:
    """Features have norm 1; the fresh head is logit scale times the unit features of the class names."""

    def claims(self, request: Request) -> bool:
        """Claim CLIP and SigLIP."""
        return model_type(request) in (CLIP, SIGLIP)

    def build(self, request: Request) -> Backbone:
        """Build the image tower and its head; without class names the head is of zeros.

        Raises:
            BackboneError: the image size does not fit, or the text tower is to make the head of unnamed classes.
        """
        model: Any = frozen(load_encoder(AutoModel, request))
        config = model.config.vision_config
        if request.image_size % config.patch_size:
            raise BackboneError(
                f"'{request.name}' needs an image size that is a multiple of {config.patch_size} px, "
                f"got {request.image_size} px"
            )
        projection = getattr(model, "visual_projection", nn.Identity())
        width = projection.out_features if isinstance(projection, nn.Linear) else config.hidden_size
        module = frozen(_tower(model, projection, width, request))
        return Backbone(
            name=request.name,
            module=module,
            fingerprint=fingerprint(module, "classifier"),
            anatomy=self,
            transform=image_transform(request, HALF),
            blocks=BLOCKS,
            target_modules=linear_kinds(module, BLOCKS),
            head_name="classifier",
            embed_dim=width,
            num_tokens=(request.image_size // config.patch_size) ** 2,
            beside=(_text_stack(module),) if request.text_tower else (),
        )

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return tokens (n, t, d) for images (n, 3, h, w)."""
        vision, blocks = cast(Any, module).vision, block_list(module, BLOCKS)
        tokens = vision.embeddings(inputs, interpolate_pos_encoding=True)
        tokens = vision.pre_layrnorm(tokens) if hasattr(vision, "pre_layrnorm") else tokens
        for block in blocks[: checked_first_block(first_block, len(blocks))]:
            tokens = _first(block(tokens, None))
        return torch.as_tensor(tokens)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes) for tokens (n, t, d)."""
        return torch.as_tensor(cast(Any, module).classify(self.pooled_features(module, tokens, first_block)))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return unit image features (n, d) for tokens (n, t, d')."""
        tower, blocks = cast(Any, module), block_list(module, BLOCKS)
        for block in blocks[checked_first_block(first_block, len(blocks)) :]:
            tokens = _first(block(tokens, None))
        if hasattr(tower.vision, "head"):
            pooled = tower.vision.head(tower.vision.post_layernorm(tokens))
        else:
            pooled = tower.vision.post_layernorm(tokens[:, 0])
        return F.normalize(tower.projection(pooled), dim=1)


FAMILY = Clip()


def _tower(model: Any, projection: nn.Module, width: int, request: Request) -> ImageTower:
    head = zero_head(width, request.num_classes)
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


def _text_stack(module: nn.Module) -> Stack:
    attention = tuple(kind for kind in linear_kinds(module, TEXT_BLOCKS) if kind.startswith(ATTENTION))
    return Stack(TEXT_BLOCKS, attention, TEXT_PREFIX)


def _first(output: Any) -> Tensor:
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)

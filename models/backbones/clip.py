"""CLIP and SigLIP: the image tower, adapted, under a head made from the names of the classes.

The text tower runs once, when the head is made (a class reads as ``model.prompt`` says), and is then dropped.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel

from models.backbone import (
    Backbone,
    BackboneError,
    Request,
    block_list,
    checked_first_block,
    fingerprint,
    frozen,
    zero_head,
)
from models.block_kinds import linear_kinds
from models.transformers_models import image_transform, load_encoder, load_tokenizer, model_type

CLIP, SIGLIP = "clip", "siglip"
BLOCKS = "vision.encoder.layers"
HALF = (0.5, 0.5, 0.5)


class ImageTower(nn.Module):
    """The vision tower with its projection (CLIP) or pooling head (SigLIP), and a linear head on unit features."""

    def __init__(self, vision: nn.Module, projection: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.vision, self.projection, self.classifier = vision, projection, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (n, 3, h, w) to logits (n, classes)."""
        return FAMILY.forward_suffix(self, FAMILY.embed_prefix(self, inputs, 0), 0)


class Clip:
    """Features have norm 1; the fresh head is logit scale times the unit features of the class names."""

    def claims(self, request: Request) -> bool:
        """Claim CLIP and SigLIP."""
        return model_type(request) in (CLIP, SIGLIP)

    def build(self, request: Request) -> Backbone:
        """Build the image tower and its head; without class names the head is of zeros."""
        model: Any = frozen(load_encoder(AutoModel, request))
        config = model.config.vision_config
        if request.image_size % config.patch_size:
            raise BackboneError(
                f"'{request.name}' needs an image size that is a multiple of {config.patch_size} px, "
                f"got {request.image_size} px"
            )
        projection = getattr(model, "visual_projection", nn.Identity())
        width = projection.out_features if isinstance(projection, nn.Linear) else config.hidden_size
        head = _prompt_head(model, request) if request.class_names else zero_head(width, request.num_classes)
        module = frozen(ImageTower(model.vision_model, projection, head))
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
        return torch.as_tensor(cast(Any, module).classifier(self.pooled_features(module, tokens, first_block)))

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


@torch.no_grad()
def _prompt_head(model: Any, request: Request) -> nn.Linear:
    """Return logit scale times the unit text features of the class names, as a linear head without bias."""
    prompts = [request.prompt.format(name.replace("_", " ")) for name in request.class_names]
    length = model.config.text_config.max_position_embeddings
    encoded = load_tokenizer(request)(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    masked = {"attention_mask": encoded["attention_mask"]} if model.config.model_type == CLIP else {}
    output = model.get_text_features(input_ids=encoded["input_ids"], **masked)
    features = F.normalize(getattr(output, "pooler_output", output), dim=1)
    head = zero_head(features.shape[1], len(prompts))
    head.weight.copy_(model.logit_scale.exp() * features)
    return head


def _first(output: Any) -> Tensor:
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)

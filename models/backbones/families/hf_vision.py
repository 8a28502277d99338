"""Image classifiers on transformers' vision encoders: ViT, DeiT and DINOv2, pooled at the class token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from models.backbones.backbone import Backbone, Request
from models.backbones.split_model import EncoderModel, TransformersFamily, split_backbone
from models.backbones.transformers_models import image_transform, load_encoder, num_patches


class ImageClassifier(EncoderModel):
    """A vision encoder, its class token after the last norm, and a linear head."""

    def embed(self, inputs: Tensor) -> tuple[Tensor, None]:
        """Return tokens, class token first, for images (n, 3, h, w); positions are interpolated to their size."""
        extra = {} if self.encoder.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
        return self.encoder.embeddings(inputs, **extra), None

    def pool(self, hidden: Tensor, mask: None) -> Tensor:
        """Return the class token after the last norm."""
        return torch.as_tensor(self.encoder.layernorm(hidden)[:, 0])


def build(request: Request) -> Backbone:
    """Build the encoder; raises BackboneError where the image size does not fit its patches."""
    encoder: Any = load_encoder(AutoModel, request)
    return split_backbone(
        request,
        ImageClassifier(encoder, request.num_classes),
        image_transform(request),
        embed_dim=encoder.config.hidden_size,
        num_tokens=num_patches(request, encoder.config),
        num_heads=encoder.config.num_attention_heads,
    )


FAMILY = TransformersFamily(("vit", "deit", "dinov2", "dinov2_with_registers"), build)

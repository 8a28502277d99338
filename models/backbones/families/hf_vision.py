"""Image classifiers on transformers' vision encoders: ViT, DeiT and DINOv2, pooled at the class token."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel

from models.backbones.backbone import (
    Backbone,
    BackboneError,
    Request,
    block_list,
    checked_first_block,
    fingerprint,
    frozen,
    linear_kinds,
    list_of_blocks,
    zero_head,
)
from models.backbones.transformers_models import image_transform, load_encoder, model_type

KINDS = ("vit", "deit", "dinov2", "dinov2_with_registers")
HALF = (0.5, 0.5, 0.5)


class ImageClassifier(nn.Module):
    """A vision encoder, its class token after the last norm, and a linear head."""

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, head
        self.blocks = list_of_blocks(encoder, encoder.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map images (n, 3, h, w) to logits (n, classes)."""
        return FAMILY.forward_suffix(self, FAMILY.embed_prefix(self, inputs, 0), 0)


class HfVision:
    """Plain vision transformers; position embeddings are interpolated to the size of the images."""

    def claims(self, request: Request) -> bool:
        """Claim the encoders named above."""
        return model_type(request) in KINDS

    def build(self, request: Request) -> Backbone:
        """Build the encoder without its pooler; every linear layer of its blocks is adapted."""
        encoder: Any = load_encoder(AutoModel, request)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        patch = int(encoder.config.patch_size)
        if request.image_size % patch:
            raise BackboneError(
                f"'{request.name}' needs an image size that is a multiple of {patch} px, got {request.image_size} px"
            )
        width = int(encoder.config.hidden_size)
        module = ImageClassifier(encoder, zero_head(width, request.num_classes))
        frozen(module)
        return Backbone(
            name=request.name,
            module=module,
            fingerprint=fingerprint(module, "classifier"),
            anatomy=self,
            transform=image_transform(request, HALF),
            blocks=f"encoder.{module.blocks}",
            target_modules=linear_kinds(encoder, module.blocks),
            head_name="classifier",
            embed_dim=width,
            num_tokens=(request.image_size // patch) ** 2,
        )

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return tokens (n, t, d), class token first, for images (n, 3, h, w)."""
        encoder, blocks = cast(Any, module).encoder, _blocks(module)
        extra = {} if encoder.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
        tokens = encoder.embeddings(inputs, **extra)
        for block in blocks[: checked_first_block(first_block, len(blocks))]:
            tokens = _first(block(tokens))
        return torch.as_tensor(tokens)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes) for tokens (n, t, d)."""
        return torch.as_tensor(cast(Any, module).classifier(self.pooled_features(module, tokens, first_block)))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return the class token (n, d) after the last block and norm."""
        blocks = _blocks(module)
        for block in blocks[checked_first_block(first_block, len(blocks)) :]:
            tokens = _first(block(tokens))
        return torch.as_tensor(cast(Any, module).encoder.layernorm(tokens)[:, 0])


FAMILY = HfVision()


def _blocks(module: nn.Module) -> nn.ModuleList | nn.Sequential:
    owner = cast(Any, module)
    return block_list(owner.encoder, owner.blocks)


def _first(output: Any) -> Tensor:
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)

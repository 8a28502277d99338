"""timm's MLP-Mixers by name (Mixer, gMixer, ResMLP, gMLP): blocks over a fixed number of tokens, mean pooling."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor

from models.backbones.backbone import Backbone, Request, linear_kinds
from models.backbones.timm_models import TimmFamily, is_timm, load_timm, timm_transform


class TimmMixer(TimmFamily):
    """Mixers mix tokens by linear layers over their positions, so weights fit one image size only."""

    def claims(self, request: Request) -> bool:
        """Claim every name whose model is an MlpMixer."""
        return is_timm(request.name, MlpMixer)

    def build(self, request: Request) -> Backbone:
        """Build a mixer; every linear layer of its blocks is adapted."""
        mixer: Any = load_timm(request, "stem.proj.weight")
        return self.backbone(
            request,
            mixer,
            timm_transform(request.name, request.image_size, mixer.stem.proj.in_channels),
            target_modules=linear_kinds(mixer, "blocks"),
            num_tokens=mixer.stem.num_patches,
            num_heads=1,
        )

    def embed(self, model: MlpMixer, inputs: Tensor) -> Tensor:
        """Return the patches."""
        return torch.as_tensor(model.stem(inputs))


FAMILY = TimmMixer()

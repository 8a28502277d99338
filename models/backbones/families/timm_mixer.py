"""timm's MLP-Mixers by name (Mixer, gMixer, ResMLP, gMLP): blocks over a fixed number of tokens, mean pooling."""

from __future__ import annotations

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from models.backbones.backbone import (
    Backbone,
    Request,
    checked_first_block,
    fingerprint,
    frozen,
    linear_kinds,
    zero_head,
)
from models.backbones.timm_models import is_timm, load_timm, timm_transform


class TimmMixer:
    """Mixers mix tokens by linear layers over their positions, so weights fit one image size only."""

    def claims(self, request: Request) -> bool:
        """Claim every name whose model is an MlpMixer."""
        return is_timm(request.name, MlpMixer)

    def build(self, request: Request) -> Backbone:
        """Build a mixer; every linear layer of its blocks is adapted."""
        mixer = _as_mixer(load_timm(request, "stem.proj.weight"))
        mixer.reset_classifier(request.num_classes)
        mixer.head = zero_head(mixer.embed_dim, request.num_classes)
        frozen(mixer)
        return Backbone(
            name=request.name,
            module=mixer,
            fingerprint=fingerprint(mixer),
            anatomy=self,
            transform=timm_transform(request.name, request.image_size, mixer.stem.proj.in_channels),
            blocks="blocks",
            target_modules=linear_kinds(mixer, "blocks"),
            head_name="head",
            embed_dim=mixer.embed_dim,
            num_tokens=mixer.stem.num_patches,
        )

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return tokens (n, t, d) for images (n, c, h, w)."""
        mixer = _as_mixer(module)
        checked_first_block(first_block, len(mixer.blocks))
        tokens = mixer.stem(inputs)
        for block in mixer.blocks[:first_block]:
            tokens = block(tokens)
        return torch.as_tensor(tokens)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes) for tokens (n, t, d)."""
        return torch.as_tensor(_as_mixer(module).head(self.pooled_features(module, tokens, first_block)))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return pooled features (n, d) for tokens (n, t, d)."""
        mixer = _as_mixer(module)
        checked_first_block(first_block, len(mixer.blocks))
        for block in mixer.blocks[first_block:]:
            tokens = block(tokens)
        return torch.as_tensor(mixer.forward_head(mixer.norm(tokens), pre_logits=True))


FAMILY = TimmMixer()


def _as_mixer(module: nn.Module) -> MlpMixer:
    if not isinstance(module, MlpMixer):
        raise TypeError(f"expected an MlpMixer, got {type(module).__name__}")
    return module

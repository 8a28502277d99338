"""MLP-Mixers of timm: two parts make the whole, token-mixing layers are adapted too, sizes are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.mlp_mixer import MlpMixer

from models.adapters.adapted_model import AdaptedModel
from models.backbones.backbone import BackboneError
from models.backbones.families.timm_mixer import FAMILY
from models.backbones.loading import build_backbone


def test_a_mixer_of_timm_is_taken_apart_and_adapted() -> None:
    torch.manual_seed(0)
    mixer = MlpMixer(num_classes=5, img_size=16, patch_size=8, num_blocks=3, embed_dim=12).eval()
    images = torch.randn(7, 3, 16, 16)
    for first_block in range(4):
        tokens = FAMILY.embed_prefix(mixer, images, first_block)
        torch.testing.assert_close(FAMILY.forward_suffix(mixer, tokens, first_block), mixer(images))
        torch.testing.assert_close(mixer.head(FAMILY.pooled_features(mixer, tokens, first_block)), mixer(images))
    with pytest.raises(ValueError, match=r"first_block must be in \[0, 3\], got 4"):
        FAMILY.embed_prefix(mixer, images, 4)


def test_a_mixer_by_name_and_file(tmp_path: Path) -> None:
    path = str(tmp_path / "mixer.safetensors")
    save_file(timm.create_model("mixer_s32_224").state_dict(), path)
    backbone = build_backbone(name="mixer_s32_224", weights=path, image_size=224, num_classes=3)
    assert set(backbone.target_modules) == {
        "mlp_tokens.fc1", "mlp_tokens.fc2", "mlp_channels.fc1", "mlp_channels.fc2"
    }  # fmt: skip
    model = AdaptedModel(backbone, rank=2, alpha=2.0, last_blocks=1)
    tokens = model.embed(backbone.prepare(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)))
    assert model.logits(tokens).shape == (1, 3)
    with pytest.raises(BackboneError, match="are not those of 'mixer_s32_224'"):
        build_backbone(name="mixer_s32_224", weights=path, image_size=128, num_classes=3)

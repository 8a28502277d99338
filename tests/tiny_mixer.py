"""An MLP-Mixer of a few hundred weights under a name that timm knows."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer

__all__ = ["tiny_mixer"]

HALF = (0.5, 0.5, 0.5)
default_cfgs = generate_default_cfgs(
    {"tiny_mixer.untrained": {"mean": HALF, "std": HALF, "num_classes": 4, "first_conv": "stem.proj"}}
)


@register_model
def tiny_mixer(pretrained: bool = False, **options: Any) -> MlpMixer:
    sizes = {"img_size": 24, "patch_size": 8, "num_blocks": 3, "embed_dim": 12}
    return build_model_with_cfg(MlpMixer, "tiny_mixer", pretrained, **{**sizes, **options})

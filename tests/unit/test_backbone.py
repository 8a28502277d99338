"""The backbone: prefix and suffix make the whole, its hash knows every weight, wrong weights are told."""

from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from models.backbones import timm_models
from models.backbones.backbone import BackboneError
from models.backbones.families.timm_vit import FAMILY
from models.backbones.loading import build_backbone
from models.backbones.transforms import ImageTransform
from models.backbones.weights import fingerprint

NAME = "test_vit_r160" if timm.is_model("test_vit_r160") else "test_vit"
SIZE = 160
DEPTH = 3
KINDS: dict[str, dict[str, Any]] = {
    "class token": {"class_token": True, "global_pool": "token"},
    "class token, scaled": {"global_pool": "token", "init_values": 0.3, "qk_norm": True, "scale_attn_norm": True},
    "average": {"class_token": False, "global_pool": "avg"},
    "average over patches": {"class_token": True, "global_pool": "avg"},
    "registers": {"class_token": True, "reg_tokens": 2, "no_embed_class": True, "pre_norm": True},
    "attention pooling": {"class_token": False, "global_pool": "map"},
}


def small_vit(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=4, in_chans=2, num_classes=5, embed_dim=12, depth=DEPTH, num_heads=3, **options
    ).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(7, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model(NAME, img_size=SIZE).state_dict(), path)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_block", range(DEPTH + 1))
def test_prefix_and_suffix_make_the_whole(kind: str, first_block: int, images: Tensor) -> None:
    vit = small_vit(**KINDS[kind])
    tokens = FAMILY.embed_prefix(vit, images, first_block)
    assert tokens.shape[0] == 7
    assert tokens.shape[2] == 12
    torch.testing.assert_close(FAMILY.forward_suffix(vit, tokens, first_block), vit(images))
    features = FAMILY.pooled_features(vit, tokens, first_block)
    assert features.shape == (7, 12)
    torch.testing.assert_close(vit.head(features), vit(images))


def test_it_holds_with_lora_and_a_wrapped_head(images: Tensor) -> None:
    config = peft.LoraConfig(
        r=2, target_modules=["attn.qkv", "mlp.fc2"], modules_to_save=["head"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(small_vit(), config).eval()
    inner = adapted.base_model.model
    for first_block in (0, 2):
        tokens = FAMILY.embed_prefix(inner, images, first_block)
        torch.testing.assert_close(FAMILY.forward_suffix(inner, tokens, first_block), adapted(images))


@pytest.mark.parametrize("first_block", [-1, DEPTH + 1])
def test_a_block_that_does_not_exist_is_told(first_block: int, images: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"first_block must be in \[0, 3\], got {first_block}"):
        FAMILY.embed_prefix(small_vit(), images, first_block)


def test_the_fingerprint_is_blind_to_the_head_and_to_nothing_else() -> None:
    vit = small_vit()
    before = fingerprint(vit)
    vit.reset_classifier(9)
    assert fingerprint(vit) == before
    with torch.no_grad():
        vit.blocks[1].mlp.fc2.bias[3] += 1e-6
    assert fingerprint(vit) != before


def test_a_file_gives_a_frozen_backbone_with_a_zero_head(weights: str) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    backbone = build_backbone(name=NAME, weights=weights, image_size=SIZE, num_classes=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert not backbone.module.training
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    loaded, stored = backbone.module.state_dict(), load_file(weights)
    assert all(torch.equal(loaded[name], stored[name]) for name in stored if not name.startswith("head."))
    assert loaded["head.weight"].shape == (7, backbone.embed_dim)
    assert not loaded["head.weight"].any()
    assert not loaded["head.bias"].any()
    assert backbone.transform == ImageTransform(NAME, SIZE, 3, (0.5,) * 3, (0.5,) * 3)
    assert backbone.num_blocks == len(backbone.module.blocks)  # type: ignore[arg-type]
    assert backbone.num_heads == backbone.module.get_submodule("blocks.0.attn").num_heads
    other = build_backbone(name=NAME, weights=weights, image_size=SIZE, num_classes=3)
    assert other.fingerprint == backbone.fingerprint


def test_another_input_size_resamples_the_position_embedding(weights: str) -> None:
    backbone = build_backbone(name=NAME, weights=weights, image_size=64, num_classes=7)
    images = backbone.prepare(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert backbone.module(images).shape == (2, 7)


def test_prepare_normalises_and_refuses_what_does_not_fit(weights: str) -> None:
    backbone = build_backbone(name=NAME, weights=weights, image_size=64, num_classes=7)
    black = backbone.prepare(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    torch.testing.assert_close(black[1, :, 5, 9], torch.full((3,), -1.0))
    for wrong in (
        torch.zeros(2, 2, 64, 64).byte(),
        ["a text"],
        torch.zeros(2, 3, 32, 32).byte(),
        torch.zeros(2, 3, 64, 64),
    ):
        with pytest.raises(
            BackboneError, match=r"takes uint8 images of shape \(n, 3, 64, 64\), got torch|the data are texts"
        ):
            backbone.prepare(wrong)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("deit_tinny_patch16_224", "no model named 'deit_tinny_patch16_224'; did you mean 'deit_tiny_patch16_224'"),
        ("resnet18", "no family of backbones takes 'resnet18'"),
        ("deit_tiny_distilled_patch16_224", "not a plain timm VisionTransformer: .* got VisionTransformerDist"),
    ],
)
def test_models_that_cannot_be_adapted_are_told(name: str, sentence: str, weights: str) -> None:
    with pytest.raises(BackboneError, match=sentence):
        build_backbone(name=name, weights=weights, image_size=224, num_classes=7)


def test_unusable_sizes_are_told(weights: str) -> None:
    with pytest.raises(BackboneError, match="multiple of 16 px, got 70 px"):
        build_backbone(name=NAME, weights=weights, image_size=70, num_classes=7)
    with pytest.raises(BackboneError, match="at least one class, got 0"):
        build_backbone(name=NAME, weights=weights, image_size=SIZE, num_classes=0)


def test_paths_that_hold_no_weights_are_told(tmp_path: Path) -> None:
    text = tmp_path / "notes.safetensors"
    text.write_text("not a safetensors file at all")
    cases = {
        "weights.safetensors": "must be absolute, got 'weights.safetensors'",
        str(tmp_path / "none"): "no weights file at",
        str(text): "not a readable safetensors file",
    }
    for path, sentence in cases.items():
        with pytest.raises(BackboneError, match=sentence):
            build_backbone(name=NAME, weights=path, image_size=SIZE, num_classes=7)


def damage(change: str, state: dict[str, Tensor]) -> None:
    if change == "missing":
        del state["blocks.1.attn.qkv.weight"]
    elif change == "extra":
        state["blocks.99.attn.qkv.weight"] = torch.zeros(3)
    elif change == "shape":
        state["blocks.0.mlp.fc1.bias"] = torch.zeros(11)
    elif change == "patches":
        state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][..., :8, :8].contiguous()
    else:
        state.clear()
        state["conv1.weight"] = torch.zeros(4, 3, 7, 7)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "patches", "another"])
def test_weights_of_another_architecture_are_never_half_loaded(change: str, weights: str) -> None:
    state = load_file(weights)
    damage(change, state)
    save_file(state, weights)
    with pytest.raises(BackboneError, match=rf"^the weights in '{weights}' are not those of '{NAME}': .*\w"):
        build_backbone(name=NAME, weights=weights, image_size=SIZE, num_classes=7)


def test_an_unreachable_hub_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise ConnectionError("no route")
        return create(name, **options)

    monkeypatch.setattr(timm_models.timm, "create_model", offline)
    with pytest.raises(BackboneError, match=r"could not be loaded \(ConnectionError\); .* set model.weights"):
        build_backbone(name=NAME, weights="", image_size=SIZE, num_classes=7)

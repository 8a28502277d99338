"""Backbones of transformers: two parts make the whole of transformers' own forward pass; weights from anywhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.adapters.adapted_model import AdaptedModel
from models.backbones.backbone import Backbone, BackboneError
from models.backbones.loading import build_backbone
from models.lowrank.factors import Factors
from tests.tiny_models import write_model

TEXTS = ["good film", "a very very dull book", "bad", "good good bad bad film book"]
ENCODERS = ("bert", "roberta", "electra", "distilbert", "deberta-v2")
VISION = ("vit", "dinov2", "clip", "siglip")


def build(name: str, **changes: Any) -> Backbone:
    return build_backbone(**{"name": name, "weights": "", "image_size": 24, "num_classes": 5} | changes)


def images(count: int = 4, size: int = 24) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)).byte()


@torch.no_grad()
def transformers_features(kind: str, name: str, inputs: Tensor) -> Tensor:
    model = hf.AutoModel.from_pretrained(name.removeprefix("hf:")).eval()
    if kind in ENCODERS:
        last = model(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).last_hidden_state
        return torch.stack(
            [row[: int(length)].mean(dim=0) for row, length in zip(last, inputs[:, 1].sum(1), strict=True)]
        )
    if kind in ("clip", "siglip"):
        output = model.get_image_features(pixel_values=inputs, interpolate_pos_encoding=True)
        return F.normalize(getattr(output, "pooler_output", output), dim=1)
    extra = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    return model(pixel_values=inputs, **extra).last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", [*ENCODERS, *VISION])
def test_prefix_and_suffix_make_the_whole_of_transformers(kind: str, tmp_path: Path) -> None:
    name = write_model(kind, tmp_path)
    backbone = build(name)
    inputs = backbone.prepare(TEXTS if kind in ENCODERS else images())
    expected = transformers_features(kind, name, inputs)
    for first_block in range(backbone.num_blocks + 1):
        tokens = backbone.anatomy.embed_prefix(backbone.module, inputs, first_block)
        features = backbone.anatomy.pooled_features(backbone.module, tokens, first_block)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert features.shape == (4, backbone.embed_dim)
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    with pytest.raises(ValueError, match=r"first_block must be in \[0, 3\], got 4"):
        backbone.anatomy.embed_prefix(backbone.module, inputs, 4)


@pytest.mark.parametrize("kind", [*ENCODERS, *VISION])
def test_only_the_last_blocks_carry_adapters_and_every_part_learns(kind: str, tmp_path: Path) -> None:
    model = AdaptedModel(build(write_model(kind, tmp_path)), rank=2, alpha=4.0, last_blocks=2)
    adapter = model.initialise(seed=0)
    assert len(adapter.low_rank) >= 6
    assert all(factors.A.shape[0] == 2 for factors in adapter.low_rank.values())
    model.load(adapter)
    tokens = model.embed(model.backbone.prepare(TEXTS if kind in ENCODERS else images()))
    F.cross_entropy(model.logits(tokens), torch.tensor([0, 1, 2, 4])).backward()
    carrying = [name for name, one in model.network.named_parameters() if "lora_A" in name and one.grad is not None]
    assert len(carrying) == 2 * len(adapter.low_rank)
    assert model.take_gradient().head.abs().sum() > 0


def test_padding_changes_no_features(tmp_path: Path) -> None:
    backbone = build(write_model("bert", tmp_path))
    alone, together = backbone.prepare(TEXTS[:1]), backbone.prepare(TEXTS)[:1]
    assert alone.shape[2] < together.shape[2]
    features = [
        backbone.anatomy.pooled_features(backbone.module, backbone.anatomy.embed_prefix(backbone.module, inputs, 1), 1)
        for inputs in (alone, together)
    ]
    torch.testing.assert_close(*features)


def test_long_texts_are_truncated_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = build(write_model("bert", tmp_path), max_length=6)
    with caplog.at_level(logging.INFO):
        inputs = backbone.prepare(TEXTS)
    assert inputs.shape == (4, 2, 6)
    assert inputs[3, 0, -1] == 3
    assert "2 of 4 texts are longer than 6 tokens and truncated" in caplog.text
    assert build(write_model("bert", tmp_path), max_length=500).num_tokens == 20


def test_data_of_another_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="takes texts, but the data are images; choose an image model"):
        build(write_model("bert", tmp_path / "bert")).prepare(images())
    with pytest.raises(BackboneError, match="takes images, but the data are texts; choose a text model"):
        build(write_model("vit", tmp_path / "vit")).prepare(TEXTS)
    with pytest.raises(BackboneError, match="multiple of 8 px, got 20 px"):
        build(write_model("vit", tmp_path / "vit"), image_size=20)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_directory_and_a_file_give_the_same_backbone_as_the_name(kind: str, tmp_path: Path) -> None:
    name = write_model(kind, tmp_path)
    file = str(tmp_path / "model.safetensors")
    prints = {build(name).fingerprint, build("hf:any/name", weights=str(tmp_path)).fingerprint}
    prints |= {build("hf:any/name", weights=file).fingerprint, build(name, num_classes=2).fingerprint}
    assert len(prints) == 1


def test_another_vocabulary_is_another_fingerprint(tmp_path: Path) -> None:
    name = write_model("bert", tmp_path)
    before = build(name).fingerprint
    vocabulary = tmp_path / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"good"', '"great"'))
    assert build(name).fingerprint != before


def test_weights_that_lack_a_part_are_never_half_loaded(tmp_path: Path) -> None:
    name = write_model("bert", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in state if "layer.1.output.dense.weight" in key)
    save_file({key: value for key, value in state.items() if key != lost}, tmp_path / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(BackboneError, match=r"are not those of 'hf:.*layer.1.output.dense.weight is missing"):
        build(name)


def test_a_model_that_is_not_there_is_told_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"the configuration of '/no/such/place' could not be loaded .* set model.w"
    ):
        build("hf:/no/such/place")
    hf.T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="no family of backbones takes 'hf:"):
        build(f"hf:{tmp_path}")


def test_the_head_of_clip_is_made_from_the_names_of_the_classes(tmp_path: Path) -> None:
    name = write_model("clip", tmp_path)
    head = build(name, num_classes=3, class_names=("cat", "film", "book")).module.get_submodule("classifier")
    model = hf.CLIPModel.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 10, 11, 12, 10, word, 1, 3, *[0] * 12] for word in (13, 6, 7)])
    with torch.no_grad():
        output = model.get_text_features(input_ids=ids, attention_mask=(ids > 0).long())
        features = F.normalize(getattr(output, "pooler_output", output), dim=1)
        torch.testing.assert_close(head.weight, model.logit_scale.exp() * features)
    adapted = AdaptedModel(
        build(name, num_classes=3, class_names=("cat", "film", "book")), rank=1, alpha=1.0, last_blocks=1
    )
    torch.testing.assert_close(adapted.initialise(seed=4).head[:, :-1], head.weight)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_adapted_text_tower_makes_the_head(kind: str, tmp_path: Path) -> None:
    names = {"name": write_model(kind, tmp_path), "num_classes": 3, "class_names": ("cat", "film", "book")}
    fixed, towers = build(**names), build(**names, text_tower=True)
    inputs = fixed.prepare(images())
    expected = fixed.module(inputs)
    torch.testing.assert_close(towers.module(inputs), expected)

    model = AdaptedModel(towers, rank=2, alpha=4.0, last_blocks=2)
    adapter = model.initialise(seed=0)
    text_kinds = {f"text.self_attn.{one}" for one in ("q_proj", "k_proj", "v_proj", "out_proj")}
    assert text_kinds < set(adapter.low_rank)
    assert adapter.low_rank["text.self_attn.q_proj"].A.shape == (2, 2, 16)
    assert not adapter.head.any()
    model.load(adapter)
    tokens, labels = model.embed(inputs), torch.tensor([0, 1, 2, 1])
    torch.testing.assert_close(model.logits(tokens), expected, rtol=1e-4, atol=1e-4)
    F.cross_entropy(model.logits(tokens), labels).backward()
    gradient = model.take_gradient()
    assert all(gradient.low_rank[one].B.abs().sum() > 0 for one in text_kinds)
    assert not gradient.head[:, :-1].any()
    assert gradient.head[:, -1].any()

    moved = adapter.map(lambda one: Factors(B=one.B + 0.3, A=one.A))
    model.load(moved)
    with torch.no_grad():
        logits = model.logits(tokens)
    assert (logits - expected).abs().max() > 1e-3
    model.save(moved, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(build(**names, text_tower=True).module, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(inputs), logits, rtol=1e-4, atol=1e-4)
    model.save(moved.truncated(1), tmp_path / "smaller")
    PeftModel.from_pretrained(build(**names, text_tower=True).module, str(tmp_path / "smaller"))


def test_a_text_tower_needs_names_and_a_model_that_has_one(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="needs the names of the classes to make a head"):
        build(write_model("clip", tmp_path / "clip"), text_tower=True)
    with pytest.raises(BackboneError, match=r"model\.text-tower is true, but 'hf:.*vit' is neither CLIP nor SigLIP"):
        build(write_model("vit", tmp_path / "vit"), class_names=("cat",), text_tower=True)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_language_model_is_taken_apart_and_learns_responses_only(kind: str, tmp_path: Path) -> None:
    backbone = build(write_model(kind, tmp_path), max_length=9)
    inputs = backbone.prepare(["a film\x1fvery good", "bad book", f"cat{' very' * 20}"])
    assert inputs[0].tolist() == [[10, 6, 8, 4, 3, 0, 0, 0, 0], [1, 1, 2, 2, 2, 0, 0, 0, 0]]
    targets = backbone.targets(inputs, torch.zeros(3))
    assert targets[0].tolist() == [-100, 8, 4, 3, *[-100] * 5]
    assert targets[1].tolist() == [7, 3, *[-100] * 7]
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(input_ids=inputs[:, 0], attention_mask=(inputs[:, 1] > 0).long()).logits
    for first_block in range(backbone.num_blocks + 1):
        tokens = backbone.anatomy.embed_prefix(backbone.module, inputs, first_block)
        logits = backbone.anatomy.forward_suffix(backbone.module, tokens, first_block).mT
        real = inputs[:, 1] > 0
        torch.testing.assert_close(logits[real], expected[real], rtol=1e-4, atol=1e-5)
    assert backbone.anatomy.pooled_features(backbone.module, tokens, 3).shape == (3, 16)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "vit", "llama", "clip"])
def test_the_number_of_attention_heads_is_that_of_the_model(kind: str, tmp_path: Path) -> None:
    assert build(write_model(kind, tmp_path)).num_heads == 2

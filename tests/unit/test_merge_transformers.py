"""Merged models of transformers: AutoModel loads what is written, and it computes what the adapter computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor

from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter, AdapterError
from models.adapters.export import merged, save_merged
from models.backbones.backbone import Inputs
from models.backbones.loading import build_backbone
from tests.tiny_models import configurations, write_model

TEXTS = ["good film", "a very very dull book"]
CLASSES = ("cat", "dog", "owl")
SIZE = 24


def adapted(kind: str, directory: Path) -> AdaptedModel:
    name = write_model(kind, directory)
    return AdaptedModel(
        build_backbone(name=name, weights="", image_size=SIZE, num_classes=len(CLASSES)),
        rank=2,
        alpha=4.0,
        last_blocks=2,
    )


def strong_adapter(model: AdaptedModel) -> Adapter:
    generator = torch.Generator().manual_seed(3)
    fresh = model.initialise(0).tensors()
    return Adapter.from_tensors({name: torch.randn(one.shape, generator=generator) for name, one in fresh.items()})


def samples(kind: str) -> Inputs:
    if kind in ("vit", "dinov2", "clip", "siglip"):
        return torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1)).byte()
    return TEXTS


@torch.no_grad()
def logits_without_us(kind: str, directory: Path, inputs: Tensor) -> Tensor:
    """Compute logits as the model card says."""
    if kind in ("llama", "qwen3"):
        model: Any = hf.AutoModelForCausalLM.from_pretrained(directory).eval()
        return model(input_ids=inputs[:, 0]).logits.mT
    model, head = hf.AutoModel.from_pretrained(directory).eval(), load_file(directory / "head.safetensors")
    if kind in ("clip", "siglip"):
        pooled = model(pixel_values=inputs, interpolate_pos_encoding=True).pooler_output
        pooled = pooled @ head["projection.weight"].T if kind == "clip" else pooled
        features = pooled / pooled.norm(dim=1, keepdim=True)
    elif kind in ("vit", "dinov2"):
        extra = {"interpolate_pos_encoding": True} if kind == "vit" else {}
        features = model(pixel_values=inputs, **extra).last_hidden_state[:, 0]
    else:
        mask = inputs[:, 1, :, None]
        last = model(input_ids=inputs[:, 0], attention_mask=inputs[:, 1]).last_hidden_state
        features = (last * mask).sum(dim=1) / mask.sum(dim=1)
    return features @ head["classifier.weight"].T + head["classifier.bias"]


@pytest.mark.parametrize("kind", sorted(configurations()))
def test_what_automodel_loads_computes_what_the_adapter_computed(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, tmp_path / "base")
    inputs = model.backbone.prepare(samples(kind))
    adapter = strong_adapter(model)
    model.load(adapter)
    with torch.no_grad():
        expected = model.logits(model.embed(inputs))
    model.save(adapter, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    loading = save_merged(merged(model, tmp_path / "adapter"), model, CLASSES, tmp_path / "merged")
    assert 'from_pretrained("merged")' in loading
    found = logits_without_us(kind, tmp_path / "merged", inputs)
    if kind in ("llama", "qwen3"):  # what stands behind a text is padding
        found, expected = found[0, :, :3], expected[0, :, :3]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert float((found - found.mean()).abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_labels_and_what_prepares_samples_come_along(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, tmp_path / "base")
    model.save(strong_adapter(model), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    save_merged(merged(model, tmp_path / "adapter"), model, CLASSES, tmp_path / "merged")
    assert hf.AutoConfig.from_pretrained(tmp_path / "merged").id2label == dict(enumerate(CLASSES))
    if kind == "bert":
        tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "merged")
        expected = model.backbone.prepare(TEXTS)[:, 0]
        assert torch.equal(tokenizer(TEXTS, padding=True, return_tensors="pt")["input_ids"], expected)
    else:
        processor = hf.AutoImageProcessor.from_pretrained(tmp_path / "merged")
        images = samples("vit")
        prepared = processor(list(images), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(prepared, model.backbone.prepare(images), rtol=1e-4, atol=1e-4)


def test_what_is_neither_timms_nor_transformers_is_refused_in_one_sentence(tmp_path: Path) -> None:
    mixer = MlpMixer(num_classes=3, img_size=16, patch_size=8, num_blocks=1, embed_dim=12)
    with pytest.raises(AdapterError, match="is no ViT of timm and no model of transformers: export it"):
        save_merged(mixer, adapted("vit", tmp_path / "base"), CLASSES, tmp_path)

"""The embedded ViT: the same bytes from the same seed, cached atomically, re-made when damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.backbones import digits_vit
from models.backbones.backbone import Backbone, BackboneError
from models.backbones.digits_vit import RECIPE, cache_path, pretrain
from models.backbones.loading import build_backbone
from models.backbones.weights import fingerprint

ONCE = {**RECIPE, "epochs": 1}


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """Return 96 images of three classes that differ in the bright third of the image."""
    labels = torch.arange(96) % 3
    images = torch.randint(0, 60, (96, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, :, 5 * int(label) : 5 * int(label) + 5] += 180
    return images, labels


@pytest.fixture
def build(digits: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backbone]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(digits_vit.RECIPE, "epochs", 1)

    def call(**changes: Any) -> Backbone:
        options = {"name": "digits-vit", "weights": "", "image_size": 16, "num_classes": 10}
        return build_backbone(**{**options, "pretraining": lambda: digits, **changes})

    return call


def test_it_learns(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    vit = pretrain(images, labels, **{**RECIPE, "epochs": 20, "batch_size": 16})
    with torch.no_grad():
        predicted = vit((images.float() / 255 - 0.5) / 0.5).argmax(dim=1)
    assert (predicted == labels).float().mean() > 0.9


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_process_as_it_was(
    digits: tuple[Tensor, Tensor],
) -> None:
    torch.manual_seed(5)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = fingerprint(pretrain(*digits, **ONCE))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.manual_seed(6)
    with torch.no_grad():
        assert fingerprint(pretrain(*digits, **ONCE)) == first
    assert fingerprint(pretrain(*digits, **{**ONCE, "seed": 1})) != first


def test_the_backbone_is_made_once_and_then_read(
    build: Callable[..., Backbone], digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build()
    assert (made.num_blocks, made.embed_dim, made.num_tokens) == (4, 64, 16)
    assert not any(parameter.requires_grad for parameter in made.module.parameters())
    monkeypatch.setattr(digits_vit, "pretrain", lambda *_, **__: pytest.fail("pretrained although cached"))
    read = build(num_classes=4)
    assert read.fingerprint == made.fingerprint
    images = read.prepare(digits[0][:3])
    assert read.module(images).shape == (3, 4)
    files = list(cache_path(*digits).parent.iterdir())
    assert files == [cache_path(*digits)]
    shared = build(weights=str(files[0]), pretraining=None)
    assert shared.fingerprint == made.fingerprint


@pytest.mark.parametrize("damage", [lambda b: b[:1000], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_cache_is_made_again(
    build: Callable[..., Backbone], digits: tuple[Tensor, Tensor], damage: Callable[[bytes], bytes]
) -> None:
    made, path = build(), cache_path(*digits)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert build().fingerprint == made.fingerprint
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(
    build: Callable[..., Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    made = build()
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build().fingerprint == made.fingerprint
    assert "cannot be cached" in caplog.text


def test_other_data_has_another_cache(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    assert cache_path(images, labels) != cache_path(images, labels + 1)


def test_wrong_use_is_told_in_one_sentence(build: Callable[..., Backbone], digits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BackboneError, match="takes images of 16 px, got an image size of 32 px"):
        build(image_size=32)
    with pytest.raises(BackboneError, match="needs public digits"):
        build(pretraining=None)
    with pytest.raises(BackboneError, match="at least 32 images, got 5"):
        pretrain(digits[0][:5], digits[1][:5], **RECIPE)

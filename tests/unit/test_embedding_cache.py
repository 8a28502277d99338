"""Embeddings kept between runs: found by content and by all that they depend on, within a size, safe to lose."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client_app.embedding_cache import EmbeddingCache, open_embedding_cache
from client_app.token_cache import TokenCache
from hyperlora.data.digits import digits_public
from hyperlora.data.federation import ClientData, Samples
from models.adapters.adapted_model import AdaptedModel
from models.adapters.training import TokenSet
from models.backbones.loading import build_backbone
from models.backbones.transforms import TextTransform


class OneClient:
    client_ids = ("a",)
    class_names = tuple("0123456789")

    def __init__(self, value: int = 9) -> None:
        images = torch.full((7, 1, 16, 16), value, dtype=torch.uint8)
        self.samples = Samples(images, torch.arange(7))

    def load(self, client_id: str) -> ClientData:
        return ClientData(client_id, "domain", True, self.samples, self.samples, self.samples)


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    backbone = build_backbone(name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=digits_public)
    return AdaptedModel(backbone, rank=3, alpha=6.0, last_blocks=2)


def tokens(number: int) -> TokenSet:
    return TokenSet(torch.full((250,), float(number)), torch.zeros(0))


def kept(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.state")}


def fail() -> TokenSet:
    raise AssertionError("embedded again")


def test_a_second_process_finds_what_the_first_embedded(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TokenCache(model, OneClient(), 2**20, embedded=EmbeddingCache(tmp_path, 2**20)).get("a", "train")
    again = TokenCache(model, OneClient(), 2**20, embedded=EmbeddingCache(tmp_path, 2**20))
    monkeypatch.setattr(again, "_embed", lambda samples: fail())
    found = again.get("a", "train")
    assert torch.equal(found.tokens, first.tokens)
    assert torch.equal(found.labels, first.labels)


@pytest.mark.parametrize("other", ["samples", "fingerprint", "num_heads", "transform", "blocks"])
def test_whatever_an_embedding_depends_on_is_in_its_key(
    model: AdaptedModel, tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed(federation: OneClient) -> None:
        TokenCache(model, federation, 2**20, embedded=EmbeddingCache(tmp_path, 2**20)).get("a", "train")

    embed(OneClient())
    backbone = model.backbone
    if other == "fingerprint":
        monkeypatch.setattr(model, "backbone", replace(backbone, fingerprint="another"))
    elif other == "num_heads":
        monkeypatch.setattr(model, "backbone", replace(backbone, num_heads=1))
    elif other == "transform":
        transform = replace(backbone.transform, mean=(0.25,))
        monkeypatch.setattr(model, "backbone", replace(backbone, transform=transform))
    elif other == "blocks":
        monkeypatch.setattr(model, "first_block", model.first_block - 1)
    embed(OneClient(value=8 if other == "samples" else 9))
    assert len(kept(tmp_path)) == 2


def test_the_length_that_texts_are_cut_to_is_part_of_what_they_are_kept_under() -> None:
    short, long = (TextTransform("a", None, max_length=length) for length in (16, 32))
    assert repr(short) != repr(long)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 6000)
    for age, name in ((30, "a"), (20, "b")):
        cache.cached(name, lambda: tokens(1))
        os.utime(tmp_path / f"{name}.state", (1e9 - age, 1e9 - age))
    cache.cached("a", fail)
    cache.cached("c", lambda: tokens(3))
    assert kept(tmp_path) == {"a", "c"}


def test_what_is_larger_than_all_room_is_not_kept_and_nothing_makes_room_for_it(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, 3000)
    cache.cached("small", lambda: tokens(1))
    large = TokenSet(torch.zeros(1000), torch.zeros(0))
    assert cache.cached("large", lambda: large) is large
    assert kept(tmp_path) == {"small"}


def test_a_damaged_file_is_embedded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EmbeddingCache(tmp_path, 2**20)
    cache.cached("a", lambda: tokens(1))
    (tmp_path / "a.state").write_bytes(b"hyperlora-state half")
    with caplog.at_level(logging.WARNING):
        assert cache.cached("a", lambda: tokens(2)).tokens[0] == 2
    assert "made again" in caplog.text
    assert cache.cached("a", fail).tokens[0] == 2


def test_a_file_that_another_process_removed_is_embedded_again(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "gone", 2**20)
    assert cache.cached("a", lambda: tokens(2)).tokens[0] == 2


def test_the_cache_lies_in_the_cache_home_and_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYPERLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = open_embedding_cache(1)
    assert cache is not None
    cache.cached("a", lambda: tokens(1))
    folder = tmp_path / "hyperlora" / "embeddings"
    assert kept(folder) == {"a"}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_cache_is_off_by_setting_and_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERLORA_CACHE", "off")
    assert open_embedding_cache(1) is None
    monkeypatch.setenv("HYPERLORA_CACHE", str(tmp_path))
    assert open_embedding_cache(0) is None
    assert open_embedding_cache(1) is not None


def test_a_cache_directory_that_cannot_be_made_costs_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HYPERLORA_CACHE", str(tmp_path / "file"))
    assert open_embedding_cache(1) is None
    assert "embeddings are not kept" in caplog.text

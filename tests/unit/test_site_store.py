"""The site's own files: found again for the same data and backbone, made again otherwise, private, safe to lose."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from client_app.site_store import SiteStore, cache_key, digest_of
from hyperlora.config.schema import ConfigError
from hyperlora.data.federation import Samples
from models.adapters.training import TokenSet
from models.personalization.signature import Signature


class Maker:
    """Counts how often a value had to be made."""

    def __init__(self, value: Signature | TokenSet) -> None:
        self.value, self.made = value, 0

    def __call__(self) -> Signature | TokenSet:
        self.made += 1
        return self.value


@pytest.fixture
def tokens() -> Maker:
    return Maker(TokenSet(torch.randn(3, 5, 7), torch.arange(3)))


def test_what_was_kept_is_found_by_another_process_state(tmp_path: Path, tokens: Maker) -> None:
    SiteStore(tmp_path, "a").cached("tokens-train", "key", tokens)
    again = SiteStore(tmp_path, "a").cached("tokens-train", "key", tokens)
    assert tokens.made == 1
    assert torch.equal(again.tokens, tokens.value.tokens)
    assert torch.equal(again.labels, tokens.value.labels)


def test_a_signature_comes_back_as_it_was(tmp_path: Path) -> None:
    signature = Signature(torch.randn(4), torch.rand(4), torch.tensor([0.25, 0.75]), 2.5)
    maker = Maker(signature)
    SiteStore(tmp_path, "a").cached("signature", "key", maker)
    again = SiteStore(tmp_path, "a").cached("signature", "key", maker)
    assert maker.made == 1
    assert again.digest() == signature.digest()


def test_another_key_is_made_again_and_takes_the_place(tmp_path: Path, tokens: Maker) -> None:
    state = SiteStore(tmp_path, "a")
    for key in ("old", "new", "new"):
        state.cached("tokens-train", key, tokens)
    assert tokens.made == 2
    assert len(list(state.folder.iterdir())) == 1


def test_clients_of_one_state_dir_do_not_share(tmp_path: Path, tokens: Maker) -> None:
    SiteStore(tmp_path, "a").cached("tokens-train", "key", tokens)
    SiteStore(tmp_path, "b").cached("tokens-train", "key", tokens)
    assert tokens.made == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "delete"])
def test_a_damaged_or_deleted_file_is_made_again(
    tmp_path: Path, tokens: Maker, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = SiteStore(tmp_path, "a")
    state.cached("tokens-train", "key", tokens)
    path = state.folder / "tokens-train.state"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(state.cached("tokens-train", "key", tokens).tokens, tokens.value.tokens)
    assert tokens.made == 2
    assert ("made again" in caplog.text) == (damage != "delete")


def test_the_folder_is_private_even_if_it_was_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o755)
    assert SiteStore(tmp_path, "a").folder.stat().st_mode & 0o777 == 0o700


def test_a_state_dir_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made private"):
        SiteStore(tmp_path / "file", "a")


def test_a_full_disk_costs_the_cache_and_not_the_value(
    tmp_path: Path, tokens: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    state = SiteStore(tmp_path, "a")
    (state.folder / "tokens-train.state").mkdir()  # what cannot be replaced by a file
    with caplog.at_level(logging.WARNING):
        assert state.cached("tokens-train", "key", tokens) is tokens.value
    assert "not kept" in caplog.text


@pytest.mark.parametrize("failure", [OSError("No space left on device"), SafetensorError("No space left on device")])
def test_the_adapter_is_always_whole_and_only_the_last_one_stays(
    tmp_path: Path, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    state = SiteStore(tmp_path, "a")

    def save(text: str, directory: Path) -> None:
        directory.mkdir()
        (directory / "weights").write_text(text)

    def fail(directory: Path) -> None:
        save("half", directory)
        raise failure

    for text in ("first", "second"):
        state.keep_adapter(lambda directory, text=text: save(text, directory))
    with caplog.at_level(logging.WARNING):
        state.keep_adapter(fail)
    assert (state.folder / "adapter" / "weights").read_text() == "second"
    assert "No space left" in caplog.text
    assert len(list(state.folder.iterdir())) == 2


def test_the_digest_tells_images_labels_and_shapes_apart() -> None:
    images, labels = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2), torch.tensor([0, 1])
    own = digest_of(Samples(images, labels))
    assert own == digest_of(Samples(images.clone(), labels.clone()))
    assert own != digest_of(Samples(images.reshape(2, 2, 1, 2), labels))
    assert own != digest_of(Samples(images, labels.flip(0)))
    assert own != digest_of(Samples(images.flip(0), labels))


def test_every_part_of_a_key_counts() -> None:
    assert len({cache_key("data", "backbone", 2), cache_key("data", "backbone", 3), cache_key("data", "other", 2)}) == 3

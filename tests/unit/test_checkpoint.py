"""Tests of strategies/engine/checkpoint.py: the newest checkpoint that can be used is found, and few are kept."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from torch import Tensor

from hyperlora.storage.files import StorageError
from hyperlora.storage.signing import SigningKey
from hyperlora.storage.state import StateError, write_state
from strategies.engine import checkpoint as random_states
from strategies.engine.checkpoint import KIND, VERSION, Checkpoint, CheckpointStore, OldRunError
from strategies.engine.history import History
from strategies.engine.records import ClientScore
from tests.builders import make_card


@dataclass(frozen=True)
class State:
    anchor: Tensor


CLASSES = [State]


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=3)


def save(store, *rounds):
    for server_round in rounds:
        store.save(Checkpoint(server_round, State(torch.full((2, 3), server_round))), CLASSES)


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def damage(store, server_round):
    path = store.directory / f"round-{server_round:05d}.pt"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def latest(store):
    found = store.latest(CLASSES)
    assert torch.equal(found.state.anchor, torch.full((2, 3), found.server_round))
    return found.server_round


def test_there_is_none_before_the_first(store):
    assert store.latest(CLASSES) is None


def test_the_newest_are_kept_by_number_and_the_newest_is_found(store):
    save(store, 2, 9, 10, 11, 100_000)
    assert names(store) == ["round-00010.pt", "round-00011.pt", "round-100000.pt"]
    assert latest(store) == 100_000


def test_a_damaged_one_is_named_and_the_one_before_is_used(store, caplog):
    save(store, 1, 2, 3)
    damage(store, 3)
    with caplog.at_level(logging.WARNING, logger="strategies.engine.checkpoint"):
        assert latest(store) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "round-00003.pt" in caplog.text


def test_all_damaged_is_an_error_that_names_them(store):
    save(store, 1, 2)
    damage(store, 1)
    damage(store, 2)
    with pytest.raises(StateError, match=r"no checkpoint in .*round-00002.* \| .*round-00001"):
        store.latest(CLASSES)


def test_a_continuation_that_was_given_up_is_removed(store):
    save(store, 1, 2, 3, 4)
    damage(store, 4)
    damage(store, 3)
    save(store, 3)
    assert names(store) == ["round-00002.pt", "round-00003.pt"]
    assert latest(store) == 3
    save(store, 1)
    assert latest(store) == 1


def test_a_file_under_another_round_s_name_is_not_used(store):
    save(store, 1, 2)
    (store.directory / "round-00001.pt").replace(store.directory / "round-00007.pt")
    assert latest(store) == 2


def test_other_files_stay_and_leftovers_go(store):
    save(store, 1)
    for name in ("notes.txt", "round-1.pt", ".round-00001.pt.0123.tmp"):
        (store.directory / name).touch()
    save(store, 2, 3, 4)
    expected = [f"round-0000{number}.pt" for number in (2, 3, 4)]
    assert names(store) == ["notes.txt", *expected, "round-1.pt"]


def test_a_state_that_could_not_be_restored_is_refused_and_the_old_ones_stay(store):
    save(store, 1)
    with pytest.raises(StateError, match="not among the classes"):
        store.save(Checkpoint(2, State(torch.ones(1))), [])
    assert latest(store) == 1


def write_other(store, content, kind=KIND, version=VERSION):
    write_state(store.directory / "round-00001.pt", content, CLASSES, kind=kind, version=version)


def test_another_kind_or_version_of_file_is_not_used(store):
    write_other(store, State(torch.ones(1)), kind="site")
    with pytest.raises(StateError, match="expected a 'checkpoint'"):
        store.latest(CLASSES)
    write_other(store, {"server_round": 1}, version=VERSION + 1)
    with pytest.raises(StateError, match=f"it is of version {VERSION + 1}, this program reads version {VERSION}"):
        store.latest(CLASSES)


@pytest.mark.parametrize("content", [{"server_round": 1}, {"server_round": 1, "state": 1, "other": 0}, [1]])
def test_another_content_is_refused_with_a_sentence(store, content):
    write_other(store, content)
    with pytest.raises(StateError, match="cannot be used: "):
        store.latest(CLASSES)


def test_a_run_of_an_older_version_is_named(store):
    store.directory.mkdir()
    (store.directory / "round-00003.safetensors").touch()
    with pytest.raises(OldRunError, match="was made by an older version of hyperlora"):
        store.latest(CLASSES)
    save(store, 4)
    assert latest(store) == 4


def test_everything_comes_back(store):
    score = ClientScore("a", "d", True, "start", 3, 0.5, 0.6, 0.6, 1.0, 1.1, 0.9, {"0": 0.5, "10": 0.6})
    random_states.restore(before := random_states.capture())
    saved = Checkpoint(
        7, State(torch.ones(1)), {"a": make_card("a")}, [score], before, History({1: ["a"]}, {"a": 2}, {"a": 0.5})
    )
    store.save(saved, CLASSES)
    drawn = random.random(), np.random.rand(), float(torch.rand(1))
    found = store.latest(CLASSES)
    random_states.restore(found.random_states)
    assert (random.random(), np.random.rand(), float(torch.rand(1))) == drawn
    assert (found.scores, found.history) == ([score], saved.history)
    assert found.cards["a"].signature.digest() == make_card("a").signature.digest()


def test_a_forged_or_unsigned_checkpoint_is_not_gone_on_from(tmp_path, caplog):
    """Who may write to the run directory can make a file with a right checksum, and no signature."""
    own, other = (SigningKey(Ed25519PrivateKey.generate()) for _ in range(2))
    store = CheckpointStore(tmp_path / "checkpoints", keep=9, key=own)
    save(store, 1)
    save(replace(store, key=other), 2)
    save(replace(store, key=None), 3)
    assert latest(store) == 1
    assert "its signature is not that of the key in run.signing-key" in caplog.text
    assert "it is not signed, and run.signing-key asks for files that are" in caplog.text
    assert latest(replace(store, key=None)) == 3, "without a key nothing is asked of signatures"


def test_a_signature_does_not_move_to_another_content(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=9, key=SigningKey(Ed25519PrivateKey.generate()))
    save(store, 1)
    signed = store.directory / "round-00001.pt"
    signature = signed.read_bytes().partition(b"\n")[0].split(b" ")[4]
    save(replace(store, key=None), 2)
    forged = store.directory / "round-00002.pt"
    header, _, payload = forged.read_bytes().partition(b"\n")
    forged.write_bytes(header + b" " + signature + b"\n" + payload)
    assert latest(store) == 1


@pytest.mark.parametrize("kind", ["missing", "text", "of another kind"])
def test_a_signing_key_that_is_none_is_refused_in_one_sentence(tmp_path, kind):
    path = tmp_path / "key.pem"
    if kind == "text":
        path.write_text("secret")
    elif kind == "of another kind":
        pem = ec.generate_private_key(ec.SECP384R1())
        path.write_bytes(pem.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(StorageError, match="key") as error:
        SigningKey.read(path)
    assert "\n" not in str(error.value)


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(tmp_path, keep=0)

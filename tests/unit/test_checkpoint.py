"""Tests of strategies/checkpoint.py: the newest checkpoint that can be used is found, and few are kept."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperlora.storage.state_file import write_state
from hyperlora.storage.state_tree import StateError
from strategies.engine import checkpoint as random_states
from strategies.engine.checkpoint import KIND, Checkpoint, CheckpointStore
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
    path = store.directory / f"round-{server_round:05d}.safetensors"
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
    assert names(store) == ["round-00010.safetensors", "round-00011.safetensors", "round-100000.safetensors"]
    assert latest(store) == 100_000


def test_a_damaged_one_is_named_and_the_one_before_is_used(store, caplog):
    save(store, 1, 2, 3)
    damage(store, 3)
    with caplog.at_level(logging.WARNING, logger="strategies.engine.checkpoint"):
        assert latest(store) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "round-00003.safetensors" in caplog.text


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
    assert names(store) == ["round-00002.safetensors", "round-00003.safetensors"]
    assert latest(store) == 3
    save(store, 1)
    assert latest(store) == 1


def test_a_file_under_another_round_s_name_is_not_used(store):
    save(store, 1, 2)
    (store.directory / "round-00001.safetensors").replace(store.directory / "round-00007.safetensors")
    assert latest(store) == 2


def test_other_files_stay_and_leftovers_go(store):
    save(store, 1)
    for name in ("notes.txt", "round-1.safetensors", ".round-00001.safetensors.0123.tmp"):
        (store.directory / name).touch()
    save(store, 2, 3, 4)
    expected = [f"round-0000{number}.safetensors" for number in (2, 3, 4)]
    assert names(store) == ["notes.txt", *expected, "round-1.safetensors"]


def test_a_state_that_could_not_be_restored_is_refused_and_the_old_ones_stay(store):
    save(store, 1)
    with pytest.raises(StateError, match="not among the classes"):
        store.save(Checkpoint(2, State(torch.ones(1))), [])
    assert latest(store) == 1


def test_another_kind_of_file_is_not_used(store):
    write_state(store.directory / "round-00001.safetensors", State(torch.ones(1)), kind="memory entry")
    with pytest.raises(StateError, match="expected a 'checkpoint'"):
        store.latest(CLASSES)


def write_version(store, content):
    write_state(store.directory / "round-00001.safetensors", content, kind=KIND, classes=CLASSES)


def test_a_checkpoint_of_version_1_is_migrated(store):
    write_version(store, {"server_round": 1, "value": State(torch.full((2, 3), 1))})
    assert latest(store) == 1
    assert store.latest(CLASSES).cards == {}


def test_a_checkpoint_of_version_2_keeps_its_history(store):
    state = State(torch.full((2, 3), 1))
    write_version(
        store, {"version": 2, "server_round": 1, "state": state, "cohorts": {1: ["a"]}, "signatures": {"a": 2}}
    )
    assert latest(store) == 1
    assert store.latest(CLASSES).history == History({1: ["a"]}, {"a": 2})


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"version": 4, "server_round": 1}, "a checkpoint of version 4, this program reads versions 1 to 3"),
        ({"version": "2"}, "a checkpoint of version 2, this program reads"),
        ({"version": 2, "server_round": 1, "other": 0}, "cannot be used: .*other"),
        ({"server_round": 1}, "cannot be used: 'value'"),
        ([1], "cannot be used: .*list"),
    ],
)
def test_another_version_or_content_is_refused_with_a_sentence(store, content, sentence):
    write_version(store, content)
    with pytest.raises(StateError, match=sentence):
        store.latest(CLASSES)


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


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        CheckpointStore(tmp_path, keep=0)

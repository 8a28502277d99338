"""Tests of hyperlora/storage/tensor_store.py: the values are right wherever they lie, and no place is used twice."""

from __future__ import annotations

import errno
import gc
import os
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hyperlora.storage.files import StorageError
from hyperlora.storage.tensor_store import DiskMemory, TensorStore
from tests.builders import make_adapter

SIZE = sum(one.nbytes for one in make_adapter(0).tensors().values())
PAGE = 4096


def same(left, right):
    return list(left) == list(right) and all(
        (value.dtype, value.shape) == (right[name].dtype, right[name].shape) and torch.equal(value, right[name])
        for name, value in left.items()
    )


def test_tensors_beyond_the_limit_come_back_from_disk_bit_by_bit():
    store, originals = TensorStore(ram_limit=2 * SIZE), [make_adapter(seed).tensors() for seed in range(5)]
    kept = [store.put(one).tensors() for one in originals]
    assert [one["head"] is other["head"] for one, other in zip(kept, originals, strict=True)] == [True] * 2 + [
        False
    ] * 3
    assert store.ram_bytes == 2 * SIZE
    assert store.file_bytes >= 3 * SIZE
    assert all(same(one, other) for one, other in zip(kept, originals, strict=True))


def test_every_dtype_and_layout_comes_back_together():
    whole = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(5).bfloat16(),
        "whole": torch.tensor(12),
        "turned": whole.mT,
        "piece": whole[:, 1, ::2],
        "empty": torch.empty(0, 2, dtype=torch.float64),
        "trained": torch.nn.Parameter(torch.randn(3)),
    }
    assert same(TensorStore().put(tensors).tensors(), tensors)
    assert same(TensorStore().put({"empty": torch.empty(0)}).tensors(), {"empty": torch.empty(0)})


def test_what_was_kept_outlives_the_store():
    kept = [TensorStore().put(make_adapter(seed).tensors()).tensors() for seed in range(2)]
    gc.collect()
    assert torch.equal(kept[1]["mlp.fc1.lora_B"], make_adapter(1).low_rank["mlp.fc1"].B)


def test_a_place_is_used_again_only_after_its_last_tensor_is_gone():
    store, sizes = TensorStore(), []
    stored = store.put({"a": torch.full((10,), 1.0)})
    mapped = stored.tensors()["a"]
    del stored
    other = store.put({"a": torch.full((10,), 2.0)})
    assert mapped.tolist() == [1.0] * 10
    del mapped, other
    gc.collect()
    for value in range(20):
        assert store.put({"a": torch.full((10,), float(value))}).tensors()["a"].tolist() == [value] * 10
        sizes.append(store.file_bytes)
    assert set(sizes) == {2 * PAGE}


def test_the_file_has_no_name(tmp_path):
    TensorStore(directory=tmp_path / "new").put({"a": torch.ones(3)})
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hyperlora.storage.tensor_store._nameless_file", fail)
    with pytest.raises(StorageError, match=f"'{tmp_path}' cannot be written: No space left on device"):
        TensorStore(directory=tmp_path).put({"a": torch.ones(3)})


@dataclass(frozen=True)
class Seen:
    value: Tensor
    count: int

    def tensors(self):
        return {"value": self.value, "count": torch.tensor(self.count)}

    @classmethod
    def from_tensors(cls, tensors):
        return cls(tensors["value"], int(tensors["count"]))


def entry(number):
    return Seen(torch.tensor([number, number + 1]), number)


def number_of(seen):
    assert seen.value.tolist() == [seen.count, seen.count + 1]
    return seen.count


def make_memory(directory, limit=2):
    return DiskMemory(directory, limit, Seen.tensors, Seen.from_tensors)


@pytest.fixture
def memory(tmp_path):
    return make_memory(tmp_path)


def test_ten_thousand_clients_are_right_and_few_are_in_ram(tmp_path):
    count, limit, memory = 10_000, 100, make_memory(tmp_path, 100)
    names = [f"client-{number}" for number in range(count)]
    for first in range(0, count, 500):
        memory = memory.with_entries({names[n]: entry(n) for n in range(first, first + 500)})
        assert len(memory._recent) <= limit
    assert list(memory) == sorted(names)
    for n in random.Random(0).sample(range(count), 1000):
        assert number_of(memory[names[n]]) == n
        assert len(memory._recent) <= limit
    assert len(memory) == count
    assert memory._store.file_bytes == count * PAGE


def test_it_agrees_with_a_dict(memory):
    expected, chance = {}, random.Random(1)
    for _ in range(60):
        new = {f"c{chance.randrange(9)}": entry(chance.randrange(1000)) for _ in range(chance.randrange(4))}
        memory, expected = memory.with_entries(new), expected | new
        for name in chance.sample(sorted(expected), min(3, len(expected))):
            assert number_of(memory[name]) == expected[name].count
        assert {name: one.count for name, one in memory.items()} == {k: v.count for k, v in expected.items()}
        assert list(memory) == sorted(expected)
        assert len(memory) == len(expected)


def test_the_entry_used_longest_ago_leaves(memory):
    memory = memory.with_entries({"a": entry(1), "b": entry(2)})
    kept, left = memory["a"], memory["b"]
    assert memory["a"] is kept
    memory = memory.with_entries({"c": entry(3)})
    assert memory["a"] is kept
    assert memory["b"] is not left
    assert number_of(memory["b"]) == 2


def test_an_older_memory_stays_what_it_is(memory):
    older = memory.with_entries({name: entry(n) for n, name in enumerate("abcd")})
    newer = older.with_entries({"a": entry(10), "d": entry(13), "e": entry(14)})
    assert list(older) == ["a", "b", "c", "d"]
    assert "e" not in older
    assert [number_of(one) for one in older.values()] == [0, 1, 2, 3]
    assert [number_of(one) for one in newer.values()] == [10, 1, 2, 13, 14]


def test_entries_that_are_replaced_every_round_do_not_let_the_file_grow(memory):
    for n in range(50):
        memory = memory.with_entries({name: entry(n) for name in "abcde"})
    assert [number_of(one) for one in memory.values()] == [49] * 5
    assert memory._store.file_bytes == 2 * 5 * PAGE


def test_a_client_that_is_not_there(memory):
    memory = memory.with_entries({"a": entry(1)})
    assert "b" not in memory
    assert 3 not in memory
    assert memory.get("b") is None
    with pytest.raises(KeyError):
        memory["b"]


@pytest.mark.parametrize("name", ["", "../../up", "nul\0", "é" * 300, "\ud800"])
def test_any_client_id_will_do(memory, name):
    memory = memory.with_entries({name: entry(5), "x": entry(6), "y": entry(7)})
    assert number_of(memory[name]) == 5


def test_a_limit_of_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        make_memory(tmp_path, 0)

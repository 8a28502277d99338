"""Tests of strategies/disk_memory.py: it is a mapping whose values are right wherever they lie."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hyperlora.storage.disk_memory import DiskMemory
from hyperlora.storage.state_tree import StateError, pack, unpack
from models.lowrank.factors import Factors


@dataclass(frozen=True)
class Seen:
    value: Tensor
    count: int


CLASSES = [Seen]


def entry(number):
    return Seen(torch.tensor([number, number + 1]), number)


def number_of(seen):
    assert seen.value.tolist() == [seen.count, seen.count + 1]
    return seen.count


@pytest.fixture
def memory(tmp_path):
    return DiskMemory(tmp_path / "memory", 2, CLASSES)


def files(memory):
    return list(memory.directory.iterdir()) if memory.directory.exists() else []


def test_ten_thousand_clients_are_right_and_few_are_in_ram(tmp_path):
    count, limit, memory = 10_000, 100, DiskMemory(tmp_path, 100, CLASSES)
    names = [f"client-{number}" for number in range(count)]
    for first in range(0, count, 500):
        memory = memory.with_entries({names[n]: entry(n) for n in range(first, first + 500)})
        assert memory.num_in_ram <= limit
    assert list(memory) == sorted(names)
    for n in random.Random(0).sample(range(count), 1000):
        assert number_of(memory[names[n]]) == n
        assert memory.num_in_ram <= limit
    assert len(files(memory)) == len(memory) == count


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
    kept = memory["a"]
    memory = memory.with_entries({"c": entry(3)})
    for path in files(memory):
        path.unlink()
    assert memory["a"] is kept
    with pytest.raises(StateError, match="cannot be read: No such file"):
        memory["b"]


def test_an_older_memory_keeps_its_clients_and_never_harms_the_newer_one(memory):
    older = memory.with_entries({name: entry(n) for n, name in enumerate("abcd")})
    newer = older.with_entries({"a": entry(10), "d": entry(13), "e": entry(14)})
    assert list(older) == ["a", "b", "c", "d"]
    assert "e" not in older
    assert number_of(older["d"]) == 3
    assert [number_of(one) for one in older.values()][1:3] == [1, 2]
    assert [number_of(one) for one in newer.values()] == [10, 1, 2, 13, 14]


def test_a_client_that_is_not_there(memory):
    memory = memory.with_entries({"a": entry(1)})
    assert "b" not in memory
    assert 3 not in memory
    assert memory.get("b") is None
    with pytest.raises(KeyError):
        memory["b"]


@pytest.mark.parametrize("name", ["", "../../up", "a/b", "nul\0", "é" * 300, "A", "a", ".", "..", "round trip"])
def test_any_client_id_makes_a_file_in_the_directory(memory, name):
    memory = memory.with_entries({name: entry(5), "x": entry(6), "y": entry(7)})
    assert number_of(memory[name]) == 5
    assert len(files(memory)) == 3
    assert list(memory.directory.parent.iterdir()) == [memory.directory]


def test_what_cannot_be_restored_is_refused_at_once(memory):
    with pytest.raises(StateError, match="cannot be written"):
        memory.with_entries({"\ud800": entry(1)})
    with pytest.raises(StateError, match="not among the classes"):
        DiskMemory(memory.directory, 2, []).with_entries({"a": entry(1)})
    assert files(memory) == []


def test_a_damaged_or_exchanged_file_is_refused(memory):
    memory = memory.with_entries({name: entry(n) for n, name in enumerate("abcd")})
    memory._path("b").replace(memory._path("a"))
    with pytest.raises(StateError, match="is of client 'b', expected 'a'"):
        memory["a"]
    memory._path("a").write_bytes(b"")
    with pytest.raises(StateError, match="damaged"):
        memory["a"]


def test_files_of_an_earlier_run_are_not_read(memory):
    memory.with_entries({"a": entry(1)})
    again = DiskMemory(memory.directory, 2, CLASSES)
    assert len(again) == 0
    again = again.with_entries({name: entry(n + 20) for n, name in enumerate("abc")})
    assert [number_of(one) for one in again.values()] == [20, 21, 22]


def test_without_a_directory_everything_is_in_ram_and_older_memories_stay():
    older = DiskMemory(None, 2, CLASSES).with_entries({str(n): entry(n) for n in range(50)})
    newer = older.with_entries({"7": entry(70)})
    assert newer.num_in_ram == len(newer) == 50
    assert (older["7"].count, newer["7"].count) == (7, 70)


def test_a_memory_is_packed_as_a_dict(memory):
    memory = memory.with_entries({name: entry(n) for n, name in enumerate("abcd")})
    restored = unpack(*pack(memory), CLASSES)
    assert {name: number_of(one) for name, one in restored.items()} == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_a_limit_of_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        DiskMemory(tmp_path, 0, CLASSES)


def test_mapped_entries_are_bit_for_bit_those_entered_and_outlive_their_file(tmp_path):
    memory = DiskMemory(tmp_path, 1, [Factors], mapped=3)
    entries = {name: Factors(torch.randn(2, 5, 3), torch.randn(2, 3, 4)) for name in "abcde"}
    memory = memory.with_entries(entries)
    newer = memory.with_entries({"c": Factors(torch.zeros(2, 5, 3), torch.zeros(2, 3, 4))})
    for name in "bcd":
        assert (memory._path(name)).exists()
    memory._path("c").unlink()
    assert torch.equal(memory["c"].B, entries["c"].B)
    assert torch.equal(memory["d"].A, entries["d"].A)
    assert not newer["c"].B.any()
    assert torch.equal(memory["a"].B, entries["a"].B)
    assert memory.num_in_ram == 1
    assert len(newer._pages) == 3


def test_what_is_not_of_floats_cannot_be_mapped(tmp_path):
    with pytest.raises(StateError, match="I64 cannot be mapped"):
        DiskMemory(tmp_path, 1, CLASSES, mapped=1).with_entries({"a": entry(1)})

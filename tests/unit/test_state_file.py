"""Tests of models/state_file.py: a file is the value that was written, or a StateError."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from hyperlora.storage import state_file
from hyperlora.storage.state_file import read_state, write_state
from hyperlora.storage.state_tree import StateError
from tests.unit.test_state_tree import same

BROKEN_FILES = 2000


@dataclass(frozen=True)
class Example:
    name: str
    step: int
    rate: float
    tensors: Any


CLASSES = [Example]


def example(step=3):
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "float": torch.randn(3, 4, generator=generator),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(5, generator=generator).bfloat16(),
        7: (torch.tensor(12), torch.empty(0, 2, dtype=torch.float64)),
    }
    return Example("client-é", step, float("nan"), tensors)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "state.safetensors"


def test_a_value_comes_back(path):
    write_state(path, example(), kind="example")
    assert same(example(), read_state(path, CLASSES, kind="example"))
    assert [file.name for file in path.parent.iterdir()] == ["state.safetensors"]


def test_a_value_without_tensors_comes_back(path):
    write_state(path, {"a": [1, None]}, kind="example", durable=False)
    assert read_state(path, [], kind="example") == {"a": [1, None]}


def test_equal_values_make_equal_files(tmp_path):
    for name in "abcdef":
        write_state(tmp_path / name, example(), kind="example", durable=False)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def broken(content: bytes, chance: random.Random) -> bytes:
    """Cut the file, flip one to three bits anywhere or in the header, or set a byte."""
    way, damaged = chance.randrange(4), bytearray(content)
    if way == 0:
        return content[: chance.randrange(len(content))]
    if way == 1:
        damaged[chance.randrange(len(content))] = chance.randrange(256)
        return bytes(damaged)
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(header if way == 2 else len(content))
        damaged[place] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def test_a_broken_file_is_refused_or_still_the_value(path):
    write_state(path, example(), kind="example")
    content, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(BROKEN_FILES):
        path.unlink()
        path.write_bytes(broken(content, chance))
        try:
            assert same(example(), read_state(path, CLASSES, kind="example"))
        except StateError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 0.95 * BROKEN_FILES


def test_one_flipped_bit_is_refused_wherever_it_is(path):
    value = {"a": 1, "b": torch.tensor([1.5])}
    write_state(path, value, kind="k")
    content, restored = path.read_bytes(), 0
    bits = range(8 * len(content))
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(damaged)
        try:
            assert same(value, read_state(path, [], kind="k"))
            restored += 1
        except StateError:
            pass
    assert restored < 0.01 * len(bits)


def rewritten(path: Path, **changes: Any) -> None:
    """Change the head of a file and leave its tensors."""
    content = path.read_bytes()
    head = state_file._head(content)
    path.write_bytes(save(load(content), {state_file.KEY: json.dumps(head | changes)}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": 2}, "it is of format version 2, this program reads version 1"),
        ({"kind": "other"}, "it holds a 'other', expected a 'example'"),
        ({"description": {"tensor": "0"}}, "checksum"),
        ({"sha256": "0"}, "checksum"),
        ({"sha256": None}, "checksum"),
    ],
)
def test_another_head_is_refused(path, changes, sentence):
    write_state(path, example(), kind="example")
    rewritten(path, **changes)
    with pytest.raises(StateError, match=sentence):
        read_state(path, CLASSES, kind="example")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        save({"a": torch.ones(2)}),
        save({"a": torch.ones(2)}, {"state": "[]"}),
    ],
)
def test_a_file_of_another_origin_is_refused(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"state\.safetensors"):
        read_state(path, CLASSES, kind="example")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(StateError, match=r"'.*absent' cannot be read: No such file"):
        read_state(tmp_path / "absent", CLASSES, kind="example")
    with pytest.raises(StateError, match="cannot be read: Is a directory"):
        read_state(tmp_path, CLASSES, kind="example")


def test_a_class_that_is_not_listed_is_refused(path):
    write_state(path, example(), kind="example")
    with pytest.raises(StateError, match=r"state.safetensors.*Example is not among"):
        read_state(path, [], kind="example")
    with pytest.raises(StateError, match=r"state.safetensors.*not among"):
        write_state(path, example(), kind="example", classes=[])


@pytest.mark.parametrize("value", [{1, 2}, 10**5000], ids=["set", "huge"])
def test_a_value_that_cannot_be_saved_is_refused_and_leaves_no_file(path, value):
    with pytest.raises(StateError, match="cannot be written"):
        write_state(path, value, kind="example")
    assert not path.parent.exists()


class FullDisk:
    """A file that takes half of what is written and then no more."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def old_file_stays(path, reason):
    with pytest.raises(StateError, match=f"state.safetensors' cannot be written: {reason}"):
        write_state(path, example(4), kind="example")
    assert same(example(3), read_state(path, CLASSES, kind="example"))
    assert [file.name for file in path.parent.iterdir()] == ["state.safetensors"]


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    write_state(path, example(3), kind="example")
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda own, mode: FullDisk(real(own, mode)) if mode == "xb" else real(own, mode))
    old_file_stays(path, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_any_failure_on_the_way_leaves_the_old_file(path, monkeypatch, step):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_state(path, example(3), kind="example")
    monkeypatch.setattr(*((state_file.os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    old_file_stays(path, "Input/output error")


def test_a_real_refusal_of_the_system_leaves_the_old_file(path):
    write_state(path, example(3), kind="example")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        old_file_stays(path, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_interrupt_leaves_no_temporary_file(path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(state_file.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_state(path, example(), kind="example")
    assert list(path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"file/state.*cannot be written: (Not a directory|File exists)"):
        write_state(tmp_path / "file" / "state", 1, kind="example")

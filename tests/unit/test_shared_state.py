"""Tests of hyperlora/storage/shared_state.py: a file is the value that was written, or refused in one sentence."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hyperlora.storage.shared_state import read_shared_state, write_shared_state
from hyperlora.storage.state import StateError
from tests.faults.damaged import damage
from tests.trees import same


@dataclass(frozen=True)
class Leaf:
    value: Any


TWICE = torch.arange(6.0).reshape(2, 3)
VALUE = {
    "leaf": Leaf((1, 2.5, float("inf"), None, True, "ä")),
    "tensors": [TWICE, TWICE, TWICE.view(3, 2), torch.empty(0, 4), torch.tensor(3), torch.ones(2, dtype=torch.bool)],
    "half": Leaf(torch.full((2, 2), 0.1, dtype=torch.bfloat16)),
    "by number": {3: [], 1: ()},
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    write_shared_state(path, VALUE, [Leaf], kind="example", version=2)
    return path


def read(path: Path, kind: str = "example", version: int = 2, classes: tuple[type, ...] = (Leaf,)) -> Any:
    return read_shared_state(path, classes, kind=kind, version=version)


def test_a_state_comes_back_as_it_was_and_the_library_reads_its_file(written: Path) -> None:
    assert same(read(written), VALUE)
    with safe_open(written, framework="pt") as file:
        assert len(file.keys()) == 6  # of seven tensors two are the same
        assert json.loads(file.metadata()["state"])["map"][0][0] == "leaf"


def test_a_damaged_file_is_refused_or_read_as_written(written: Path) -> None:
    content, chance = written.read_bytes(), random.Random(0)
    refused = as_written = 0
    for _ in range(200):
        written.unlink()
        written.write_bytes(damage(content, chance))
        try:
            found = read(written)
        except StateError as error:
            refused += f"the state file '{written}' cannot be" in str(error)
        else:
            assert same(found, VALUE)
            as_written += 1
    assert refused + as_written == 200
    assert refused > 150


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"kind": "checkpoint"}, "holds a 'example' of version 2, this program reads a 'checkpoint' of version 2"),
        ({"version": 3}, "this program reads a 'example' of version 3"),
        ({"classes": ()}, "the class Leaf is not among those that can be restored"),
    ],
)
def test_another_kind_version_or_class_is_refused(written: Path, wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        read(written, **wanted)


def test_what_is_no_state_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(StateError, match="it is no state file"):
        read(tmp_path / "adapter.safetensors")
    with pytest.raises(StateError, match="cannot be read"):
        read(tmp_path / "none.safetensors")
    with pytest.raises(StateError, match=r"state\['odd'\] is a builtins.object"):
        write_shared_state(tmp_path / "odd.safetensors", {"odd": object()}, [], kind="example", version=2)
    assert not (tmp_path / "odd.safetensors").exists()

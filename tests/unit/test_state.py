"""Tests of hyperlora/storage/state.py: a file is the value that was written or refused, never run."""

from __future__ import annotations

import enum
import errno
import math
import os
import pickle
import random
import resource
import zipfile
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperlora.storage import files
from hyperlora.storage.state import StateError, _header, read_state, write_state
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from tests.trees import same

BROKEN_FILES = 1000
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.complex64]
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Leaf:
    value: Any


@dataclass(frozen=True, slots=True)
class Pair:
    left: Any
    right: Any = None


@dataclass(frozen=True)
class Positive:
    number: int

    def __post_init__(self):
        if self.number < 1:
            raise ValueError(f"expected a positive number, got {self.number}")


@dataclass(frozen=True)
class Example:
    name: str
    step: int
    rate: float
    tensors: Any


CLASSES = [Leaf, Pair, Positive, Example, Adapter, Factors]


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
    return tmp_path / "new" / "state.pt"


def write(path, value, classes=CLASSES, **options):
    write_state(path, value, classes, kind="example", version=2, **options)


def read(path, classes=CLASSES):
    return read_state(path, classes, kind="example", version=2)


def round_trip(path, value):
    write(path, value, durable=False)
    return read(path)


def write_payload(path, payload):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(_header("example", 2, payload) + payload)


def saved(value):
    buffer = BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def rezipped(payload, compression=zipfile.ZIP_STORED, **changed):
    """The archive with other content in some of its parts."""
    buffer = BytesIO()
    with zipfile.ZipFile(BytesIO(payload)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(Path(name).stem, old.read(name)))
    return buffer.getvalue()


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    whole = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype) if size else torch.empty(0, dtype=dtype)
    return draw(st.sampled_from([lambda one: one, lambda one: one.mT if one.ndim > 1 else one]))(whole.reshape(shape))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
trees = st.recursive(
    scalars | tensors(),
    lambda parts: st.one_of(
        st.lists(parts, max_size=4),
        st.lists(parts, max_size=4).map(tuple),
        st.dictionaries(st.text() | st.integers(), parts, max_size=4),
        parts.map(Leaf),
        st.builds(Pair, parts, parts),
    ),
    max_leaves=12,
)


@quick
@given(trees)
def test_every_tree_comes_back_the_same(tmp_path_factory, tree):
    assert same(tree, round_trip(tmp_path_factory.getbasetemp() / "tree.pt", tree))


def test_a_value_comes_back_and_nothing_else_is_left(path):
    write(path, example())
    assert same(example(), read(path))
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_equal_values_make_equal_files(tmp_path):
    for name in "abcdef":
        write(tmp_path / name, example(), durable=False)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


def test_views_are_written_without_what_is_around_them_and_shared_tensors_once(path):
    whole = torch.arange(240_000.0).reshape(2, 3, 40_000)
    views = [whole[1, 1, :5], whole.mT[0, :3], whole[:, ::2, 0], whole[0, 0, 0].expand(5, 2), whole[:0]]
    assert same(views, round_trip(path, views))
    assert path.stat().st_size < 20_000
    shared = round_trip(path, [whole, {"again": whole}, Leaf(whole)])
    assert path.stat().st_size < 1.1 * whole.nbytes
    assert shared[0].data_ptr() == shared[1]["again"].data_ptr() == shared[2].value.data_ptr()


def test_views_that_torch_resolves_late_are_resolved(path):
    lazy = torch.tensor([1 + 2j, 3 - 4j]).conj()
    restored = round_trip(path, [lazy, lazy.imag, torch.nn.Parameter(torch.ones(2, 3))])
    assert restored[0].tolist() == [1 - 2j, 3 + 4j]
    assert restored[1].tolist() == [-2, 4]
    assert type(restored[2]) is Tensor
    assert not restored[2].requires_grad


def test_the_project_s_own_values_come_back(path):
    factors = Factors(B=torch.randn(2, 5, 3), A=torch.randn(2, 3, 7))
    adapter = Adapter(MappingProxyType({"attn.qkv": factors}), torch.randn(4, 6))
    assert same(adapter, round_trip(path, adapter))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_the_state_of_an_optimizer_comes_back_and_goes_on(path, optimizer):
    def make():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, optimizer(model.parameters(), lr=0.1, weight_decay=0.01)

    def step(model, rule):
        rule.zero_grad()
        model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
        rule.step()

    model, rule = make()
    step(model, rule)
    value = {"model": model.state_dict(), "rule": rule.state_dict()}
    restored = round_trip(path, value)
    assert same(value, restored)
    other, other_rule = make()
    other.load_state_dict(restored["model"])
    other_rule.load_state_dict(restored["rule"])
    step(model, rule)
    step(other, other_rule)
    assert same(model.state_dict(), dict(other.state_dict()))


def test_a_mapping_comes_back_as_dict_in_its_order(path):
    restored = round_trip(path, OrderedDict([("b", 1), (2, "two"), ("2", "text"), ("a", None)]))
    assert type(restored) is dict
    assert list(restored.items()) == [("b", 1), (2, "two"), ("2", "text"), ("a", None)]


class Colour(enum.IntEnum):
    RED = 1


cyclic: list[Any] = []
cyclic.append(cyclic)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": [1, {2}]}, r"state\['a'\]\[1\] is a builtins.set"),
        (Leaf(object()), r"state.value is a builtins.object"),
        (Leaf, "is a builtins.type"),
        (Colour.RED, "Colour"),
        (namedtuple("Point", "x")(1), "Point"),
        (torch.ones(2).numpy()[0], "numpy.float32"),
        (b"bytes", "builtins.bytes"),
        pytest.param(10**5000, "builtins.int", id="huge"),
        ({True: 1}, "the key True"),
        ({None: "Leaf"}, "the key None"),
        ({(1, 2): 1}, r"the key \(1, 2\)"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "cannot be saved"),
        (cyclic, "contains itself"),
    ],
)
def test_what_would_not_come_back_is_refused_and_leaves_no_file(path, value, sentence):
    with pytest.raises(StateError, match=f"state.pt' cannot be written: .*{sentence}"):
        write(path, value)
    assert not path.parent.exists()


def test_a_class_that_is_not_listed_is_refused(path):
    with pytest.raises(StateError, match=r"state\[0\] is a .*Pair, which is not among"):
        write(path, [Pair(1)], [Leaf])
    write(path, [Pair(1)])
    with pytest.raises(StateError, match=r"state.pt' cannot be used: the class Pair is not among"):
        read(path, [Leaf])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({None: "Path"}, "the class Path is not among"),
        ({None: ["Leaf"], "value": 1}, "damaged"),
        ({None: "Pair", "right": 1}, "Pair has the fields"),
        ({None: "Pair", "left": 1, "right": 2, "middle": 3}, "Pair has the fields"),
        ({None: "Positive", "number": 0}, "Positive cannot be made .* expected a positive number"),
        ({"a": {1, 2}}, "it holds a set"),
        (OrderedDict(a=1), "it holds a OrderedDict"),
        ({(1,): 1}, "the key"),
        (torch.nn.Parameter(torch.ones(2)), "it holds a Parameter"),
        (torch.ones(3).expand(5, 3), "not dense"),
        (torch.ones(1).expand(10**15), "not dense"),
        (torch.ones(5)[:2], "not dense"),
        (torch.eye(3).to_sparse(), "not dense"),
        (torch.ones(2, 3).mT, "not dense"),
    ],
)
def test_what_no_state_holds_is_refused(path, value, sentence):
    write_payload(path, saved(value))
    with pytest.raises(StateError, match=f"state.pt' cannot be used: .*{sentence}"):
        read(path)


def test_a_file_from_before_a_field_had_a_default_is_read(path):
    write_payload(path, saved({None: "Pair", "left": 1}))
    assert read(path) == Pair(1, None)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_file_is_refused_and_not_run(path, protocol):
    target = path.parent / "harm"
    honest, bomb = saved({"a": torch.ones(2)}), pickle.dumps({"a": Bomb(target)}, protocol=protocol)
    for payload in (bomb, rezipped(honest, data=bomb), saved(Bomb(target)), saved(Leaf(Bomb(target)))):
        write_payload(path, payload)
        with pytest.raises(StateError, match=r"state.pt' cannot be used: it is damaged"):
            read(path)
        assert not target.exists()


def test_a_file_that_claims_more_than_it_has_is_refused(path):
    honest = saved({"a": torch.arange(10.0)})
    with zipfile.ZipFile(BytesIO(honest)) as archive:
        program = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    claims = program.replace(b"K\n", b"J" + (2**30).to_bytes(4, "little"))
    assert claims != program
    write_payload(path, rezipped(honest, data=claims))
    with pytest.raises(StateError, match="damaged"):
        read(path)


def test_a_compressed_file_is_refused(path):
    write_payload(path, rezipped(saved({"a": torch.zeros(10**6)}), zipfile.ZIP_DEFLATED))
    with pytest.raises(StateError, match="a part is compressed"):
        read(path)


def test_a_file_whose_parts_hold_each_other_many_times_over_is_refused(path):
    value = []
    for _ in range(60):
        value = [value] * 10
    for many in (value, cyclic):
        write_payload(path, saved(many))
        with pytest.raises(StateError, match="damaged"):
            read(path)


def broken(content: bytes, chance: random.Random) -> bytes:
    """Cut the file, flip one to three bits anywhere or in the beginning, or set a byte."""
    way, damaged = chance.randrange(4), bytearray(content)
    if way == 0:
        return content[: chance.randrange(len(content))]
    if way == 1:
        place = chance.randrange(len(content))
        damaged[place] = chance.choice([byte for byte in range(256) if byte != content[place]])
        return bytes(damaged)
    for place in chance.sample(range(200 if way == 2 else len(content)), chance.randint(1, 3)):
        damaged[place] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def refused(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        read(path)
    except StateError as error:
        return str(path) in str(error) and "\n" not in str(error)
    return False


def test_a_broken_file_is_refused(path):
    write(path, example())
    content, chance = path.read_bytes(), random.Random(0)
    assert all(refused(path, broken(content, chance)) for _ in range(BROKEN_FILES))


def test_one_flipped_bit_is_refused_wherever_it_is(path):
    write(path, {"a": 1, "b": torch.tensor([1.5])})
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        assert refused(path, damaged), place


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_the_header_counts(path, bit):
    write(path, 1)
    content = path.read_bytes()
    for place in range(content.index(b"\n") + 1):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        assert refused(path, damaged), place


def test_another_kind_or_version_is_refused(path):
    write(path, example())
    with pytest.raises(StateError, match="it is of version 2, this program reads version 3"):
        read_state(path, CLASSES, kind="example", version=3)
    with pytest.raises(StateError, match="it holds a 'example', expected a 'other'"):
        read_state(path, CLASSES, kind="other", version=2)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff" * 8, b"a b c d\n", b"hyperlora-state\n", saved(1), bytes(99)])
def test_a_file_of_another_origin_is_refused(path, content):
    path.parent.mkdir()
    assert refused(path, content)


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(StateError, match=r"'.*absent' cannot be read: No such file"):
        read(tmp_path / "absent")
    with pytest.raises(StateError, match="cannot be read: Is a directory"):
        read(tmp_path)


def old_file_stays(path, reason):
    with pytest.raises(StateError, match=f"state.pt' cannot be written: {reason}"):
        write(path, example(4))
    assert same(example(3), read(path))
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(("step", "code"), [("fsync", errno.EIO), ("fdopen", errno.EMFILE), ("replace", errno.ENOSPC)])
def test_any_failure_on_the_way_leaves_the_old_file(path, monkeypatch, step, code):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    write(path, example(3))
    monkeypatch.setattr(Path if step == "replace" else files.os, step, fail)
    old_file_stays(path, os.strerror(code))


def test_a_real_refusal_of_the_system_leaves_the_old_file(path):
    write(path, example(3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        old_file_stays(path, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_interrupt_leaves_no_temporary_file(path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path, example())
    assert list(path.parent.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match=r"file/state.*cannot be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "state", 1)

"""Tests of models/state_tree.py: whatever is packed comes back the same, and nothing else is ever made."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from hyperlora.storage.state_tree import DTYPES, StateError, pack, unpack
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@dataclass(frozen=True)
class Leaf:
    value: Any


@dataclass(frozen=True, slots=True)
class Pair:
    left: Any
    right: Any = None


@dataclass
class Derived:
    given: int
    counted: int = field(init=False, default=0)


@dataclass(frozen=True)
class Positive:
    number: int

    def __post_init__(self):
        if self.number < 1:
            raise ValueError(f"expected a positive number, got {self.number}")


CLASSES = [Leaf, Pair, Derived, Positive, Adapter, Factors]


def same(left: Any, right: Any) -> bool:
    """Equal in type and value; tensors and floats bit for bit, mappings in their order whatever their type."""
    if isinstance(left, Tensor):
        alike = (left.dtype, left.shape) == (right.dtype, right.shape)
        return alike and torch.equal(*(one.reshape(-1).contiguous().view(torch.uint8) for one in (left, right)))
    if isinstance(left, Mapping):
        return type(right) is dict and list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if type(left) is not type(right):
        return False
    if is_dataclass(left):
        return all(same(getattr(left, part.name), getattr(right, part.name)) for part in fields(left))
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return math.isnan(left) == math.isnan(right) and (math.isnan(left) or repr(left) == repr(right))
    return left == right


def round_trip(value: Any, classes=CLASSES) -> Any:
    """Through JSON and safetensors, as a file would do it."""
    tensors, description = pack(value, classes)
    return unpack(load(save(tensors)), json.loads(json.dumps(description, allow_nan=False)), classes)


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    size = math.prod(shape) * dtype.itemsize
    raw = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    whole = (raw % 2).bool() if dtype is torch.bool else raw.view(dtype) if size else torch.empty(0, dtype=dtype)
    return draw(st.sampled_from([lambda one: one, lambda one: one.mT if one.ndim > 1 else one]))(whole.reshape(shape))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
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
def test_every_tree_comes_back_the_same(tree):
    assert same(tree, round_trip(tree))


def test_tensors_that_share_storage_are_kept_apart():
    whole = torch.arange(24.0).reshape(2, 3, 4)
    value = [whole, whole, whole[1], whole.mT, whole[:, ::2], whole.expand(5, 2, 3, 4), whole[:0]]
    packed, _ = pack(value)
    pointers = [tensor.untyped_storage().data_ptr() for tensor in packed.values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)
    assert same(value, round_trip(value))


def test_views_that_torch_resolves_late_are_resolved():
    lazy = torch.tensor([1 + 2j, 3 - 4j]).conj()
    value = [lazy, lazy.imag, torch.nn.Parameter(torch.ones(2, 3))]
    restored = round_trip(value)
    assert restored[0].tolist() == [1 - 2j, 3 + 4j]
    assert restored[1].tolist() == [-2, 4]
    assert type(restored[2]) is Tensor
    assert not restored[2].requires_grad


def test_the_project_s_own_values_come_back():
    factors = Factors(B=torch.randn(2, 5, 3), A=torch.randn(2, 3, 7))
    adapter = Adapter(MappingProxyType({"attn.qkv": factors}), torch.randn(4, 6))
    assert same(adapter, round_trip(adapter))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_the_state_of_an_optimizer_comes_back_and_goes_on(optimizer):
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
    restored = round_trip(value)
    assert same(value, restored)
    other, other_rule = make()
    other.load_state_dict(restored["model"])
    other_rule.load_state_dict(restored["rule"])
    step(model, rule)
    step(other, other_rule)
    assert same(model.state_dict(), dict(other.state_dict()))


def test_a_field_that_init_does_not_take_comes_back():
    value = Derived(3)
    value.counted = 7
    assert round_trip(value) == value


def test_a_mapping_comes_back_as_dict_in_its_order():
    restored = round_trip(OrderedDict([("b", 1), (2, "two"), ("2", "text"), ("a", None)]))
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
        ({True: 1}, "the key True"),
        ({(1, 2): 1}, r"the key \(1, 2\)"),
        ("\ud83d\ude00", "surrogate"),
        ({"\ud83d": 1}, "surrogate"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "cannot be saved"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
        (cyclic, "contains itself"),
    ],
)
def test_what_would_not_come_back_is_refused(value, sentence):
    with pytest.raises(StateError, match=sentence):
        pack(value)


def test_a_class_that_the_reader_would_refuse_is_refused_when_packing():
    with pytest.raises(StateError, match=r"state\[0\] is a Pair, which is not among"):
        pack([Pair(1)], [Leaf])


def pair(**parts):
    return {"object": ["Pair", parts]}


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"object": ["Path", {}]}, "the class Path is not among"),
        (pair(left=1), "Pair has the fields"),
        (pair(left=1, right=2, middle=3), "Pair has the fields"),
        ({"tensor": "7"}, "the tensor '7' is missing"),
        ({"object": ["Positive", {"number": 0}]}, "Positive cannot be made .* expected a positive number"),
        ({"float": "1.0"}, "unknown part 'float'"),
        ({"set": [1]}, "unknown part 'set'"),
        ({}, "malformed"),
        ({"tensor": []}, "malformed"),
        ({"tuple": 3}, "malformed"),
        ({"dict": [[1]]}, "malformed"),
        ({"dict": [[[], 1]]}, "malformed"),
        ({"object": []}, "malformed"),
        ((1, 2), "malformed"),
    ],
)
def test_a_description_of_another_kind_is_refused(description, sentence):
    with pytest.raises(StateError, match=sentence):
        unpack({"0": torch.ones(1)}, description, CLASSES)


def test_two_classes_of_one_name_are_refused():
    other = dataclass(type("Leaf", (), {"__annotations__": {"value": int}}))
    with pytest.raises(StateError, match="have one name"):
        unpack({}, None, [Leaf, other])

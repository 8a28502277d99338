from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flwr.app import Array

from hyperlora.config.settings import WIRE_DTYPES
from hyperlora.messages.codec import ProtocolError, count_bytes
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.number_formats import pack, packed_shapes, unpack
from hyperlora.messages.plan import LocalPlan, Start
from hyperlora.messages.train import TrainReply, TrainRequest
from models.adapters.adapter import HEAD, Adapter
from tests.builders import make_adapter, make_metrics

FRESH = make_adapter(5)
SHAPES = {name: tuple(one.shape) for name, one in make_adapter(0).tensors().items()}
LARGEST_ERROR = {"float32": 0.0, "float16": 5e-4, "int8": 0.51 / 127, "int4": 0.51 / 7}


def request_of(wire: str) -> TrainRequest:
    return TrainRequest("a", 3, 10, Start(make_adapter(0), wire=wire).fitted(0))


def reply_to(request: TrainRequest, size: float, client: str = "a") -> TrainReply:
    noise = make_adapter(9).tensors()
    end = {name: value + size * noise[name] for name, value in request.start.adapter.tensors().items()}
    return TrainReply(client, 3, Adapter.from_tensors(end), make_metrics())


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_every_number_is_off_by_at_most_a_rounding_of_its_row(wire: str) -> None:
    tensors = make_adapter(0).tensors()
    packed = pack(tensors, wire)
    assert {name: (tuple(one.shape), str(one.dtype)[6:]) for name, one in packed.items()} == packed_shapes(SHAPES, wire)
    for name, value in unpack(packed, wire, SHAPES).items():
        assert value.dtype == torch.float32
        assert float((value - tensors[name]).abs().max()) <= LARGEST_ERROR[wire] * float(tensors[name].abs().max())


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_both_sides_read_the_same_start(wire: str) -> None:
    request = request_of(wire)
    read = TrainRequest.decode(request.encode(), FRESH)
    assert read.start.wire == wire
    for name, value in read.start.adapter.tensors().items():
        torch.testing.assert_close(value, request.start.adapter.tensors()[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("wire", WIRE_DTYPES)
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_movement_loses_no_more_than_its_own_rounding_however_small_it_is(wire: str, size: float) -> None:
    request = request_of(wire)
    reply = reply_to(request, size)
    read = TrainReply.decode(reply.encode(request), request)
    for name, value in read.end.tensors().items():
        largest = float((reply.end.tensors()[name] - request.start.adapter.tensors()[name]).abs().max())
        error = float((value - reply.end.tensors()[name]).abs().max())
        assert error <= 2 * LARGEST_ERROR[wire] * largest + 1e-6


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_roundings_of_many_clients_average_out(wire: str) -> None:
    request = request_of(wire)
    ends = []
    for index in range(200):
        client = f"client-{index}"
        asked, reply = replace(request, client_id=client), reply_to(request, 1.0, client)
        ends.append(TrainReply.decode(reply.encode(asked), asked).end.head)
    exact = reply_to(request, 1.0).end.head
    one, mean = (float((value - exact).norm()) for value in (ends[0], torch.stack(ends).mean(dim=0)))
    assert mean < one / 5


def test_the_same_client_and_round_are_rounded_alike() -> None:
    request = request_of("int8")
    first, again = (TrainReply.decode(reply_to(request, 1.0).encode(request), request).end for _ in range(2))
    assert torch.equal(first.head, again.head)


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_a_large_bias_does_not_coarsen_the_weights_of_a_head(wire: str) -> None:
    head = torch.cat([0.1 * torch.randn(3, 5), torch.tensor([[-9.0], [0.5], [4.0]])], dim=1)
    read = unpack(pack({HEAD: head}, wire), wire, {HEAD: (3, 6)})[HEAD]
    assert torch.equal(read[:, -1], head[:, -1])
    assert float((read - head).abs().max()) <= 0.51 / 127 * float(head[:, :-1].abs().max())


def test_narrow_formats_are_smaller() -> None:
    tensors = {"lora_A": torch.randn(12, 8, 768), "lora_B": torch.randn(12, 3072, 8)}
    sizes = [sum(one.nbytes for one in pack(tensors, wire).values()) for wire in WIRE_DTYPES]
    assert sizes[1] == sizes[0] / 2
    assert sizes[2] <= sizes[0] / 3.9
    assert sizes[3] <= sizes[0] / 7.8
    contents = [replace(request_of(wire), signature_digest="x").encode() for wire in ("float32", "float16")]
    assert count_bytes(contents[1]) < count_bytes(contents[0])


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_zeros_stay_zeros(wire: str) -> None:
    zeros = {"x": torch.zeros(3, 5)}
    assert torch.equal(unpack(pack(zeros, wire), wire, {"x": (3, 5)})["x"], zeros["x"])


def test_whole_numbers_up_to_seven_travel_exactly_in_int4() -> None:
    numbers = {"x": torch.arange(-7.0, 8.0), "y": torch.tensor([[7.0, -7.0, 3.0], [1.0, 0.0, 7.0]])}
    read = unpack(pack(numbers, "int4"), "int4", {"x": (15,), "y": (2, 3)})
    assert all(torch.equal(read[name], one) for name, one in numbers.items())


def test_evaluations_travel_in_the_same_formats() -> None:
    sent = EvaluateRequest("a", 1, [0], Start(make_adapter(0), wire="int8"))
    read = EvaluateRequest.decode(sent.encode(), FRESH)
    assert read.start.wire == "int8"
    assert torch.equal(read.start.adapter.head, sent.start.fitted(0).adapter.head)


def test_what_is_not_in_the_declared_format_is_refused() -> None:
    content = request_of("int8").encode()
    with pytest.raises(ProtocolError, match="missing or unknown"):
        TrainReply.decode(reply_to(request_of("int8"), 1.0).encode(), request_of("int8"))
    content["config"]["wire"] = "int2"
    with pytest.raises(ProtocolError, match="travel as 'int2'"):
        TrainRequest.decode(content, FRESH)
    content["config"]["wire"] = "float16"
    with pytest.raises(ProtocolError, match="missing or unknown"):
        TrainRequest.decode(content, FRESH)
    content = request_of("int8").encode()
    scale = content["arrays"]["head.scale"].numpy().copy()
    scale[0] = float("nan")
    content["arrays"]["head.scale"] = Array(scale)
    with pytest.raises(ProtocolError, match="NaN"):
        TrainRequest.decode(content, FRESH)


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_what_does_not_travel_is_not_rounded(wire: str) -> None:
    plan = LocalPlan(trains="B", down=("B", "head"), up=("B", "head"))
    start = Start(make_adapter(0), plan, wire).fitted(0)
    request = TrainRequest("a", 3, 10, start)
    read = TrainRequest.decode(request.encode(), make_adapter(0)).start.adapter
    for kind, factors in read.low_rank.items():
        assert torch.equal(factors.A, make_adapter(0).low_rank[kind].A)
    reply = replace(reply_to(request, 1.0), up=plan.up)
    end = TrainReply.decode(reply.encode(request), request).end
    assert torch.equal(end.low_rank["mlp.fc1"].A, start.adapter.low_rank["mlp.fc1"].A)
    assert not torch.equal(end.low_rank["mlp.fc1"].B, start.adapter.low_rank["mlp.fc1"].B)

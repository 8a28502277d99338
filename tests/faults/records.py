"""Every decoder of ``protocol`` on mutated records: it returns sound values or raises ProtocolError, nothing else."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict

from hyperlora.config.settings import WIRE_DTYPES
from hyperlora.messages.backbone import BackbonePart, BackboneReceipt, name_backbone, named_backbone
from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.plan import LocalPlan, Start, core_shapes
from hyperlora.messages.questions import Question
from hyperlora.messages.signature import SignatureReply, SignatureRequest
from hyperlora.messages.statistics import StatisticsReply, StatisticsRequest
from hyperlora.messages.sums import SumReply, SumRequest
from hyperlora.messages.train import TrainReply, TrainRequest
from hyperlora.secure_sum.participant import Participant
from models.adapters.adapter import Adapter
from models.adapters.weight_gradient import gradient_shapes
from strategies.federation.client_list import ClientList, ClientListError
from tests.builders import (
    CLASSES,
    SIGNATURE_SIZE,
    make_adapter,
    make_card,
    make_metrics,
    make_statistics,
    moved,
)
from tests.faults.mutation import mutate, mutate_json
from tests.faults.table import Row

FRESH = make_adapter(5, fresh=True)


@dataclass(frozen=True)
class Decoder:
    """How a sound record is made, and read."""

    name: str
    encode: Callable[[], RecordDict]
    decode: Callable[[RecordDict], Any]


def decoders() -> list[Decoder]:
    cards = SignatureReply([make_card("a"), make_card("b", trains=False)], {"c": "it is empty"})
    start = Start(make_adapter(0))
    asked = EvaluateBatch([EvaluateRequest("a", 3, [0, 10], start), EvaluateRequest("a", 3, [0], start, "anchor")])
    own = EvaluateReply("a", 7, [0.5, 1.0], [1.0, 0.1], [0.9, 0.2], [0.1, 0.0], 0.3, [4, 0, 3], [2, 0, 1])
    scored = EvaluateReplies([own, EvaluateReply("a", 7, [0.5], [1.0], [0.9], [0.1], 0.3)])
    classes = StatisticsRequest("a", 3, 4, Start(make_adapter(0)))
    described = StatisticsReply("a", make_statistics("a", rank=4))
    part = BackbonePart("0" * 64, "1" * 64, 40, 8, b"weights of a backbone")
    return [
        Decoder("BackbonePart", part.encode, BackbonePart.decode),
        Decoder("BackboneReceipt", BackboneReceipt(29).encode, BackboneReceipt.decode),
        Decoder("name of a backbone", _naming_a_backbone, named_backbone),
        Decoder("StatisticsRequest", classes.encode, lambda content: StatisticsRequest.decode(content, FRESH)),
        Decoder("StatisticsReply", described.encode, lambda content: StatisticsReply.decode(content, classes)),
        Decoder("SignatureRequest", SignatureRequest("abc").encode, SignatureRequest.decode),
        Decoder(
            "SignatureReply",
            cards.encode,
            lambda content: SignatureReply.decode(content, signature_size=SIGNATURE_SIZE, num_classes=CLASSES),
        ),
        *_sum_decoders(),
        Decoder("EvaluateRequest", asked.encode, lambda content: EvaluateBatch.decode(content, FRESH)),
        Decoder("EvaluateReplies", scored.encode, lambda content: EvaluateReplies.decode(content, asked)),
        *(one for kind, request in train_requests().items() for one in _train_decoders(kind, request)),
    ]


def _sum_decoders() -> Iterator[Decoder]:
    own = Participant("a", 3).keys()
    question = Question("moments", {"anchor head": torch.ones(2, 3)})
    asked = SumRequest("a", 3, "one", "masked", {"a": own}, {"b": b"sealed"}, 5, question, {"b": b"signed"}, ("c",))
    keys, masked = SumRequest("a", 3, "one", "keys"), SumRequest("a", 3, "one", "masked", clients=5)
    vector = SumReply("a", "one", "masked", masked=np.arange(7, dtype=np.uint32))
    yield Decoder("SumRequest", asked.encode, SumRequest.decode)
    yield Decoder(
        "SumReply, keys", SumReply("a", "one", "keys", asdict(own)).encode, lambda c: SumReply.decode(c, keys)
    )
    yield Decoder("SumReply, masked", vector.encode, lambda content: SumReply.decode(content, masked))


def _naming_a_backbone() -> RecordDict:
    content = SignatureRequest("abc").encode()
    name_backbone(content, "2" * 64)
    return content


def train_requests() -> dict[str, TrainRequest]:
    """Return one request for each wire format, and one for each kind of plan."""
    start = make_adapter(0)
    frame = replace(make_adapter(4, rank=5), head=0 * start.head)
    core = {kind: torch.ones(shape) for kind, shape in core_shapes(frame).items()}
    plans = {
        "a core": LocalPlan(trains="core", up=("head",), frame=frame, core=core),
        "a gradient of the weights": LocalPlan(trains="head", gradient_rank=3),
        "a base": LocalPlan(base=replace(make_adapter(3, rank=3), head=0 * start.head)),
        "B alone": LocalPlan(trains="B", down=("B", "head"), up=("B", "head"), personal=True),
    }
    wires = {wire: TrainRequest("a", 3, 10, Start(start, wire=wire).fitted(0)) for wire in WIRE_DTYPES}
    wires["a budget"] = TrainRequest("a", 3, 10, Start(start).fitted(0, 600))
    return wires | {name: TrainRequest("a", 3, 10, Start(start, plan)) for name, plan in plans.items()}


def _train_decoders(kind: str, request: TrainRequest) -> Iterator[Decoder]:
    end, signature = moved(request.start.adapter, "a", 1), make_card("b").signature
    plan = request.start.plan
    shapes = gradient_shapes(end, plan.gradient_rank) if plan.gradient_rank else {}
    gradient = {name: torch.ones(shape) for name, shape in shapes.items()}
    core = {name: 2 * one for name, one in plan.core.items()}
    reply = TrainReply("a", 3, end, make_metrics(), gradient, signature, core, plan.up)
    yield Decoder(f"TrainRequest, {kind}", request.encode, lambda content: TrainRequest.decode(content, FRESH))
    yield Decoder(
        f"TrainReply, {kind}", lambda: reply.encode(request), lambda content: TrainReply.decode(content, request)
    )


def list_row(tries: int, chance: random.Random) -> Row:
    """Read mutated lists of clients (clients.json): refused by ClientListError, or a list."""
    text, wrong, refused = json.dumps(ClientList(["x", "y", "z"], {"a": make_card("a")}).as_json()), "", 0
    for _ in range(tries):
        value = json.loads(text)
        mutate_json(value, chance)
        try:
            ClientList.from_json(value)
        except ClientListError:
            refused += 1
        except Exception as error:
            wrong = wrong or f"{type(error).__name__}: {error}"
    seen = wrong or f"{refused} refused, the others read"
    return Row("mutated lists of clients", "refused with a ClientListError, or read", seen, not wrong, tries)


def objection(decoder: Decoder, chance: random.Random) -> tuple[bool, str]:
    """Decode one mutated record; return whether it was refused, and what is wrong with that (nothing: empty)."""
    content = decoder.encode()
    mutate(content, chance)
    try:
        value = decoder.decode(content)
    except ProtocolError as error:
        return True, "" if str(error) else "no sentence"
    except Exception as error:
        return True, f"{type(error).__name__}: {error}"
    return False, "" if sound(value) else "not finite"


def sound(value: Any) -> bool:
    """Tell whether all tensors inside a message are finite."""
    if isinstance(value, torch.Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, Adapter):
        return all(sound(one) for one in value.tensors().values())
    if isinstance(value, dict):
        return all(sound(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(sound(one) for one in value)
    return all(sound(one) for one in vars(value).values()) if hasattr(value, "__dict__") else True


def record_rows(tries: int, seed: int = 0) -> Iterator[Row]:
    """Try ``tries`` mutated records on the decoders in turn, and a twentieth of that on a list of clients."""
    chance, known = random.Random(seed), decoders()
    for index, decoder in enumerate(known):
        count = len(range(index, tries, len(known)))
        outcomes = [objection(decoder, chance) for _ in range(count)]
        wrong = [reason for _, reason in outcomes if reason]
        seen = wrong[0] if wrong else f"{sum(refused for refused, _ in outcomes)} refused, the others sound"
        yield Row(f"mutated {decoder.name}", "refused with a ProtocolError, or sound", seen, not wrong, count)
    yield list_row(max(1, tries // 20), chance)

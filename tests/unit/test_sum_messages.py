"""The messages of secure sums: they come back as they were sent, and what is none is refused in one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hyperlora.config.schema import RunConfig
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.questions import EXACT_KINDS, Question, Sizes, layout, public_anchor, public_clusters
from hyperlora.messages.sums import SumReply, SumRequest
from hyperlora.secure_sum.participant import Participant
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from models.sums.clusters import Clusters

ANCHOR = Adapter({"qkv": Factors(B=torch.ones(2, 6, 2), A=torch.ones(2, 2, 5))}, torch.ones(3, 5))
CLUSTERS = Clusters(torch.zeros(4), torch.ones(4), torch.eye(2, 4), torch.tensor([5.0, 6.0]))
BY_B = "movement of B"
REQUEST = SumRequest(
    "anna", 2, "2.1.members", "masked", clients=9, question=Question("members", public_clusters(CLUSTERS))
)


def test_a_request_comes_back_as_it_was_sent() -> None:
    public = {name: Participant(name, 3).keys() for name in ("anna", "ben")}
    for request in (
        SumRequest("anna", 2, "one", "keys"),
        SumRequest("anna", 2, "one", "shares", public=public),
        SumRequest("anna", 2, "one", "agree", answered={"anna": b"signed", "cleo": b""}, dropped=("ben",)),
    ):
        assert SumRequest.decode(request.encode()) == request
    found = SumRequest.decode(REQUEST.encode())
    assert found.question is not None
    assert (found.client_id, found.clients, found.question.kind) == ("anna", 9, "members")
    assert torch.equal(found.question.clusters.centroids, CLUSTERS.centroids)


def test_a_reply_comes_back_as_it_was_sent() -> None:
    vector = np.arange(4, dtype=np.uint32)
    found = SumReply.decode(SumReply("anna", REQUEST.name, "masked", masked=vector).encode(), REQUEST)
    np.testing.assert_array_equal(found.vector, vector)
    asked = SumRequest("anna", 2, "one", "shares")
    assert SumReply.decode(SumReply("anna", "one", "shares", {"ben": b"x"}).encode(), asked).texts == {"ben": b"x"}


def reply(step: str = "masked", body: str = "{}", array: Any = None, **changed: str) -> RecordDict:
    config = {"client_id": "anna", "name": REQUEST.name, "step": step, "body": body, **changed}
    good = SumReply("anna", REQUEST.name, step).encode()["config"]
    assert isinstance(good, ConfigRecord)
    records: dict[str, Any] = {"config": ConfigRecord({**good, **config})}
    if array is not None:
        records["arrays"] = ArrayRecord({"masked": Array(array)})
    return RecordDict(records)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (reply(name="another"), "got one to another"),
        (reply(client_id="ben"), "got one to another"),
        (reply(body="nonsense"), "cannot be read"),
        (reply(body="[]"), "cannot be read"),
        (reply(body="[" * 10**5), "cannot be read"),
        (reply(body='{"ben": "xyz"}'), "not written as hexadecimal digits"),
        (reply(), "no ArrayRecord"),
        (reply(array=np.zeros(4, np.float32)), "one masked vector of integers"),
        (reply(array=np.zeros((2, 2), np.uint32)), "one masked vector of integers"),
    ],
)
def test_a_reply_that_is_none_is_refused(content: RecordDict, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        SumReply.decode(content, REQUEST)


def test_keys_that_are_missing_are_refused() -> None:
    with pytest.raises(ProtocolError, match="two public keys"):
        SumReply.decode(reply("keys", json.dumps({"masks": "00"})), SumRequest("anna", 2, REQUEST.name, "keys"))


def test_a_request_that_is_none_is_refused() -> None:
    content = SumRequest("anna", 2, "one", "keys").encode()
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    for name, value, reason in (("step", "all", "no step"), ("clients", -1, "cannot be asked"), ("kind", "raw", "no")):
        with pytest.raises(ProtocolError, match=reason):
            SumRequest.decode(RecordDict({"config": ConfigRecord({**config, name: value})}))
    with pytest.raises(ProtocolError, match="there is no sum of 'raw'"):
        Question("raw", {})


@pytest.mark.parametrize(
    ("kind", "part"),
    [("movement of B", "anchor"), ("members", "clusters"), ("losses", "groups"), ("scores", "scored_in")],
)
def test_a_question_without_what_it_needs_is_refused(kind: str, part: str) -> None:
    with pytest.raises(ProtocolError, match="needs"):
        getattr(Question(kind, {}), part)


@pytest.mark.parametrize("mixture", [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0), (0.5, math.inf), (0.5, math.nan), (0.5,)])
def test_a_mixture_of_heads_that_is_none_is_refused(mixture: tuple[float, ...]) -> None:
    assert Question("losses", {"mixture": torch.tensor([0.5, 0.25])}).mixture == (0.5, 0.25)
    with pytest.raises(ProtocolError, match="needs a share of the head and a scale"):
        _ = Question("losses", {"mixture": torch.tensor(mixture)}).mixture


@pytest.mark.parametrize("kind", [one for one in EXACT_KINDS if one != "scores"])
def test_both_sides_make_the_same_layout_of_an_answer(kind: str) -> None:
    question = Question(kind, {**public_clusters(CLUSTERS), **public_anchor(ANCHOR)})
    sizes = Sizes(width=4, fresh=ANCHOR, steps=2, clients=9)
    form = layout(question, sizes)
    assert form.length == sum(torch.Size(part.shape).numel() for part in form.parts.values()) > 0
    assert all(part.bound > 0 for part in form.parts.values())
    content = SumRequest("anna", 1, "one", "masked", clients=9, question=question).encode()
    assert layout(SumRequest.decode(content).question, sizes) == form  # type: ignore[arg-type]


def test_a_question_is_known_again_by_its_digest_and_no_other_is() -> None:
    one = Question("movement of B", {"anchor head": torch.arange(6.0).reshape(2, 3)}, 2.0)
    sent = SumRequest("a", 1, "s", "masked", clients=7, question=one).encode()
    received = SumRequest.decode(sent).question
    assert received is not None
    assert received.digest(7) == one.digest(7)
    others = [
        replace(one, noise=1.0),
        replace(one, kind="movement of A"),
        replace(one, public={"anchor head": torch.arange(6.0).reshape(3, 2)}),
        replace(one, public={"anchor head": torch.arange(6.0).reshape(2, 3) + 1e-3}),
    ]
    assert len({one.digest(7), one.digest(8), *(other.digest(7) for other in others)}) == 6
    assert len({one.digest(7), one.digest(7, 1, "a", "b"), one.digest(7, 2, "a", "b"), one.digest(7, 1, "a", "c")}) == 4


def test_settings_of_a_run_are_known_again_by_their_digest_but_for_those_of_one_machine() -> None:
    plain = RunConfig()
    machine = {"data.path": "/data", "model.weights": "/w", "train.device": "cpu", "run.resume": True}
    assert plain.with_values(machine).digest() == plain.digest()
    others = {"train.local-steps": 0, "lora.rank": 2, "seed": 5, "privacy.least-clients": 3}
    assert len({plain.with_values({name: value}).digest() for name, value in others.items()} | {plain.digest()}) == 5


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 of an archive", b"\x93NUMPY\x01\x00", b"nothing like it"])
@pytest.mark.parametrize("stype", ["numpy.ndarray", "something else"])
def test_a_masked_vector_that_is_none_costs_its_own_client(data: bytes, stype: str) -> None:
    request = SumRequest("anna", 1, "one", "masked", clients=5)
    content = SumReply("anna", "one", "masked", masked=np.zeros(3, np.uint32)).encode()
    content["arrays"] = ArrayRecord({"masked": Array(dtype="uint32", shape=(3,), stype=stype, data=data)})
    with pytest.raises(ProtocolError):
        SumReply.decode(content, request)

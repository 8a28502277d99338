from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from hyperlora.messages.batch import EvaluateBatch, EvaluateReplies
from hyperlora.messages.codec import ProtocolError, config_record, content_digest, count_bytes
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import ClientCard, SignatureReply, SignatureRequest
from hyperlora.messages.train import TrainReply, TrainRequest
from tests.builders import CLASSES, SIGNATURE_SIZE, WIDTH, make_adapter, make_card, make_metrics

REQUEST = TrainRequest("a", 3, 10, Start(make_adapter(0)))
REPLY = TrainReply("a", 3, make_adapter(1), make_metrics())


def equal(left, right) -> bool:
    return all(torch.equal(one, right.tensors()[name]) for name, one in left.tensors().items())


def test_train_messages_survive_the_wire() -> None:
    request = TrainRequest.decode(REQUEST.encode(), make_adapter(5))
    assert (request.client_id, request.server_round, request.local_steps) == ("a", 3, 10)
    assert equal(request.start.adapter, REQUEST.start.adapter)
    reply = TrainReply.decode(REPLY.encode(), REQUEST)
    assert reply.metrics == REPLY.metrics
    assert equal(reply.end, REPLY.end)


def test_a_new_signature_survives_the_wire() -> None:
    signature = make_card("a").signature
    reply = TrainReply.decode(replace(REPLY, signature=signature).encode(), REQUEST)
    assert reply.signature is not None
    assert reply.signature.digest() == signature.digest()
    assert TrainReply.decode(REPLY.encode(), REQUEST).signature is None


def test_evaluate_messages_survive_the_wire() -> None:
    request = EvaluateRequest("a", 3, [0, 10], Start(make_adapter(0)))
    assert list(EvaluateRequest.decode(request.encode(), make_adapter(0)).steps) == [0, 10]
    reply = EvaluateReply("a", 7, [0.5, 1.0], [1.0, 0.1], [0.9, 0.2], [0.1, 0.0], 0.3)
    assert EvaluateReply.decode(reply.encode(), request) == reply


def scored(samples: list[int], hits: list[int]) -> EvaluateReply:
    return EvaluateReply("a", 7, [0.5], [1.0], [0.9], [0.1], 0.3, samples, hits)


def test_all_adapters_that_a_client_scores_travel_in_one_message() -> None:
    parts = [EvaluateRequest("a", 3, [0], Start(make_adapter(seed)), f"track {seed}") for seed in range(12)]
    batch = EvaluateBatch.decode(EvaluateBatch(parts).encode(), make_adapter(5))
    assert [one.track for one in batch.requests] == [one.track for one in parts]
    assert equal(batch.requests[11].start.adapter, parts[11].start.adapter)
    replies = [scored([4, 0, 3], [2, 0, 1]), *(11 * [scored([], [])])]
    read = EvaluateReplies.decode(EvaluateReplies(replies).encode(), batch).replies
    assert (read[0].class_samples, read[0].class_hits) == ([4, 0, 3], [2, 0, 1])
    assert len(read) == 12


def test_a_batch_is_of_one_client_and_a_reply_has_as_many_parts() -> None:
    one, other = (EvaluateRequest(name, 3, [0], Start(make_adapter(0)), name) for name in "ab")
    with pytest.raises(ProtocolError, match="of one client in one round"):
        EvaluateBatch([one, other])
    with pytest.raises(ProtocolError, match="asked for twice"):
        EvaluateBatch([one, one])
    batch = EvaluateBatch([one, replace(one, track="anchor")])
    with pytest.raises(ProtocolError, match="expected 2 replies in one message, got 1"):
        EvaluateReplies.decode(EvaluateReplies([scored([], [])]).encode(), batch)
    with pytest.raises(ProtocolError, match="parts for another one"):
        EvaluateBatch.decode(
            RecordDict({**batch.encode(), "config": config_record(client_id="b", server_round=3)}), FRESH
        )
    gap = {name.replace("1 ", "2 "): record for name, record in batch.encode().items()}
    with pytest.raises(ProtocolError, match="numbered from 0"):
        EvaluateBatch.decode(RecordDict(gap), FRESH)


@pytest.mark.parametrize(
    ("samples", "hits"), [([4, 3, 0], [5, 0, 0]), ([4, 2, 0], [1, 1, 0]), ([8, -1, 0], [1, -1, 0])]
)
def test_hits_by_class_must_be_counts_of_the_test_samples(samples: list[int], hits: list[int]) -> None:
    request = EvaluateRequest("a", 3, [0], Start(make_adapter(0)))
    with pytest.raises(ProtocolError, match="are no counts of 7 samples"):
        EvaluateReply.decode(scored(samples, hits).encode(), request)


def test_signature_messages_survive_the_wire() -> None:
    assert SignatureRequest.decode(SignatureRequest("abc").encode()).fingerprint == "abc"
    reply = SignatureReply([make_card("a"), make_card("b", trains=False)], {"c": "it is empty"})
    again = SignatureReply.decode(reply.encode(), signature_size=SIGNATURE_SIZE, num_classes=CLASSES)
    assert [(card.client_id, card.trains) for card in again.cards] == [("a", True), ("b", False)]
    torch.testing.assert_close(again.cards[0].signature.vector(), reply.cards[0].signature.vector())
    assert again.left_out == {"c": "it is empty"}


def test_a_node_without_clients_can_say_so() -> None:
    again = SignatureReply.decode(SignatureReply([], {}).encode(), signature_size=SIGNATURE_SIZE, num_classes=CLASSES)
    assert again.cards == []


def _with_array(name: str, values: np.ndarray) -> RecordDict:
    content = REPLY.encode()
    content["arrays"][name] = Array(values)
    return content


def _with_metric(name: str, value: float | int) -> RecordDict:
    content = REPLY.encode()
    content["metrics"][name] = value
    return content


def _without(record: str) -> RecordDict:
    content = REPLY.encode()
    del content[record]
    return content


@pytest.mark.parametrize(("samples", "hits"), [([4, 3, 0], [1]), ([7, 0, 0, *[0] * 10**5], [1, 0, 0, *[0] * 10**5])])
def test_hits_are_told_of_every_class_and_of_no_others(samples: list[int], hits: list[int]) -> None:
    request = EvaluateRequest("a", 3, [0], Start(make_adapter(0)))
    with pytest.raises(ProtocolError, match="expected 3 values"):
        EvaluateReply.decode(scored(samples, hits).encode(), request)


FRESH = make_adapter(5)
HEAD = make_adapter(0).head.numpy()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (replace(REPLY, client_id="b").encode(), "expected client 'a' in round 3"),
        (replace(REPLY, server_round=2).encode(), "expected client 'a' in round 3"),
        (_with_array("head", HEAD * np.nan), "NaN"),
        (_with_array("head", HEAD[:, 1:]), "array 'head': expected float"),
        (_with_array("head", HEAD.astype(np.int64)), "array 'head': expected float"),
        (_with_array("surplus", HEAD), "missing or unknown surplus"),
        (_with_metric("num_examples", 0), "num_examples 0"),
        (_with_metric("num_examples", 1.5), "expected int"),
        (_with_metric("start_accuracy", 1.5), "are not shares"),
        (_with_metric("train_loss", float("inf")), "must be finite"),
        (_with_metric("end_loss", 1e300), "must lie between 0 and 1e\\+09"),
        (_with_array("head", HEAD * 0 + np.float32(1e20)), "beyond 65504"),
        (_without("arrays"), "holds no ArrayRecord"),
        (_without("metrics"), "holds no MetricRecord"),
        (RecordDict({"config": ConfigRecord({"version": 99})}), "protocol version 99"),
        (RecordDict(), "holds no ConfigRecord"),
    ],
)
def test_a_broken_train_reply_is_a_protocol_error(content: RecordDict, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        TrainReply.decode(content, REQUEST)


def test_an_array_whose_data_are_not_what_it_declares_is_refused() -> None:
    content = REPLY.encode()
    good = content["arrays"]["head"]
    content["arrays"]["head"] = Array(dtype=good.dtype, shape=good.shape, stype=good.stype, data=good.data[:20])
    with pytest.raises(ProtocolError, match="cannot be read"):
        TrainReply.decode(content, REQUEST)


def test_bytes_are_counted_as_flower_does_and_where_a_list_or_text_is_empty() -> None:
    empty = RecordDict({"config": ConfigRecord({"names": [], "text": ""}), "metrics": MetricRecord({"numbers": []})})
    assert count_bytes(empty) == len("names" + "text" + "numbers")
    for content in (REQUEST.encode(), REPLY.encode()):
        content["config"]["flags"], content["config"]["signature_digest"] = [True, False], "0123"
        assert count_bytes(content) == sum(record.count_bytes() for record in content.values())


@pytest.mark.parametrize("name", ["../a", ".", "", "a/b", "a\n"])
def test_a_client_whose_name_is_no_file_name_is_refused(name: str) -> None:
    reply = SignatureReply([replace(make_card("a"), client_id=name)], {})
    with pytest.raises(ProtocolError, match="made of letters"):
        SignatureReply.decode(reply.encode(), signature_size=SIGNATURE_SIZE, num_classes=CLASSES)


def test_an_archive_of_arrays_is_no_array() -> None:
    content, buffer = REPLY.encode(), io.BytesIO()
    np.savez(buffer, x=HEAD)
    good = content["arrays"]["head"]
    content["arrays"]["head"] = Array(dtype=good.dtype, shape=good.shape, stype=good.stype, data=buffer.getvalue())
    with pytest.raises(ProtocolError, match="other data than one array"):
        TrainReply.decode(content, REQUEST)


def test_a_client_named_twice_is_refused() -> None:
    reply = SignatureReply([make_card("a"), make_card("a")], {})
    with pytest.raises(ProtocolError, match="named twice"):
        SignatureReply.decode(reply.encode(), signature_size=SIGNATURE_SIZE, num_classes=CLASSES)


def test_a_large_signature_travels_in_four_kibibytes() -> None:
    card = make_card("a")
    wide = replace(card.signature, feature_mean=torch.ones(768), feature_std=torch.ones(768))
    content = SignatureReply([replace(card, signature=wide)], {}).encode()
    assert len(content["arrays"]["a"].data) <= 4096


def test_a_client_whose_signature_is_of_another_number_of_samples_is_left_out_and_the_others_stay() -> None:
    cards = [make_card("honest"), replace(make_card("liar"), num_examples=10**18)]
    reply = SignatureReply.decode(
        SignatureReply(cards, {}).encode(), signature_size=SIGNATURE_SIZE, num_classes=CLASSES
    )
    assert [card.client_id for card in reply.cards] == ["honest"]
    assert list(reply.left_out) == ["liar"]
    assert "its signature is of another number" in reply.left_out["liar"]


def decoded(*cards: ClientCard, left_out: dict[str, str] | None = None) -> SignatureReply:
    content = SignatureReply(cards, left_out or {}).encode()
    return SignatureReply.decode(content, signature_size=SIGNATURE_SIZE, num_classes=CLASSES)


def _with_signature(**changes: torch.Tensor) -> ClientCard:
    card = make_card("odd")
    return replace(card, signature=replace(card.signature, **changes))


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        (_with_signature(feature_std=-torch.ones(WIDTH)), "negative standard deviation"),
        (_with_signature(class_frequencies=torch.tensor([0.5, 0.5, 1e-30])), "class frequency below 1e-12"),
        (replace(make_card("odd"), domain="d" * 101), "its domain has 101 characters"),
        (make_card("anchor"), "'anchor' is the name of something else"),
        (make_card("Personal"), "'Personal' is the name of something else"),
    ],
)
def test_a_card_that_cannot_be_is_left_out_and_the_others_stay(card: ClientCard, sentence: str) -> None:
    reply = decoded(make_card("honest"), card)
    assert [one.client_id for one in reply.cards] == ["honest"]
    assert list(reply.left_out) == [card.client_id]
    assert sentence in reply.left_out[card.client_id]


def test_texts_of_clients_are_printable_and_short() -> None:
    forged = "fine\n2026-01-01 WARNING client 'b' is left out\x1b[2J\u202e"
    reply = decoded(replace(make_card("a"), domain="two\nlines\x1b"), left_out={forged: forged, "b": "x" * 5_000_000})
    assert reply.cards[0].domain == "two lines "
    assert all(text.isprintable() and len(text) <= 200 for pair in reply.left_out.items() for text in pair)
    assert reply.left_out["b"].endswith("x...")


def test_a_node_may_not_name_any_number_of_clients() -> None:
    with pytest.raises(ProtocolError, match="10001 clients at one node are more than 10000"):
        decoded(left_out={f"client-{index}": "" for index in range(10_001)})


@pytest.mark.parametrize("steps", [-1, 2**62])
def test_a_client_is_not_asked_for_any_number_of_steps(steps: int) -> None:
    request = TrainRequest("a", 3, steps, Start(make_adapter(0)))
    with pytest.raises(ProtocolError, match="numbers of local steps"):
        TrainRequest.decode(request.encode(), make_adapter(5, fresh=True))
    asked = EvaluateRequest("a", 3, [steps], Start(make_adapter(0)))
    with pytest.raises(ProtocolError, match="numbers of local steps"):
        EvaluateRequest.decode(asked.encode(), make_adapter(5, fresh=True))


def test_names_that_are_no_text_have_a_digest_too() -> None:
    content = RecordDict({"\ud800": ArrayRecord({"\udfff": Array(np.zeros(2, dtype=np.float32))})})
    assert len(content_digest(content)) == 64

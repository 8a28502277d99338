"""What clients that lie about themselves say, and that nobody else's words are touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from benchmarks.attacks import neighbours_to_be
from benchmarks.liars import FAR, LARGEST, LIES, MORE, LyingApp, statistics_lie
from benchmarks.local_grid import LocalGrid
from hyperlora.config.schema import RunConfig
from hyperlora.messages.batch import EvaluateBatch
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import Start
from hyperlora.messages.signature import SignatureReply, SignatureRequest
from tests.builders import CLASSES, SIGNATURE_SIZE, fake_client_app, make_adapter, make_card, make_statistics

CARDS = [make_card("bad"), make_card("good")]


def asked(kind: str, request: Any) -> RecordDict:
    """Return what a node with both clients answers where one lies."""
    app = LyingApp(fake_client_app(CARDS), kind, RunConfig(), {"bad": "good"}, CLASSES)
    grid = LocalGrid(app, {}, 1)
    (reply,) = grid.send_and_receive([Message(request.encode(), dst_node_id=1, message_type=request.TYPE)])
    return reply.content


@pytest.mark.parametrize("kind", ["outlier", "frequencies", "counts"])
def test_a_liar_s_card_is_sound_and_the_other_s_untouched(kind: str) -> None:
    content = asked(kind, SignatureRequest("x"))
    cards = SignatureReply.decode(content, signature_size=SIGNATURE_SIZE, num_classes=CLASSES).cards
    bad, good = cards
    assert good.signature.digest() == CARDS[1].signature.digest()
    told = {
        "outlier": float(bad.signature.feature_mean.min()) == FAR,
        "frequencies": float(bad.signature.class_frequencies.max()) > 0.999,
        "counts": bad.num_examples == MORE * CARDS[0].num_examples,
    }
    assert told[kind]


def test_probe_losses_are_turned_upside_down_and_scores_of_starts_are_not() -> None:
    start = Start(make_adapter(0))
    batch = EvaluateBatch([EvaluateRequest("bad", 1, [0], start, track) for track in ("0/1/1", "start")])
    told = asked("scores", batch)
    assert told["0 metrics"]["validation_loss"] == [pytest.approx(20 - 0.9)]  # type: ignore[index]
    assert told["1 metrics"]["validation_loss"] == [0.9]  # type: ignore[index]


@pytest.mark.parametrize("kind", LIES)
def test_lies_about_classes_keep_to_what_the_wire_carries(kind: str) -> None:
    told = {name: one.numpy() for name, one in make_statistics("bad", counts=(5, 0, 2)).tensors().items()}
    lie = statistics_lie(kind, told)
    changed = {name for name, one in lie.items() if not np.array_equal(one, told[name])}
    assert bool(changed) == (kind in ("frequencies", "huge", "swapped", "counts", "spread"))
    assert all(np.abs(one).max() <= LARGEST for one in lie.values())
    assert not lie["sums"][lie["counts"] == 0].any()


def test_attackers_pose_beside_unseen_clients_in_turn() -> None:
    class Clients:
        client_ids = ("a", "b", "c", "d", "e")

        def load(self, name: str) -> Any:
            return type("Client", (), {"trains": name not in "de"})

    victims = neighbours_to_be(Clients(), frozenset("abc"))  # type: ignore[arg-type]
    assert victims == {"a": "d", "b": "e", "c": "d"}

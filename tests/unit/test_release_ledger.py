"""A site's own privacy ledger: what it counts, over runs, and what it refuses before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client_app.app import app
from client_app.release_ledger import BudgetError, ReleaseLedger
from client_app.runtime import ClientRuntime, open_runtime
from client_app.site import Site
from hyperlora.accounting import composed_epsilon
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.signature import SignatureReply, SignatureRequest
from hyperlora.storage.chained_log import ChainedLog, ChainError
from tests.sites import SiteGrid

PRIVATE: dict[str, Any] = {
    "privacy.signature-noise": 2.0,
    "privacy.adapter-noise": 3.0,
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
}
NAME = "clean-0"


def ask(
    directory: Path, message_type: str, values: dict[str, Any], run_id: int = 1, content: RecordDict | None = None
) -> Message:
    """Send a site a message of a run, past the network."""
    node = {"client-id": NAME, "state-dir": str(directory), "epsilon-budget": 3.0}
    context = SiteGrid(RunConfig.parse(values).flat(), [node])._contexts[1]
    context.run_id = run_id
    return app(Message(content or RecordDict(), dst_node_id=1, message_type=message_type), context)


def signature_request(values: dict[str, Any]) -> RecordDict:
    fingerprint = open_runtime(RunConfig.parse(values)).model.backbone.fingerprint
    return SignatureRequest(fingerprint).encode()


def entries(directory: Path) -> list[dict[str, Any]]:
    return ChainedLog(directory / NAME / "releases.jsonl").read()


def test_the_ledger_counts_over_runs_and_refuses_the_release_that_would_exceed_the_budget(tmp_path: Path) -> None:
    path = tmp_path / NAME / "releases.jsonl"
    noises = [4.0, 10.0, 7.0]
    for run_id, noise in enumerate(noises):
        ReleaseLedger(path, 3.0, 1e-5).reserve("adapter", noise, run_id)
    ledger = ReleaseLedger(path, 3.0, 1e-5)
    assert ledger.spent() == pytest.approx(composed_epsilon([(noise, 1) for noise in noises], 1e-5))
    with pytest.raises(BudgetError, match="epsilon 3 over all runs"):
        ledger.reserve("adapter", 1.0, 9)
    assert [entry["run"] for entry in ledger._log.read()] == ["0", "1", "2"]
    ReleaseLedger(path, 0.0, 1e-5).reserve("adapter", 1.0, 10)
    assert len(ledger._log.read()) == 4


@pytest.mark.parametrize("damage", ["taken out", "changed"])
def test_a_ledger_that_was_tampered_with_releases_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / NAME / "releases.jsonl"
    ledger = ReleaseLedger(path, 50.0, 1e-5)
    for _ in range(3):
        ledger.reserve("adapter", 2.0, 1)
    lines = path.read_text().splitlines(keepends=True)
    if damage == "taken out":
        del lines[1]
    else:
        lines[1] = lines[1].replace('"noise": 2.0', '"noise": 200.0')
    path.write_text("".join(lines))
    with pytest.raises(ChainError, match="was changed: line 2"):
        ledger.reserve("adapter", 2.0, 1)


def test_a_line_that_was_not_written_to_its_end_is_dropped_and_the_next_follows(tmp_path: Path) -> None:
    path = tmp_path / NAME / "releases.jsonl"
    ledger = ReleaseLedger(path, 0.0, 1e-5)
    ledger.reserve("signature", 2.0, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    ledger.reserve("adapter", 5.0, 2)
    assert [entry["kind"] for entry in ledger._log.read()] == ["signature", "adapter"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_site_counts_a_signature_once_and_every_training(tmp_path: Path) -> None:
    request = signature_request(PRIVATE)
    for run_id in (1, 2):
        ask(tmp_path, "query.signature", PRIVATE, run_id, request)
    assert [(one["kind"], one["noise"], one["run"]) for one in entries(tmp_path)] == [("signature", 2.0, "1")]
    for _ in range(2):
        with pytest.raises(ValueError, match="config"):
            ask(tmp_path, "train", PRIVATE)  # a broken request costs all the same
    assert [one["kind"] for one in entries(tmp_path)] == ["signature", "adapter", "adapter"]


def test_a_signature_beyond_the_budget_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*args: object) -> None:
        raise AssertionError("the signature was computed")

    monkeypatch.setattr(ClientRuntime, "_describe", computed)
    loud = {**PRIVATE, "privacy.signature-noise": 0.5}
    reply = SignatureReply.decode(
        ask(tmp_path, "query.signature", loud, content=signature_request(loud)).content,
        signature_size=1,
        num_classes=10,
    )
    assert reply.cards == []
    assert "budget is epsilon 3 over all runs" in reply.left_out[NAME]
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("message_type", "missing", "sentence"),
    [
        ("query.signature", "privacy.signature-noise", "privacy.signature-noise is 0"),
        ("train", "privacy.adapter-noise", "privacy.adapter-noise is 0"),
        ("train", "privacy.signature-noise", "privacy.signature-noise is 0"),
        ("evaluate", "privacy.adapter-noise", "privacy.adapter-noise is 0"),
    ],
)
def test_a_site_with_a_budget_answers_nothing_without_noise(
    tmp_path: Path, message_type: str, missing: str, sentence: str
) -> None:
    values = {name: value for name, value in PRIVATE.items() if name != missing}
    with pytest.raises(ValueError, match=sentence):
        ask(tmp_path, message_type, values)
    assert json.dumps(entries(tmp_path)) == "[]"


def test_a_budget_without_a_place_to_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="budget of epsilon needs a 'state-dir'"):
        open_runtime(RunConfig.parse(PRIVATE), Site(client_id=NAME, epsilon_budget=1.0))

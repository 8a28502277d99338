"""Audit logs at server and site: complete, about the same messages, and tampering is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.config.schema import RunConfig
from hyperlora.storage.chained_log import ChainedLog
from server_app.audit import RunAudit
from server_app.run import run
from strategies.engine.records import RoundRecord
from tests.sites import SiteGrid

pytestmark = pytest.mark.usefixtures("every_site_keeps_its_parts")

IDS = ("clean-0", "inverted-0", "noisy-0")
SETTINGS: dict[str, Any] = {
    "method": "fedit",
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
    "federation.rounds": 2,
    "federation.clients-per-round": 2,
    "federation.evaluate-every": 2,
    "federation.min-clients": 2,
    "federation.join-timeout": 5.0,
}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run directory and the state of its three sites, the last of which answers no evaluation."""
    root = tmp_path_factory.mktemp("audit")
    (root / "policy.toml").write_text('answers = ["signature", "train"]')
    values = RunConfig.parse({**SETTINGS, "run.output-dir": str(root / "run")}).flat()
    nodes = [{"client-id": name, "state-dir": str(root / "state")} for name in IDS]
    nodes[-1]["policy"] = str(root / "policy.toml")
    return run(SiteGrid(values, nodes), values), root / "state"


def lines(path: Path) -> list[dict[str, Any]]:
    return ChainedLog(path / "audit.jsonl").read()


def test_server_and_sites_have_the_same_messages(audited: tuple[Path, Path]) -> None:
    directory, state = audited
    server = lines(directory)
    at_sites = [line for name in IDS for line in lines(state / name)]
    asked = [line for line in server if line["event"] == "asked"]
    answered = [line for line in server if line["event"] == "answered"]
    assert len(asked) == len(answered) == len(at_sites) == 3 + 2 * 2 + 3
    assert {line["content"] for line in asked} == {line["content"] for line in at_sites}
    left = {line["sent_content"]: line["sent_bytes"] for line in at_sites if line["decision"] == "answered"}
    assert {line["content"]: line["bytes"] for line in answered if "content" in line} == left
    by_number = {line["number"]: line for line in asked}
    assert all(by_number[line["answers"]]["type"] == line["type"] for line in answered)
    assert {line["asked"] for line in at_sites} == {"query.signature", "train", "evaluate"}
    assert {line["method"] for line in at_sites} == {"fedit"}


def test_decisions_are_in_both_logs(audited: tuple[Path, Path]) -> None:
    directory, state = audited
    (refused,) = [line for line in lines(state / IDS[2]) if line["decision"] == "RefusedError"]
    assert refused["reason"].startswith("this site does not answer 'evaluate'")
    assert "sent_content" not in refused
    begun, *rounds = [line for line in lines(directory) if line["event"] in ("begun", "round")]
    assert (begun["method"], begun["resume"]) == ("fedit", False)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in rounds] == [record["cohort"] for record in records]
    assert rounds[-1]["failures"][f"evaluate {IDS[2]}"].startswith("this site does not answer 'evaluate'")


def test_logs_are_their_owners_alone_and_hold_no_data(audited: tuple[Path, Path]) -> None:
    directory, state = audited
    files = [directory / "audit.jsonl", *(state / name / "audit.jsonl" for name in IDS)]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert max(len(line) for path in files for line in path.read_text().splitlines()) < 2000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    for number in range(5):
        ChainedLog(path).append([{"event": f"event {number}"}])
    return path


def verified(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["audit", "verify", *arguments])
    return outcome.exit_code, " ".join(outcome.output.split())


@pytest.mark.parametrize("damage", ["changed", "taken out", "moved", "added", "garbage"])
def test_tampering_is_one_sentence_and_status_1(log: Path, damage: str) -> None:
    assert verified(str(log.parent))[0] == 0
    text = log.read_text().splitlines(keepends=True)
    tampered = {
        "changed": [*text[:2], text[2].replace("event 2", "event 7"), *text[3:]],
        "taken out": [*text[:2], *text[3:]],
        "moved": [*text[:2], text[3], text[2], text[4]],
        "added": [*text[:2], text[2], text[2], *text[3:]],
        "garbage": [*text[:2], "{not json}\n", *text[3:]],
    }
    log.write_text("".join(tampered[damage]))
    status, sentence = verified(str(log))
    assert status == 1
    assert "was changed: line" in sentence or "cannot be read" in sentence
    assert "Traceback" not in sentence


def test_a_log_that_was_cut_or_written_anew_is_noticed_by_a_digest_that_is_known(log: Path) -> None:
    status, told = verified(str(log), "--format", "json")
    last = json.loads(told)[str(log)]["last"]
    assert (status, verified(str(log), "--known", last)[0]) == (0, 0)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    assert verified(str(log))[0] == 0
    status, sentence = verified(str(log), "--known", last)
    assert status == 1
    assert "was cut or written anew" in sentence


def test_a_folder_without_a_log_is_one_sentence(tmp_path: Path) -> None:
    status, sentence = verified(str(tmp_path))
    assert status == 1
    assert "is no log and holds none" in sentence


def test_a_round_in_which_thousands_fail_goes_into_several_lines(tmp_path: Path) -> None:
    audit, record = RunAudit(tmp_path), RoundRecord(1, cohort=[f"client-{one}" for one in range(20_000)])
    record.failures = {f"train client-{one}": 400 * "\U0001f600" for one in range(500)}
    audit.note_round(record, {"node 1": "silent"})
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sum(len(line.get("failures", {})) for line in lines) == 500
    assert sum(len(line.get("cohort", ())) for line in lines) == 20_000

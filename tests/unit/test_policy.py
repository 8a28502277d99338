"""A site's policy file: what is refused, in which sentence, before anything is computed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client_app import handlers
from client_app.app import app
from client_app.gate import RefusedError
from client_app.policy import SitePolicy, read_policy
from client_app.release_ledger import open_ledger
from client_app.site import Site
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.codec import ProtocolError
from server_app.run import run
from strategies.federation.roster import FederationError
from tests.sites import SiteGrid

NOISED: dict[str, Any] = {
    "privacy.signature-noise": 2.0,
    "privacy.adapter-noise": 3.0,
}
SUMS_OF_TEN = {"privacy.mode": "sums", "privacy.least-clients": 10, "federation.clients-per-round": 12}


def site_with(directory: Path, policy: str) -> dict[str, Any]:
    (directory / "policy.toml").write_text(policy)
    return {
        "client-id": "clean-0",
        "state-dir": str(directory / "state"),
        "policy": str(directory / "policy.toml"),
    }


def ask(directory: Path, policy: str, message_type: str, values: dict[str, Any]) -> Message:
    context = SiteGrid(RunConfig.parse(values).flat(), [site_with(directory, policy)])._contexts[1]
    return app(Message(RecordDict(), dst_node_id=1, message_type=message_type), context)


@pytest.mark.parametrize(
    ("policy", "message_type", "values", "sentence"),
    [
        ('answers = ["signature", "train"]', "evaluate", {}, "it answers signature,train, and not 'evaluate'"),
        ("answers = []", "query.signature", {}, "it answers nothing, and not 'signature'"),
        ('methods = ["fedit"]', "train", {}, "runs of fedit, and this one is of 'hyperlora'"),
        ("minimum-signature-noise = 2.5", "query.signature", NOISED, "signature-noise of at least 2.5.* has 2"),
        ("minimum-adapter-noise = 4", "train", NOISED, "adapter-noise of at least 4, and this run has 3"),
        (
            "minimum-adapter-noise = 1",
            "evaluate",
            {"privacy.signature-noise": 2.0},
            "of at least 1, and this run has 0",
        ),
        ("minimum-adapter-noise = 1", "train", NOISED | {"privacy.exact-figures": True}, "exact figures told"),
        ("minimum-signature-noise = 2", "train", {"privacy.signature-noise": 2.0}, "adapter-noise is 0"),
        ("minimum-adapter-noise = 1", "query.signature", {"privacy.adapter-noise": 2.0}, "signature-noise is 0"),
        ("exact-counts = false", "evaluate", {}, "counts those that it tests on"),
        ("maximum-epsilon = 1.0", "query.signature", {}, "budget of epsilon 1, and without noise"),
        ("exact-counts = false", "query.signature", {}, "how many samples it has"),
        ("exact-counts = false", "train", NOISED | {"privacy.exact-figures": True}, "how many samples it has"),
        ("exact-label-frequencies = false", "train", {}, "label frequencies without noise"),
        ("exact-label-frequencies = false", "evaluate", {}, "counts hits by class"),
        ("sums-only = true", "query.signature", {}, "runs of sums alone"),
        ("sums-only = true", "train", {}, "runs of sums alone"),
        ("minimum-clients = 6", "query.sum", {"privacy.mode": "sums"}, "over 6 clients at least"),
    ],
)
def test_what_the_policy_forbids_is_refused_before_a_handler_sees_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    message_type: str,
    values: dict[str, Any],
    sentence: str,
) -> None:
    def reached(*args: object) -> None:
        raise AssertionError("a handler was reached")

    for part in ("TrainRequest", "EvaluateBatch", "SignatureRequest", "SumRequest"):
        monkeypatch.setattr(getattr(handlers, part), "decode", reached)
    with pytest.raises(RefusedError, match=f"^this site does not answer .*{sentence}"):
        ask(tmp_path, policy, message_type, values)


def test_what_the_policy_does_not_name_is_let_through(tmp_path: Path) -> None:
    policy = 'answers = ["signature"]\nminimum-signature-noise = 2\nexact-counts = false'
    with pytest.raises(ProtocolError, match="the message holds no ConfigRecord"):
        ask(tmp_path, policy, "query.signature", NOISED)


def test_the_statistics_of_classes_can_be_kept_back() -> None:
    kept = SitePolicy(answers="train,signature,evaluate")
    assert kept.objection("statistics", RunConfig(), 0.0) == (
        "it answers train,signature,evaluate, and not 'statistics'"
    )
    assert SitePolicy().objection("statistics", RunConfig(), 0.0) is None
    assert SitePolicy().objection("statistics", RunConfig(), 5.0) is not None


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("answer = []", "unknown key 'answer' in the site's policy.*did you mean 'answers'"),
        ('answers = ["trian"]', "configuration key 'answers' must be names out of"),
        ("maximum-epsilon = -1", "configuration key 'maximum-epsilon' must be 0 or more"),
        ("maximum-epsilon =", "cannot be read, so nothing is answered"),
    ],
)
def test_a_policy_that_cannot_be_read_answers_nothing(tmp_path: Path, policy: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ask(tmp_path, policy, "query.signature", NOISED)


def test_a_policy_file_that_is_not_there_answers_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read, so nothing is answered"):
        read_policy(Site(client_id="clean-0", policy=str(tmp_path / "policy.toml")))


@pytest.mark.parametrize(("own", "policy", "smaller"), [(3.0, 8.0, 3.0), (0.0, 8.0, 8.0), (9.0, 8.0, 8.0)])
def test_the_smaller_of_two_budgets_holds(tmp_path: Path, own: float, policy: float, smaller: float) -> None:
    ledger = open_ledger(
        Site(client_id="a", state_dir=str(tmp_path), epsilon_budget=own), SitePolicy(maximum_epsilon=policy)
    )
    assert ledger is not None
    assert ledger.budget == smaller


def test_a_refusal_is_one_sentence_at_the_server(tmp_path: Path) -> None:
    values = RunConfig.parse(
        {"run.output-dir": str(tmp_path / "run"), "federation.min-clients": 1, "federation.join-timeout": 1.0}
    ).flat()
    grid = SiteGrid(values, [site_with(tmp_path, 'methods = ["fedit"]')])
    with pytest.raises(FederationError, match="0 can take part; left out: this site does not answer"):
        run(grid, values)
    left_out = json.loads((tmp_path / "run" / "left_out.json").read_text())
    assert left_out["node 1"].startswith("this site does not answer 'signature': it takes part in runs of fedit")


SUMS: dict[str, Any] = {"privacy.mode": "sums"}


@pytest.mark.parametrize(
    ("policy", "values", "objection"),
    [
        ({}, SUMS | {"privacy.epsilon": 8.0}, None),
        ({}, SUMS, "what has no noise has no bound"),
        ({"minimum_adapter_noise": 1.0}, SUMS | {"privacy.epsilon": 8.0}, "what has no noise has no bound"),
    ],
)
def test_a_site_with_a_budget_takes_part_in_sums_that_have_noise(
    policy: dict[str, Any], values: dict[str, Any], objection: str | None
) -> None:
    said = SitePolicy(**policy).objection("sum", RunConfig.parse(values), 8.0)
    assert said is None if objection is None else objection in (said or "")


def test_a_card_of_a_run_of_sums_tells_nothing_that_a_policy_keeps_back() -> None:
    policy = SitePolicy(exact_counts=False, exact_label_frequencies=False)
    assert policy.objection("signature", RunConfig.parse(SUMS), 0.0) is None
    assert policy.objection("signature", RunConfig(), 0.0) is not None


@pytest.mark.parametrize("kind", ["signature", "sum"])
def test_a_site_of_sums_takes_part_in_runs_of_sums_over_as_many_clients_as_it_wants(kind: str) -> None:
    policy = SitePolicy(sums_only=True, minimum_clients=5)
    assert policy.objection(kind, RunConfig.parse(SUMS | {"privacy.least-clients": 5}), 0.0) is None
    fewer = policy.objection(kind, RunConfig.parse(SUMS | {"privacy.least-clients": 4}), 0.0)
    assert fewer == "its sums are over 5 clients at least, and privacy.least-clients is less"


def test_the_policies_of_the_page_answer_the_runs_that_they_are_for_and_no_others(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
    blocks = [one for one in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if one.startswith("answers")]
    policies = []
    for index, text in enumerate(blocks):
        path = tmp_path / f"{index}.toml"
        path.write_text(text)
        policies.append(read_policy(Site(client_id="clean-0", policy=str(path))))
    noised, sums = policies
    runs = RunConfig.parse(NOISED), RunConfig.parse(SUMS_OF_TEN)
    for kind in ("signature", "train", "evaluate"):
        assert noised.objection(kind, runs[0], noised.maximum_epsilon) is None
        assert noised.objection(kind, RunConfig(), noised.maximum_epsilon)
    for kind in ("signature", "sum"):
        assert sums.objection(kind, runs[1], sums.maximum_epsilon) is None
        assert sums.objection(kind, runs[0], sums.maximum_epsilon)

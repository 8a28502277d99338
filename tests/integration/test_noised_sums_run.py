"""A run of sums with noise on digits, in this process: what it costs, what it learns, and what clients refuse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message
from typer.testing import CliRunner

from client_app.app import app
from hyperlora.cli.main import app as command_line
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.data.sample import write_sample
from server_app.run import run
from tests.sums_runs import CLIENTS, SUMS, Recording, made, records, without_times

BARELY = 1e4
"""An epsilon with so little noise that eight clients learn something."""
NOISED: dict[str, Any] = {"privacy.epsilon": BARELY, "privacy.adapter-clip": 2.0}


@pytest.fixture(scope="module")
def noised_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording]:
    return made(tmp_path_factory.mktemp("noised") / "run", **NOISED)


def test_it_learns_and_says_what_it_cost(noised_run: tuple[Path, Recording]) -> None:
    first, last = records(noised_run[0])
    assert first["failures"] == last["failures"] == {}
    assert last["evaluation"]["seen"]["zero_step"]["mean"] > 0.4
    assert last["privacy"] == {"epsilon": pytest.approx(BARELY, rel=1e-3), "delta": 1e-5}
    assert first["privacy"]["epsilon"] < BARELY
    assert 0.0 < last["method"]["score_noise"] < 0.05
    said = (noised_run[0] / "console.log").read_text()
    assert "these accuracies have noise of a standard deviation of" in said
    assert "more rounds: hyperlora run --resume" not in said


def test_clients_take_turns(noised_run: tuple[Path, Recording]) -> None:
    times = Counter(name for one in records(noised_run[0]) for name in one["cohort"])
    assert set(times.values()) <= {1, 2}
    assert sum(times.values()) == 10


def test_vectors_reach_the_server_in_the_step_of_masked_ones_alone(noised_run: tuple[Path, Recording]) -> None:
    for reply in noised_run[1].replies:
        config = reply.content["config"]
        assert isinstance(config, ConfigRecord)
        assert reply.metadata.message_type == "query.signature" or ("arrays" in reply.content) == (
            config["step"] == "masked"
        )


@pytest.mark.usefixtures("metrics_alone")
def test_the_same_seed_gives_the_same_run(noised_run: tuple[Path, Recording], tmp_path: Path) -> None:
    assert without_times(made(tmp_path / "again", **NOISED)[0]) == without_times(noised_run[0])


def test_an_evaluation_is_one_sum_of_the_clients_that_train(noised_run: tuple[Path, Recording]) -> None:
    configs = [reply.content["config"] for reply in noised_run[1].replies]
    sums = {str(one["name"]) for one in configs if isinstance(one, ConfigRecord) and "step" in one}
    assert {one.split(".", 2)[2] for one in sums} == {"movement of A", "movement of B", "noised scores"}
    assert sum(one.endswith("noised scores") for one in sums) == 1  # the unseen are too few


@pytest.mark.usefixtures("metrics_alone")
def test_a_budget_that_leaves_nothing_but_noise_costs_no_more(tmp_path: Path) -> None:
    directory, _ = made(tmp_path / "run", **NOISED | {"privacy.epsilon": 1.0, "federation.rounds": 1})
    last = records(directory)[-1]
    assert last["failures"] == {}
    assert last["privacy"]["epsilon"] == pytest.approx(1.0, rel=0.05)


def test_a_newcomer_makes_its_own_head(noised_run: tuple[Path, Recording], tmp_path: Path) -> None:
    write_sample(tmp_path / "mine")
    asked = ["personalize", str(noised_run[0]), str(tmp_path / "mine"), "--to", str(tmp_path / "own"), "--steps", "0"]
    outcome = CliRunner().invoke(command_line, asked)
    assert outcome.exit_code == 0, outcome.output
    scores = json.loads((tmp_path / "own" / "scores.json").read_text())
    assert scores["validation_loss"][0] < scores["anchor_validation_loss"][0]
    assert scores["use"] == "generated"


def changed(**entries: Any) -> Callable[[Message, Context], Message]:
    """Return the app as a server sees it that asks for vectors in another way than it should."""

    def answer(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        if config.get("step") == "masked":
            config.update(entries)
        return app(message, context)

    return answer


def silencing(count: int) -> Callable[[Message, Context], Message]:
    """Return the app with some clients, those that are asked first, that send no vector."""
    silent = set[str]()

    def answer(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        if config.get("step") == "masked":
            name = str(config["client_id"])
            if len(silent) < count or name in silent:
                silent.add(name)
                raise RuntimeError("its power was cut")
        return app(message, context)

    return answer


def one_round(directory: Path, answer: Callable[[Message, Context], Message]) -> dict[str, dict[str, str]]:
    """Return the record of a run of one round."""
    values = RunConfig.parse(
        {**SUMS, **NOISED, "privacy.epsilon": 8.0, "federation.rounds": 1, "run.output-dir": str(directory)}
    ).flat()
    told: dict[str, dict[str, str]] = records(run(Recording(answer, values, CLIENTS), values))[-1]
    return told


@pytest.mark.usefixtures("metrics_alone")
def test_a_client_tells_nothing_that_would_cost_more_than_it_was_promised(tmp_path: Path) -> None:
    found = one_round(tmp_path / "run", changed(noise=0.01))["failures"]
    assert any("promises this client an epsilon of 8" in reason for reason in found.values())


@pytest.mark.usefixtures("metrics_alone")
def test_a_client_of_a_run_with_noise_tells_nothing_without(tmp_path: Path) -> None:
    found = one_round(tmp_path / "run", changed(kind="moments", noise=0.0))["failures"]
    assert any("is none of this run: privacy.epsilon" in reason for reason in found.values())


@pytest.mark.usefixtures("metrics_alone")
def test_fewer_than_the_least_share_are_no_sum(tmp_path: Path) -> None:
    found = one_round(tmp_path / "run", silencing(2))["missing_sums"]
    assert "3 clients are left, and 4 is the least for a sum" in found["movement of B"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"privacy.epsilon": 8.0, "privacy.exact-figures": True}, "bounds nothing"),
        ({"privacy.epsilon": 8.0, "privacy.signature-noise": 1.0}, "does not go with privacy.signature-noise"),
        ({"privacy.least-share": 0.5}, "least-share"),
    ],
)
def test_what_bounds_nothing_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        RunConfig.parse({"privacy.mode": "sums", **values})

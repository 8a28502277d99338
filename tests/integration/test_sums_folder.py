"""The folder of a run of sums: what it holds of single clients, and what personalize and report make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message
from typer.testing import CliRunner

from benchmarks.local_grid import LocalGrid, expired
from client_app.app import app
from client_app.runtime import ClientRuntime, open_runtime
from hyperlora.cli.main import app as command_line
from hyperlora.config.schema import RunConfig
from hyperlora.data.sample import write_sample
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.newcomer import newcomer_runtime, try_newcomer
from hyperlora.reporting.publishing import publish_run
from hyperlora.reporting.run_files import RunFiles
from hyperlora.storage.run_names import STATEMENT
from server_app.run import run
from strategies.engine.checkpoint import CheckpointStore
from strategies.methods.hyperlora.state import HyperLoraState
from strategies.methods.registry import build_method
from tests.disclosure import Secret, in_files, occurs, secrets_of
from tests.sums_runs import SUMS, records, without_times

CLIENTS = 4
SMALL = {
    **SUMS,
    "data.clients-per-domain": 1,
    "federation.rounds": 1,
    "federation.clients-per-round": CLIENTS,
    "train.local-steps": 10,
}


def values_of(directory: Path, **more: Any) -> dict[str, Any]:
    return RunConfig.parse({**SMALL, "run.output-dir": str(directory), **more}).flat()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = values_of(tmp_path_factory.mktemp("sums") / "run")
    return run(LocalGrid(app, values, CLIENTS), values)


@pytest.fixture(scope="module")
def runtime() -> ClientRuntime:
    return open_runtime(RunConfig.parse(SMALL))


def state_of(directory: Path) -> HyperLoraState:
    config = RunFiles.open(directory).config
    found = CheckpointStore(directory / "checkpoints", keep=1).latest(build_method(config).state_classes)
    assert found is not None
    assert isinstance(found.state, HyperLoraState)
    return found.state


def test_no_file_of_the_server_holds_a_vector_of_a_single_client(
    finished: Path, runtime: ClientRuntime, tmp_path: Path
) -> None:
    names = [name for name in runtime.federation.client_ids if runtime.client(name).trains]
    start, served = runtime.model.fresh_adapter(0), state_of(finished).served_anchor
    secrets = secrets_of(runtime, names, len(names), start, served)
    assert in_files([finished], secrets) == {}
    (tmp_path / "leak.bin").write_bytes(b"x" + secrets[0].numbers.astype(np.float32).tobytes())
    (tmp_path / "leak.json").write_text(json.dumps(secrets[0].numbers.tolist()))
    assert in_files([tmp_path], secrets).keys() == {str(tmp_path / name) for name in ("leak.bin", "leak.json")}


def test_what_is_looked_for_would_be_found(finished: Path) -> None:
    anchor = state_of(finished).served_anchor
    public = Secret("anchor", next(iter(anchor.low_rank.values())).B.flatten().numpy())
    places = in_files([finished], [public])
    assert {Path(place).suffix for place in places} >= {".safetensors", ".pt"}
    answer = Secret("answer", np.arange(1000, 1020, dtype=np.uint32))
    assert occurs(answer.numbers.tobytes(), [answer], aligned=True) == {"answer"}


def test_files_name_groups_and_clients_only_where_they_took_part(finished: Path, runtime: ClientRuntime) -> None:
    names = set(runtime.federation.client_ids)
    files = [path for path in finished.rglob("*") if path.is_file()]
    naming = {path.name for path in files if any(name.encode() in path.read_bytes() for name in names)}
    assert naming <= {"metrics.jsonl", "asked.jsonl", "audit.jsonl", "round-00001.pt"}
    state = state_of(finished)  # the checkpoint's history names who was asked, the state nobody
    for part in (state.memory, state.num_examples, state.signature_vectors, state.class_statistics, state.told_before):
        assert all(name == "all" or name.startswith("group-") for name in part)
    assert all(path.name.split("-")[0] in ("anchor", "group") for path in (finished / "adapters").iterdir())
    for record in records(finished):
        rest = {key: value for key, value in record.items() if key not in ("cohort", "failures")}
        assert not any(name in json.dumps(rest) for name in names)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "mine"
    write_sample(folder)
    return folder


def personalize(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(command_line, ["personalize", *map(str, arguments)])
    assert outcome.exit_code == status, outcome.output
    return " ".join(outcome.output.split())


def test_a_newcomer_makes_its_head_for_itself_and_beats_the_anchor(
    finished: Path, digits: Path, tmp_path: Path
) -> None:
    said = personalize(finished, digits, "--to", tmp_path / "mine", "--steps", "0")
    scores = json.loads((tmp_path / "mine" / "scores.json").read_text())
    assert scores["accuracy"][0] > scores["anchor_accuracy"][0]
    assert scores["validation_loss"][0] < scores["anchor_validation_loss"][0]
    assert scores["use"] == "generated"
    assert "nearest client" not in said


def test_clients_of_the_run_get_as_newcomers_what_they_made_in_the_run(finished: Path, runtime: ClientRuntime) -> None:
    files, told = RunFiles.open(finished), []
    for name in runtime.federation.client_ids:
        own = newcomer_runtime(files, files.rebuild_model(), runtime.client(name), steps=0)
        told += try_newcomer(files, own).generated.reply.test_accuracy
    mean = records(finished)[-1]["evaluation"]["seen"]["zero_step"]["mean"]
    assert sum(told) / len(told) == pytest.approx(mean, abs=1e-4)


def test_a_published_run_serves_newcomers_and_says_what_its_files_tell(
    finished: Path, digits: Path, tmp_path: Path
) -> None:
    published = publish_run(RunFiles.open(finished), tmp_path / "published", "apache-2.0")
    assert "no number of a single client is in the files" in " ".join((published / STATEMENT).read_text().split())
    scores = []
    for place in (finished, published):
        personalize(place, digits, "--to", tmp_path / f"own-{place.name}", "--steps", "0")
        scores.append(json.loads((tmp_path / f"own-{place.name}" / "scores.json").read_text())["validation_loss"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_description_in_words_is_refused_in_one_sentence(finished: Path) -> None:
    assert "is one of sums" in personalize(finished, "--classes", "1,7", status=1)


def test_the_page_of_a_run_of_sums_is_written(finished: Path) -> None:
    outcome = CliRunner().invoke(command_line, ["report", str(finished)])
    assert outcome.exit_code == 0, outcome.output
    page = (finished / "report.html").read_text()
    assert "group-1" in page
    assert "sums, down" in page


def answering(unless: Callable[[ConfigRecord], bool]) -> Callable[[Message, Context], Message]:
    """Return the app, which fails where ``unless`` says so."""

    def answer(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        if unless(config):
            raise RuntimeError("its power was cut")
        return app(message, context)

    return answer


def of_sum(config: ConfigRecord, *kinds: str) -> bool:
    return str(config.get("name", "")).rpartition(".")[2] in kinds


def test_a_run_without_a_sum_in_any_evaluation_ends_and_says_so(tmp_path: Path, digits: Path) -> None:
    values = values_of(tmp_path / "run")
    grid = LocalGrid(answering(lambda config: of_sum(config, "moments")), values, CLIENTS)
    directory = run(grid, values)
    assert json.loads((directory / "evaluation.json").read_text()) == []
    assert "0 clients are left, and 3 is the least for a sum" in records(directory)[-1]["missing_sums"]["moments"]
    assert "there was no sum of 'moments' in the last round: 0 clients" in (directory / "console.log").read_text()
    assert (directory / "adapters" / "anchor").is_dir()
    assert CliRunner().invoke(command_line, ["report", str(directory)]).exit_code == 0
    assert "nothing to make a head of" in personalize(directory, digits, status=1)


class ServerKilledError(BaseException):
    """Stands for SIGKILL: nothing of the server handles it."""


@pytest.mark.usefixtures("metrics_alone")
def test_a_server_killed_in_the_middle_of_a_sum_goes_on_as_if_it_had_not_been(finished: Path, tmp_path: Path) -> None:
    killed: list[bool] = []

    class Mortal(LocalGrid):
        def push_messages(self, messages: Any) -> Any:
            sent = list(messages)
            for one in sent:
                config = one.content["config"]
                if not killed and config.get("step") == "unmask" and of_sum(config, "movement of B"):
                    killed.append(True)
                    raise ServerKilledError
            return super().push_messages(sent)

    values = values_of(tmp_path / "run")
    grid = Mortal(app, values, CLIENTS)  # the nodes, and what clients keep of the sum, outlive the server
    with pytest.raises(ServerKilledError):
        run(grid, values)
    directory = run(grid, values_of(tmp_path / "run", **{"run.resume": True}))
    assert without_times(directory) == without_times(finished)


@pytest.mark.usefixtures("metrics_alone")
def test_a_client_that_falls_silent_in_an_evaluation_is_waited_for_once(tmp_path: Path) -> None:
    values = values_of(tmp_path / "run")
    gone, asked = next(iter(open_runtime(RunConfig.parse(SMALL)).federation.client_ids)), []

    class PartlySilent(LocalGrid):
        def _answer(self, message: Message) -> Message:
            config = message.content["config"]
            if config.get("client_id") == gone and not of_sum(config, *MOVEMENTS.values()):
                asked.append(config["step"])
                return expired(message)
            return super()._answer(message)

    directory = run(PartlySilent(app, values, CLIENTS), values)
    assert asked == ["keys"]
    assert records(directory)[-1]["failures"] == {f"sum {gone}": "no reply within the time limit"}

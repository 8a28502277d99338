"""`hyperlora forget`: a client is out of a run's files, the run goes on without it, and what stays is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from hyperlora.cli.main import app
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.reporting.run_files import RunFilesError
from hyperlora.storage.signing import SigningKey
from hyperlora.storage.state import StateError
from server_app.forgetting import forget_client
from server_app.run import run
from strategies.engine.checkpoint import Checkpoint, CheckpointStore
from strategies.methods.registry import build_method
from tests.integration.conftest import SHORT, make_short_run

NAME = "clean-0"
REMEMBERING = {"hyperlora.deviations": "rounds"}


@pytest.fixture(scope="module")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run whose state has deviations of clients; not to be written to."""
    return make_short_run(tmp_path_factory.mktemp("remembering") / "run", **REMEMBERING)


@pytest.fixture
def directory(remembering: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(remembering, tmp_path / "run"))


def checkpoint_of(directory: Path) -> Checkpoint:
    method = build_method(RunConfig.parse(SHORT))
    found = CheckpointStore(directory / "checkpoints", keep=2).latest(method.state_classes)
    assert found is not None
    return found


def test_a_client_is_out_of_every_file_that_can_do_without_it(directory: Path) -> None:
    before = checkpoint_of(directory)
    assert NAME in before.state.memory
    done = forget_client(directory, NAME)
    after = checkpoint_of(directory)
    assert done.server_round == before.server_round == after.server_round
    assert set(before.state.memory) - set(after.state.memory) == {NAME}
    assert set(before.state.class_statistics) - set(after.state.class_statistics) == {NAME}
    assert NAME not in {*after.cards, *after.state.signature_vectors, *after.history.lengths}
    assert NAME not in {score.client_id for score in after.scores}
    assert after.state.generator is None
    assert after.history.asked == before.history.asked
    assert torch.equal(after.state.anchor.head, before.state.anchor.head)
    assert len(list((directory / "checkpoints").iterdir())) == 1
    kept = {"metrics.jsonl", "asked.jsonl", "audit.jsonl", "console.log"}
    holding = {
        path.name
        for path in directory.rglob("*")
        if path.is_file() and path.parent.name != "checkpoints" and f'"{NAME}"'.encode() in path.read_bytes()
    }
    assert holding <= kept
    assert not (directory / "adapters" / NAME).exists()
    assert any("metrics.jsonl and asked.jsonl" in part for part in done.stays)


def test_the_run_goes_on_without_the_client(directory: Path) -> None:
    forget_client(directory, NAME)
    own: dict[str, Scalar] = {"run.output-dir": str(directory), "run.resume": True, "federation.rounds": 4}
    values: dict[str, Scalar] = {**SHORT, **REMEMBERING, **own}
    flat = RunConfig.parse(values).flat()
    with pytest.raises(ValueError, match="knows no client"):
        forget_client(directory, NAME)
    run(LocalGrid(client_app, flat, 4), flat)
    assert checkpoint_of(directory).server_round == 4


def test_what_is_left_is_signed_again(directory: Path, tmp_path: Path) -> None:
    key = tmp_path / "signing.pem"
    assert CliRunner().invoke(app, ["certs", "signing", str(key)]).exit_code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StateError, match="it is not signed"):
        make_short_run(
            directory, **REMEMBERING, **{"run.resume": True, "run.signing-key": str(key), "federation.rounds": 9}
        )
    signed = make_short_run(tmp_path / "signed", **REMEMBERING, **{"run.signing-key": str(key)})
    forget_client(signed, NAME)
    store = CheckpointStore(signed / "checkpoints", keep=2, key=SigningKey.read(key))
    found = store.latest(build_method(RunConfig.parse(SHORT)).state_classes)
    assert found is not None
    assert NAME not in found.cards


@pytest.mark.parametrize(
    ("path", "sentence"), [("nothing", "holds no run to go on with"), ("run", "knows no client 'nobody'")]
)
def test_what_cannot_be_forgotten_is_one_sentence(directory: Path, path: str, sentence: str) -> None:
    outcome = CliRunner().invoke(app, ["forget", str(directory.parent / path), "nobody"])
    assert outcome.exit_code == 1
    assert sentence in outcome.output
    assert len(outcome.output.strip().splitlines()) == 1


def test_the_command_says_what_is_not_unlearned(directory: Path) -> None:
    outcome = CliRunner().invoke(app, ["forget", str(directory), NAME, "--format", "json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.output)["stays"][0].startswith("the shared adapter")


def test_a_run_with_a_damaged_list_of_clients_is_left_as_it_is(directory: Path) -> None:
    (directory / "clients.json").write_bytes(b"\xff")
    before = {path: path.read_bytes() for path in (directory / "checkpoints").iterdir()}
    with pytest.raises(RunFilesError, match=r"clients\.json' is damaged"):
        forget_client(directory, NAME)
    assert {path: path.read_bytes() for path in (directory / "checkpoints").iterdir()} == before


def test_adapters_that_were_exported_go_too_and_a_published_federation_is_named(directory: Path) -> None:
    made = ("clean-0", "clean-0-merged", "clean-0-rank-2", "clean-0-5000-bytes", "clean-01", "anchor")
    for name in made:
        (directory / "exports" / name).mkdir(parents=True)
    done = forget_client(directory, NAME)
    assert sorted(path.name for path in (directory / "exports").iterdir()) == ["anchor", "clean-01"]
    assert any("published" in one for one in done.stays)

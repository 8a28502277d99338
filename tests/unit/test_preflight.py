"""What is refused before Flower starts, in one sentence and without a file in the directory that it is about."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from hyperlora.cli import preflight, run
from hyperlora.cli.output import CommandError
from hyperlora.cli.preflight import check_before, check_data, check_device, check_directory, held, rounds_made
from hyperlora.cli.settings import Settings, require_inputs, settings_of_run
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import DataError
from hyperlora.storage.files import StorageError

RECORDS = "".join(f'{{"server_round": {number}}}\n' for number in range(1, 15))


def config(**values: Any) -> RunConfig:
    return RunConfig.parse({name.replace("__", ".").replace("_", "-"): value for name, value in values.items()})


@contextmanager
def untouched(directory: Path) -> Iterator[None]:
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    yield
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A run of 14 rounds."""
    (tmp_path / "checkpoints").mkdir()
    files = {"config.json": "{}", "evaluation.json": "[]", "metrics.jsonl": RECORDS, "checkpoints/round-14": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", [".command.lock", ".lock"])
def test_a_directory_in_use_is_refused_and_left_alone(ended: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PATIENCE", 0.1)
    with FileLock(ended / name), untouched(ended), pytest.raises(CommandError, match="another run writes to"):
        check_directory(ended, config(run__resume=True))


def test_a_directory_that_holds_a_run_is_not_taken_for_another(ended: Path) -> None:
    with untouched(ended), pytest.raises(CommandError, match=f"already holds a run.*--resume {ended}"):
        check_directory(ended, config())


@pytest.mark.parametrize("rounds", [10, 14])
def test_a_run_whose_rounds_are_made_says_how_many(ended: Path, rounds: int) -> None:
    sentence = f"14 rounds of the run in .* are made and federation.rounds is {rounds}.*federation.rounds=28"
    with untouched(ended), pytest.raises(CommandError, match=sentence):
        check_directory(ended, config(run__resume=True, federation__rounds=rounds))
    check_directory(ended, config(run__resume=True, federation__rounds=15))


def test_a_run_that_was_stopped_while_it_wrote_its_results_may_go_on(ended: Path) -> None:
    (ended / "evaluation.json").unlink()
    check_directory(ended, config(run__resume=True, federation__rounds=14))


def test_a_resume_without_a_checkpoint_says_that_it_begins_at_round_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text(RECORDS[:20])
    check_directory(tmp_path, config(run__resume=True))
    assert "the run begins at round 1" in capsys.readouterr().out


def test_a_resume_whose_checkpoints_are_gone_is_refused(ended: Path) -> None:
    (ended / "checkpoints" / "round-14").unlink()
    with untouched(ended), pytest.raises(CommandError, match=r"no checkpoint in .* though 14 rounds were made"):
        check_directory(ended, config(run__resume=True, run__checkpoint_every=5))


def test_a_second_command_is_refused_before_it_writes_to_the_log_of_the_first(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(CommandError, match="another run writes to"), held(tmp_path):
        pass
    with held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".command.lock"]


@pytest.mark.parametrize(("gpus", "sentence"), [(0.0, "--gpus-per-client is 0"), (0.25, "this machine has no GPU")])
def test_a_gpu_that_no_client_gets_is_refused(gpus: float, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(CommandError, match=sentence):
        check_device(config(train__device="cuda"), gpus)
    check_device(config(), 0.0)


def table(path: Path, count: int, domains: tuple[str, ...] = ("all",)) -> str:
    rows = [f"text {index},{index % 2},{domain}" for domain in domains for index in range(count)]
    path.write_text("\n".join(["text,label,domain", *rows]))
    return str(path)


TEXT_MODEL = {"data__name": "csv", "model__name": "hf:somewhere"}


def test_too_few_samples_are_named_with_what_helps(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", 30)
    with pytest.raises(DataError, match="has 30 samples, too few for 5 clients"):
        check_data(config(data__path=path, data__partition="iid", **TEXT_MODEL))


def test_clients_that_will_be_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "r.csv", 2, ("north", "south"))
    check_data(config(data__path=path, data__partition="natural", **TEXT_MODEL))
    said = capsys.readouterr().out
    assert "2 clients hold 2 to 2 samples each" in said
    assert "2 of them have too few to train, validate and test, and are left out: north, south" in said


def test_images_that_cannot_be_read_are_named_once_with_the_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(24):
        path = tmp_path / "photos" / "cat" / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (index, 0, 90)).save(path)
    (tmp_path / "photos" / "cat" / "00.png").write_bytes(b"no image")
    values = {"data__name": "folder", "data__path": str(tmp_path / "photos"), "data__clients_per_domain": 1}
    check_data(config(data__unseen_fraction=0.0, **values))
    assert capsys.readouterr().out.count("1 of 24 images cannot be read and are left out: cat/00.png") == 1


def test_texts_for_a_model_of_images_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", 200)
    with pytest.raises(CommandError, match="is texts and model 'digits-vit' takes images"):
        check_data(config(data__name="csv", data__path=path))


def test_a_missing_column_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", 200)
    with pytest.raises(DataError, match="has no column 'stars'"):
        check_data(config(data__path=path, data__label_column="stars", **TEXT_MODEL))
    with pytest.raises(CommandError, match=r"data\.path = .* does not exist"):
        check_before(config(data__path=str(tmp_path / "no.csv"), **TEXT_MODEL), 0.0)


def test_the_last_run_below_runs_is_found_as_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def simulated(app_dir: Path, values: Any, size: str, output_dir: Path, ray_address: str | None) -> Any:
        (output_dir / "config.json").write_text("{}")
        return run.RunStatus("finished:completed", "")

    monkeypatch.setattr(run, "_simulate", simulated)
    for name in ("first", "second", "../elsewhere"):
        path = (tmp_path / "runs" / name).resolve()
        run.simulate(Settings(tmp_path, RunConfig.parse({"run.output-dir": str(path)}), {}), "")
    assert settings_of_run(Path("runs/latest"))["run.output-dir"] == str(tmp_path / "runs" / "second")
    assert not (tmp_path / "latest").exists()


def test_metrics_that_are_no_text_or_hold_no_number_end_where_they_do(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"server_round": 3}\n{"server_round": Infinity}\n\xf8\n')
    assert rounds_made(tmp_path) == 3


REFUSED = """
import sys
from typer.testing import CliRunner
from hyperlora.cli.main import app

outcome = CliRunner().invoke(app, ["run", *sys.argv[2:]])
assert outcome.exit_code == 1 and outcome.stderr.count("\\n") == 1, outcome.output
print(*sorted({"torch", "peft", "transformers", "timm", "matplotlib"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    "options",
    [
        ["-c", "lora.rnak=3"],
        ["-c", "data.name=folder", "-c", "data.path=few"],
        ["-c", "data.name=folder", "-c", "data.path=few", "-c", "data.classes=2,3"],
        ["-c", "data.name=csv", "-c", "data.path=few.csv", "-c", "model.name=hf:some"],
        ["-c", "data.name=csv", "-c", "data.path=few.csv", "-c", "model.name=hf:some", "-c", "data.text-column=said"],
    ],
    ids=lambda options: "-".join(options[1::2]),
)
def test_a_refusal_does_not_wait_for_heavy_libraries(options: list[str], tmp_path: Path) -> None:
    for index in range(6):
        path = tmp_path / "few" / str(index % 2) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    table(tmp_path / "few.csv", 3)
    (tmp_path / "pyproject.toml").symlink_to(Path(__file__).resolve().parents[2] / "pyproject.toml")
    command = [sys.executable, "-c", REFUSED, "--", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_signing_key_that_is_none_is_refused_before_flower_starts(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("no key")
    with pytest.raises(StorageError, match="holds no private key that can be used"):
        require_inputs(config(run__signing_key=str(key)))

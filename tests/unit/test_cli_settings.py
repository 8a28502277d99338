"""The settings of a run: what wins over what, and one sentence for everything that is wrong."""

import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperlora.cli.flower import to_toml
from hyperlora.cli.main import app
from hyperlora.cli.output import CommandError
from hyperlora.cli.settings import new_output_dir, parse_override, read_settings, settings_of_run
from hyperlora.config.schema import RunConfig
from hyperlora.task import expected_clients

PROJECT = """
[tool.flwr.app.config]
method = "hyperlora"
seed = 0
[tool.flwr.app.config.data]
name = "digits"
path = ""
clients-per-domain = 3
[tool.flwr.app.config.model]
weights = ""
[tool.flwr.app.config.lora]
rank = 4
alpha = 8.0
[tool.flwr.app.config.run]
output-dir = ""
"""


@pytest.fixture
def app_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "app"
    path.mkdir()
    (path / "pyproject.toml").write_text(PROJECT)
    return path


@pytest.fixture
def no_run(monkeypatch):
    """Keep a mistaken test from starting a simulation, and record what would be run."""
    begun = []
    monkeypatch.setattr("hyperlora.cli.run.simulate", lambda settings, size: begun.append((settings, size)))
    return begun


def test_defaults_files_overrides_and_options_in_this_order(app_dir):
    first, second = app_dir / "first.toml", app_dir / "second.toml"
    first.write_text("seed = 1\n[lora]\nrank = 5\nalpha = 16\n")
    second.write_text("lora.rank = 6\n")
    options = {"seed": 3, "method": None}
    settings = read_settings(app_dir, [first, second], ["seed=2", "data.clients-per-domain=7"], options)
    assert settings.config.seed == 3
    assert settings.config.method == "hyperlora"
    assert settings.config.lora.rank == 6
    assert settings.config.lora.alpha == 16.0
    assert settings.config.data.clients_per_domain == 7


def test_flower_is_told_the_declared_keys_only(app_dir):
    settings = read_settings(app_dir, [], ["lora.alpha=2"], {})
    assert settings.values["lora.alpha"] == 2.0
    assert "train.batch-size" not in settings.values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora.rank=8", ("lora.rank", 8)),
        ("lora.alpha = 2.5", ("lora.alpha", 2.5)),
        ("method=fedit", ("method", "fedit")),
        ('data.path="/a b"', ("data.path", "/a b")),
        ("data.path=/a=b", ("data.path", "/a=b")),
        ("data.path=", ("data.path", "")),
        ("data.path=2024-01-02", ("data.path", "2024-01-02")),
        ("seed=[1]", ("seed", "[1]")),
        ("lora.budget=50000", ("lora.budget", "50000")),
        ("lora.ranks=4", ("lora.ranks", "4")),
    ],
)
def test_override(text, expected):
    assert parse_override(text) == expected


def test_relative_paths_are_seen_from_the_current_directory(app_dir, tmp_path):
    settings = read_settings(app_dir, [], ["data.path=here", "run.output-dir=/there"], {})
    assert settings.config.data.path == str(tmp_path / "here")
    assert settings.config.model.weights == ""
    assert settings.config.run.output_dir == "/there"


def test_what_flower_reads_is_what_we_wrote():
    values = {"a.b": 'x "y" \\ \n \x7f é 😀', "c": 1e-05, "d": True, "e": float("inf"), "f": -3}
    assert tomllib.loads(to_toml(values)) == {"a": {"b": values["a.b"]}, **{k: values[k] for k in "cdef"}}


def test_every_output_dir_is_new(tmp_path):
    moment = datetime(2026, 1, 2, 3, 4, 5)
    first = new_output_dir(RunConfig(seed=7), tmp_path, moment)
    assert first == tmp_path / "20260102-030405-hyperlora-seed7"
    first.mkdir()
    assert new_output_dir(RunConfig(seed=7), tmp_path, moment) == tmp_path / f"{first.name}-2"


def test_the_command_passes_the_settings_and_the_size_on(app_dir, no_run, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    result = CliRunner().invoke(app, ["run", "app", "--seed", "5", "-c", "lora.rank=2", "--gpus-per-client", "0.5"])
    assert result.exit_code == 0, result.output
    [(settings, size)] = no_run
    assert (settings.config.seed, settings.config.lora.rank) == (5, 2)
    assert size.startswith(f"num-supernodes={expected_clients(settings.config.data)} client-resources-num-cpus=1 ")
    assert "client-resources-num-gpus=0.5" in size


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "it holds no pyproject.toml"),
        (["empty"], "no [tool.flwr.app] section"),
        (["app", "--config", "nothing.toml"], "'nothing.toml' cannot be read: No such file"),
        (["app", "--config", "bad.toml"], "'bad.toml' is not valid TOML"),
        (["app", "--config", "list.toml"], "'seed' in 'list.toml' must be a number, a string or a boolean"),
        (["app", "-c", "lora.rank"], "'-c lora.rank' is not of the form key=value"),
        (["app", "-c", "lora.rang=1"], "did you mean 'lora.rank'?"),
        (["app", "-c", "lora.rank=many"], "takes an integer, got 'many' (str)"),
        (["app", "-c", "train.batch-size=1"], "'train.batch-size' is not declared in"),
        (["app", "--method", "magic"], "must be one of 'hyperlora'"),
        (["app", "--cpus-per-client", "9999"], "--cpus-per-client 9999 exceeds the"),
        (["app", "--superlink", "far", "--cpus-per-client", "2"], "need --supernodes as well"),
        (["app", "-c", "data.path=gone"], "/gone' does not exist"),
        (["app", "-c", "data.name=folder", "-c", "data.path=empty"], "there are no images in"),
        (["app", "-c", "data.name=folder", "-c", "data.path=gone"], "/gone'"),
        (["app", "-c", "model.weights=gone.safetensors"], "model.weights = "),
        (["app", "--output-dir", "bad.toml"], "cannot be made: File exists"),
    ],
)
def test_one_sentence_and_exit_status_one(app_dir, arguments, sentence):
    Path("empty").mkdir()
    Path("empty/pyproject.toml").write_text("[project]\n")
    Path("bad.toml").write_text("seed = = 1")
    Path("list.toml").write_text("seed = [1]")
    result = CliRunner().invoke(app, ["run", *arguments])
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.output.startswith("hyperlora")


@pytest.mark.parametrize("content", ["", "[1]", "null", "3", "[" * 100_000])
def test_a_damaged_configuration_cannot_be_resumed_and_says_so(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CommandError, match=r"its config\.json cannot be read"):
        settings_of_run(tmp_path)


def test_where_there_is_no_app_it_says_what_works_without(tmp_path):
    with pytest.raises(CommandError, match=r"name no directory to run the app that comes with HyperLoRA"):
        read_settings(tmp_path, [], [], {})

"""`hyperlora publish`: others make adapters from what it wrote, and it tells no more of the run than it says."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.cli.output import CommandError
from hyperlora.cli.settings import settings_of_run
from hyperlora.data.digits import digits_public
from hyperlora.newcomer import start_for
from hyperlora.reporting.run_files import RunFiles, RunFilesError

DEMO = Path(__file__).resolve().parents[2] / "hyperlora" / "federations" / "demo"


def invoke(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(app, list(map(str, arguments)))
    assert outcome.exit_code == status, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def published(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("published") / "digits"
    said = invoke("publish", short_run, "--to", target, "--license", "apache-2.0")
    assert "PRIVACY.md before you hand it on" in said
    return target


def test_the_same_adapter_is_generated_from_what_was_published(short_run: Path, published: Path) -> None:
    starts = []
    for directory in (short_run, published):
        run = RunFiles.open(directory)
        starts.append(start_for(run, run.require_clients().cards["rotated-4"])[1].adapter)
    for mine, theirs in zip(*(one.tensors().values() for one in starts), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_its_card_tells_made_adapters_from_the_anchor(short_run: Path, published: Path) -> None:
    figures = RunFiles.open(short_run).records[-1]["evaluation"]
    made, anchor = (f"{100 * figures[key]['zero_step']['mean']:.1f} %" for key in ("seen", "seen anchor"))
    told = f"{made} on the test data of {figures['seen']['clients']} seen clients, mean over clients, with the adapters"
    assert (
        f"{told} made for them, before any local step; {anchor} with the anchor"
        in (published / "README.md").read_text()
    )
    assert f"- {anchor} on the test data" in (published / "anchor" / "README.md").read_text()


def test_adapters_are_made_from_it_in_the_current_directory(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, (image, label) in enumerate(zip(*(part[:60] for part in digits_public()), strict=True)):
        path = tmp_path / "mine" / str(int(label)) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    monkeypatch.chdir(tmp_path)
    before = sorted(published.rglob("*"))
    invoke("personalize", published, "mine", "--steps", 0)
    assert (tmp_path / "personal" / "mine" / "generated" / "adapter_model.safetensors").is_file()
    assert sorted(published.rglob("*")) == before


def test_it_tells_of_no_path_machine_or_time_and_no_clients_accuracy(short_run: Path, published: Path) -> None:
    assert {path.name for path in published.iterdir()} == {
        "README.md", "PRIVACY.md", "anchor", "clients.json", "config.json", "environment.json",
        "metrics.jsonl", "state.safetensors",
    }  # fmt: skip
    text = "".join(path.read_text(errors="replace") for path in published.iterdir() if path.is_file())
    assert str(short_run) not in text
    assert "cores" not in json.loads((published / "environment.json").read_text())
    records = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
    assert [record["cohort"] for record in records] == [[], [], []]
    assert all(not record["seconds"] and not record["failures"] for record in records)
    statement = (published / "PRIVACY.md").read_text()
    assert "without noise" in statement
    assert "its class statistics, in `state.safetensors`" in statement
    assert "its class statistics, in `state.safetensors`" in (DEMO / "PRIVACY.md").read_text()
    assert "license: apache-2.0" in (published / "README.md").read_text()


def test_nothing_in_it_is_pickle(published: Path) -> None:
    for directory in (published, DEMO):
        files = [path for path in directory.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json", ".jsonl", ".md", ".safetensors"}
        assert not any(zipfile.is_zipfile(path) for path in files)  # as what torch.save writes is


def test_it_cannot_be_gone_on_with_and_an_old_directory_is_not_overwritten(short_run: Path, published: Path) -> None:
    with pytest.raises(CommandError, match="cannot be gone on with"):
        settings_of_run(published)
    assert "is there already" in invoke("publish", short_run, "--to", published, status=1)


def test_the_backbone_that_comes_with_it_is_the_one_that_is_loaded(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("publish", short_run, "--to", tmp_path / "digits", "--with-backbone")
    run = RunFiles.open(tmp_path / "digits")
    monkeypatch.setattr("models.backbones.digits_vit.pretrain", lambda *_, **__: pytest.fail("it is made again"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert run.rebuild_model().backbone.fingerprint == RunFiles.open(short_run).fingerprint
    weights = run.path / "backbone.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(RunFilesError, match="have fingerprint"):
        run.rebuild_model()


def test_it_is_read_from_the_hub_by_name(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: asked.append(name) or str(published))
    assert RunFiles.open(Path("hf:somebody/digits")).config.method == "hyperlora"
    assert asked == ["somebody/digits"]


def test_a_federation_of_own_data_needs_none_of_them(published: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "photos"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "data.name": "folder"}))
    assert RunFiles.open(copy).rebuild_model().backbone.fingerprint == RunFiles.open(published).fingerprint


def test_the_anchor_of_a_published_federation_is_exported(published: Path, tmp_path: Path) -> None:
    invoke("export", published, "--to", tmp_path / "anchor")
    made, given = (folder / "adapter_model.safetensors" for folder in (tmp_path / "anchor", published / "anchor"))
    assert made.read_bytes() == given.read_bytes()
    assert "clients' adapters out" in invoke("export", published, "--client", "clean-0", status=1)

"""`hyperlora export` on a real, short run: what it writes loads without our code and predicts the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from client_app.runtime import ClientRuntime, open_runtime
from hyperlora.cli.export import WEIGHTS
from hyperlora.cli.main import app
from hyperlora.config.schema import RunConfig
from hyperlora.task import build_model
from tests.integration.conftest import make_short_run


@pytest.fixture
def runtime(short_run: Path) -> ClientRuntime:
    return open_runtime(RunConfig.parse(json.loads((short_run / "config.json").read_text())))


def export(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert outcome.exit_code == status, outcome.output
    return outcome.output


def score_of(run: Path, client: str) -> float:
    scores = json.loads((run / "evaluation.json").read_text())
    return next(one["zero_step"] for one in scores if one["client_id"] == client and one["track"] == "start")


def test_an_exported_adapter_loads_with_peft_and_has_the_accuracy_that_the_run_reported(
    short_run: Path, tmp_path: Path, runtime: ClientRuntime
) -> None:
    export(short_run, "--client", "noisy-4", "--to", tmp_path / "mine")
    backbone = build_model(runtime.config.data, runtime.config.model, runtime.config.lora).peft_model.unload()
    model = PeftModel.from_pretrained(backbone, str(tmp_path / "mine")).eval()
    test = runtime.client("noisy-4").test
    with torch.no_grad():
        predicted = model(runtime.model.backbone.prepare(test.inputs)).argmax(dim=1)
    accuracy = float((predicted == test.labels).float().mean())
    assert accuracy == pytest.approx(score_of(short_run, "noisy-4"))
    assert accuracy > 0.2


def test_a_merged_model_loads_with_timm_alone_and_predicts_as_the_adapter_does(
    short_run: Path, tmp_path: Path, runtime: ClientRuntime
) -> None:
    export(short_run, "--client", "noisy-4", "--merged", "--to", tmp_path / "merged")
    model = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True).eval()
    model.load_state_dict(load_file(tmp_path / "merged" / "model.safetensors"), strict=True)
    test = runtime.client("noisy-4").test
    with torch.no_grad():
        predicted = model(runtime.model.backbone.prepare(test.inputs)).argmax(dim=1)
    assert float((predicted == test.labels).float().mean()) == pytest.approx(score_of(short_run, "noisy-4"))


def test_the_anchor_is_exported_where_no_client_is_named(short_run: Path, tmp_path: Path) -> None:
    export(short_run, "--to", tmp_path / "anchor")
    exported = load_file(tmp_path / "anchor" / "adapter_model.safetensors")
    original = load_file(short_run / "adapters" / "anchor" / "adapter_model.safetensors")
    torch.testing.assert_close(exported, original)


def test_the_model_card_names_method_figures_and_fingerprint_and_no_path(short_run: Path, tmp_path: Path) -> None:
    export(short_run, "--client", "clean-0", "--to", tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    fingerprint = json.loads((short_run / "environment.json").read_text())["backbone_fingerprint"]
    assert fingerprint in card
    assert f"{100 * score_of(short_run, 'clean-0'):.1f} %" in card
    assert "| lora.rank | 4 |" in card
    assert str(short_run) not in card
    assert "data.path" not in card


def accuracy_with_peft(runtime: ClientRuntime, directory: Path, client: str = "") -> tuple[float, int]:
    """Accuracy on validation samples by PEFT alone: a client's, or all training clients' with their class priors."""
    backbone = build_model(runtime.config.data, runtime.config.model, runtime.config.lora).peft_model.unload()
    model = PeftModel.from_pretrained(backbone, str(directory)).eval()
    hits = count = 0
    for name in [client] if client else runtime.federation.client_ids:
        samples = runtime.client(name).validation
        if client or runtime.client(name).trains:
            prior = 0 if client else runtime.config.prior_strength * runtime.frequencies(name).log()
            with torch.no_grad():
                predicted = (model(runtime.model.backbone.prepare(samples.inputs)) + prior).argmax(dim=1)
            hits, count = hits + int((predicted == samples.labels).sum()), count + len(samples.labels)
    return hits / count, count


@pytest.mark.parametrize(("asked", "client"), [(("--rank", "2"), "noisy-4"), (("--bytes", "16k"), "")])
def test_a_smaller_adapter_loads_with_peft_and_has_the_accuracy_that_was_printed(
    short_run: Path, tmp_path: Path, runtime: ClientRuntime, asked: tuple[str, str], client: str
) -> None:
    source = short_run / "adapters" / (client or "anchor")
    said = export(short_run, *asked, "--to", tmp_path / "small", *(("--client", client) if client else ()))
    accuracy, count = accuracy_with_peft(runtime, tmp_path / "small", client)
    before, _ = accuracy_with_peft(runtime, source, client)
    assert f"{100 * before:.1f} % before, {100 * accuracy:.1f} % after" in said
    assert f"on {count} validation samples" in said
    ranks = {
        len(one) for name, one in load_file(tmp_path / "small" / WEIGHTS).items() if name.endswith("lora_A.weight")
    }
    size = (tmp_path / "small" / WEIGHTS).stat().st_size
    assert (ranks == {2}) if asked[0] == "--rank" else (len(ranks) > 1 and 15_000 < size <= 16_000)
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"{size} of {(source / WEIGHTS).stat().st_size} bytes" in card


def test_without_the_runs_data_the_error_of_every_product_is_told(short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    config = json.loads((short_run / "config.json").read_text()) | {"data.name": "folder", "data.path": "/nowhere"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    said = export(tmp_path / "run", "--rank", "1", "--to", tmp_path / "small")
    assert said.count("blocks.") == len(load_file(tmp_path / "small" / WEIGHTS)) // 2 - 1
    assert "accuracy is not measured: " in said


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (("--rank", "2", "--bytes", "50k"), "give one of them"),
        (("--rank", "2", "--merged"), "the size of the backbone"),
        (("--bytes", "many"), "expected a size as 50000, 50k or 1.5M, got 'many'"),
        (("--bytes", "100"), "at rank 1 the adapter has"),
        (("--rank", "4"), "has rank 4 and"),
    ],
)
def test_a_size_that_cannot_be_is_one_sentence(short_run: Path, asked: tuple[str, ...], answer: str) -> None:
    assert answer in " ".join(export(short_run, *asked, status=1).split())


def test_a_client_that_the_run_does_not_have_is_answered_with_those_it_has(short_run: Path) -> None:
    assert "it has clean-0, clean-1" in export(short_run, "--client", "nobody", status=1)


def test_a_target_that_is_there_is_not_overwritten(short_run: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    assert "is there already" in export(short_run, "--to", tmp_path, status=1)


def test_a_directory_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    assert "holds no run" in export(tmp_path, status=1)


def test_a_run_that_has_not_ended_says_how_to_go_on(short_run: Path, tmp_path: Path) -> None:
    for name in ("config.json", "metrics.jsonl", "environment.json", "clients.json"):
        shutil.copy(short_run / name, tmp_path / name)
    assert "hyperlora run --resume" in export(tmp_path, status=1)


def test_other_weights_than_the_runs_are_refused(short_run: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    other = json.loads((short_run / "environment.json").read_text()) | {"backbone_fingerprint": "f" * 64}
    (tmp_path / "run" / "environment.json").write_text(json.dumps(other))
    assert "the run was made with ffffffffffff" in export(tmp_path / "run", "--merged", status=1)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_not_exported(short_run: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(short_run, tmp_path / "run")
    (tmp_path / "run" / "adapters" / "anchor" / name).write_bytes(b"")
    said = export(tmp_path / "run", "--to", tmp_path / "out", status=1)
    assert "is damaged" in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_every_adapter_of_a_run_has_our_card_whose_code_loads_it_as_it_stands(
    short_run: Path, monkeypatch: pytest.MonkeyPatch, runtime: ClientRuntime
) -> None:
    adapters = short_run / "adapters"
    cards = {path.name: (path / "README.md").read_text() for path in adapters.iterdir()}
    assert all(card.count("HyperLoRA on Flower") == 1 for card in cards.values())
    assert f"{100 * score_of(short_run, 'noisy-4'):.1f} %" in cards["noisy-4"]
    code = re.search(r"```python\n(.*?)```", cards["noisy-4"], flags=re.DOTALL)
    assert code
    monkeypatch.chdir(adapters)
    names: dict[str, Any] = {}
    exec(code[1], names)
    test = runtime.client("noisy-4").test
    with torch.no_grad():
        predicted = names["model"](names["backbone"].prepare(test.inputs)).argmax(dim=1)
    assert float((predicted == test.labels).float().mean()) == pytest.approx(score_of(short_run, "noisy-4"))


def test_a_run_whose_adapters_peft_has_no_form_for_writes_none_and_says_so(tmp_path: Path) -> None:
    routed = {"method": "ffa-lora", "lora.adapter": "fly", "lora.active": 2, "federation.rounds": 1}
    run = make_short_run(tmp_path / "run", **routed)
    assert not (run / "adapters").exists()
    sentence = "lora.adapter = fly chooses components for each token, which PEFT has no form for"
    assert sentence in (run / "console.log").read_text()
    assert sentence in re.sub(r"\s+", " ", export(run, status=1))
    assert len(json.loads((run / "evaluation.json").read_text())) == 20

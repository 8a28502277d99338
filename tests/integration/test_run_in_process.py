"""A real run on digits through the real ServerApp and ClientApp, in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message
from peft import PeftModel

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from client_app.runtime import open_runtime
from hyperlora.accounting import composed_epsilon
from hyperlora.config.schema import RunConfig
from hyperlora.data.digits import digits_public
from hyperlora.storage.tensor_store import TensorStore
from models.adapters.training import evaluate
from models.backbones.backbone import Backbone
from models.backbones.loading import build_backbone
from server_app.run import run
from strategies.engine.strategy import LoraStrategy
from strategies.federation.registrar import Registrar
from strategies.federation.roster import FederationError
from tests.integration.conftest import SHORT

SMALL = SHORT


def make_run(directory: Path, **overrides: Any) -> Path:
    values = RunConfig.parse({**SMALL, "run.output-dir": str(directory), **overrides}).flat()
    return run(LocalGrid(client_app, values, 4), values)


def metrics_without_times(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture
def finished(short_run: Path) -> Path:
    return short_run


def fresh_backbone() -> Backbone:
    model = RunConfig().model
    return build_backbone(
        name=model.name, weights="", image_size=model.image_size, num_classes=10, pretraining=digits_public
    )


def test_the_run_directory_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", "evaluation.json", "accuracy.png",
                     "accuracy.svg", "console.log", "adapters"}  # fmt: skip
    assert len(list((finished / "adapters").iterdir())) == 20 + 1
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["backbone_fingerprint"] == fresh_backbone().fingerprint
    assert RunConfig.parse(json.loads((finished / "config.json").read_text())).federation.rounds == 3


def test_the_run_learns(finished: Path) -> None:
    records = metrics_without_times(finished)
    assert records[-1]["training"]["start_accuracy"]["mean"] > records[0]["training"]["start_accuracy"]["mean"]
    assert records[-1]["evaluation"]["unseen"]["zero_step"]["mean"] > 0.3


def test_every_adapter_loads_with_peft_and_gives_the_accuracy_that_was_reported(finished: Path) -> None:
    runtime = open_runtime(RunConfig.parse(SMALL))
    scores = json.loads((finished / "evaluation.json").read_text())
    for score in [one for one in scores if one["track"] == "start"]:
        backbone = fresh_backbone()
        model = PeftModel.from_pretrained(backbone.module, str(finished / "adapters" / score["client_id"])).eval()
        test = runtime.client(score["client_id"]).test
        with torch.no_grad():
            predicted = model(backbone.prepare(test.inputs)).argmax(dim=1)
        assert float((predicted == test.labels).float().mean()) == pytest.approx(score["zero_step"], abs=1e-6)


def test_clients_have_different_adapters(finished: Path) -> None:
    files = [path.read_bytes() for path in sorted((finished / "adapters").glob("*/adapter_model.safetensors"))]
    assert len(set(files)) == len(files)


@pytest.mark.usefixtures("metrics_alone")
def test_the_same_seed_gives_the_same_metrics_and_another_does_not(finished: Path, tmp_path: Path) -> None:
    assert metrics_without_times(make_run(tmp_path / "again")) == metrics_without_times(finished)
    other = make_run(tmp_path / "other", seed=1, **{"federation.rounds": 1})
    assert metrics_without_times(other)[0]["training"] != metrics_without_times(finished)[0]["training"]


@pytest.mark.usefixtures("metrics_alone")
def test_local_steps_of_an_evaluation_reach_neither_server_nor_later_evaluations(finished: Path) -> None:
    """Evaluating every round instead of every second one changes no training figure and no last score."""
    often = make_run(finished.parent / "often", **{"federation.evaluate-every": 1})
    kept = ("training", "cohort")
    for one, other in zip(metrics_without_times(often), metrics_without_times(finished), strict=True):
        assert [one[key] for key in kept] == [other[key] for key in kept]
    assert metrics_without_times(often)[-1] == metrics_without_times(finished)[-1]


@pytest.mark.usefixtures("metrics_alone")
def test_a_prior_of_strength_zero_is_no_prior(tmp_path: Path) -> None:
    few = {"data.clients-per-domain": 2, "data.unseen-fraction": 0.5, "federation.clients-per-round": 3}
    few |= {"federation.rounds": 1, "train.local-steps": 2}
    off = make_run(tmp_path / "off", **few, **{"prior.use": "off"})
    zero = make_run(tmp_path / "zero", **few, **{"prior.gamma": 0.0})
    assert metrics_without_times(off) == metrics_without_times(zero)


def test_a_fresh_adapter_gives_the_output_of_the_backbone() -> None:
    runtime = open_runtime(RunConfig.parse(SMALL))
    model, client = runtime.model, runtime.federation.client_ids[0]
    model.load(model.initialise(seed=1))
    assert evaluate(model, runtime.tokens(client, "test"))[1] == pytest.approx(2.302585, abs=1e-4)
    tokens = runtime.tokens(client, "test").tokens
    adapted = model.logits(tokens)
    with model.peft_model.disable_adapter():
        assert torch.equal(adapted, model.logits(tokens))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"lora.rank": 65}, "lora.rank is 65, larger than layer 'attn.qkv' of 'digits-vit' allows (at most 64)"),
        ({"lora.last-blocks": 5}, "lora.last-blocks is 5, but 'digits-vit' has 4 blocks"),
        ({"federation.clients-per-round": 17}, "federation.clients-per-round is 17, but only 16 clients train"),
        ({"model.name": "no_such_vit"}, "no_such_vit"),
        ({"data.clients-per-domain": 500}, "expected 2000 clients"),
        ({"data.name": "pacs", "data.path": "/no/such/place", "model.image-size": 16}, "/no/such/place"),
        ({"federation.min-clients": 21, "federation.join-timeout": 0.1}, "expected 21 clients"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, overrides: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, FederationError)) as caught:
        make_run(tmp_path / "wrong", **overrides)
    assert sentence in str(caught.value)
    assert (tmp_path / "wrong" / "error.txt").read_text().strip() == str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_directory_that_holds_a_run_is_not_overwritten(finished: Path) -> None:
    before = sorted(path.name for path in finished.iterdir())
    with pytest.raises(ValueError, match="already holds a run"):
        make_run(finished)
    assert sorted(path.name for path in finished.iterdir()) == before


def test_what_a_run_writes_is_its_owners_alone(finished: Path) -> None:
    written = [finished, *(path for path in finished.rglob("*") if path.name != ".lock")]
    assert [path for path in written if path.stat().st_mode & 0o077] == []


@pytest.mark.usefixtures("metrics_alone")
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    stopped = make_run(tmp_path / "stopped", **{"federation.rounds": 2, "run.checkpoint-every": 1})
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"server_round": 3, "half": "written')
    resumed = make_run(stopped, **{"run.resume": True})
    assert metrics_without_times(resumed)[-1] == metrics_without_times(finished)[-1]
    assert [record["server_round"] for record in metrics_without_times(resumed)] == [1, 2, 3]


@pytest.mark.usefixtures("metrics_alone")
def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(finished: Path, tmp_path: Path) -> None:
    stopped = make_run(tmp_path / "stopped", **{"run.checkpoint-every": 2, "federation.rounds": 1})
    shutil.rmtree(stopped / "checkpoints")
    assert metrics_without_times(make_run(stopped, **{"run.resume": True})) == metrics_without_times(finished)


@pytest.mark.parametrize("stopped_in", [1, 2])
@pytest.mark.usefixtures("metrics_alone")
def test_a_round_that_is_made_again_costs_privacy_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: int
) -> None:
    values = {"method": "fedit", "federation.rounds": 2, "federation.evaluate-every": 2, "run.checkpoint-every": 1}
    values |= {"data.clients-per-domain": 1, "data.unseen-fraction": 0.0, "federation.clients-per-round": 4}
    values |= {"privacy.adapter-noise": 8.0, "privacy.adapter-clip": 1e-3, "hyperlora.probe-clients": 0}
    aggregate = LoraStrategy.aggregate_train

    def stop(strategy: LoraStrategy, server_round: int, replies: Iterable[Message]) -> Any:
        if server_round == stopped_in:
            assert list(replies)
            raise RuntimeError("power cut")
        return aggregate(strategy, server_round, replies)

    monkeypatch.setattr(LoraStrategy, "aggregate_train", stop)
    with pytest.raises(RuntimeError, match="power cut"):
        make_run(tmp_path, **values)
    monkeypatch.setattr(LoraStrategy, "aggregate_train", aggregate)
    with (tmp_path / "asked.jsonl").open("a") as file:
        file.write('{"server_round": 9, "half": "written')
    make_run(tmp_path, **values, **{"run.resume": True})
    spent = [record["privacy"]["epsilon"] for record in metrics_without_times(tmp_path)]
    releases = [2, 3] if stopped_in == 1 else [1, 3]
    assert spent == pytest.approx([composed_epsilon([(8.0, count)], 1e-5) for count in releases])
    make_run(tmp_path, **(values | {"run.resume": True, "federation.rounds": 3}))
    last = metrics_without_times(tmp_path)[-1]
    assert last["privacy"]["epsilon"] == pytest.approx(composed_epsilon([(8.0, 4)], 1e-5))


def test_a_run_that_was_stopped_while_it_wrote_its_results_writes_them(finished: Path, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(finished, tmp_path / "stopped"))
    (stopped / "evaluation.json").unlink()
    shutil.rmtree(stopped / "adapters")
    make_run(stopped, **{"run.resume": True})
    assert (stopped / "evaluation.json").read_bytes() == (finished / "evaluation.json").read_bytes()
    assert len(list((stopped / "adapters").iterdir())) == 20 + 1
    assert metrics_without_times(stopped) == metrics_without_times(finished)


@pytest.mark.usefixtures("metrics_alone")
def test_a_run_of_a_version_with_fewer_keys_goes_on(finished: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    config = json.loads((old / "config.json").read_text())
    del config["federation.min-replies"]
    (old / "config.json").write_text(json.dumps(config))
    make_run(old, **{"run.resume": True, "federation.rounds": 4})
    assert len(metrics_without_times(old)) == 4


def test_a_run_cannot_go_on_with_other_settings(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot go on with another lora\.rank"):
        make_run(finished, **{"run.resume": True, "lora.rank": 2, "federation.rounds": 4})
    (finished / "error.txt").unlink()


def test_a_run_whose_rounds_are_made_is_left_as_it_is(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"3 rounds of the run in .* are made and federation\.rounds is 3"):
        make_run(finished, **{"run.resume": True})
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_directory_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run to go on with"):
        make_run(tmp_path / "nothing", **{"run.resume": True})


@pytest.mark.usefixtures("metrics_alone")
def test_a_memory_on_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"hyperlora.deviations": "rounds", "train.local-steps": 2, "train.adapt-steps": 0}
    in_memory = make_run(tmp_path / "memory", **own)
    written, write = [], TensorStore._written
    monkeypatch.setattr(TensorStore, "_written", lambda store, tensors: written.append(1) or write(store, tensors))
    on_disk = make_run(tmp_path / "disk", **own, **{"hyperlora.memory-limit": 2})
    assert len(written) >= 6
    assert metrics_without_times(on_disk) == metrics_without_times(in_memory)


@pytest.mark.usefixtures("metrics_alone")
def test_probing_deviations_changes_what_newcomers_get_and_nothing_else(tmp_path: Path) -> None:
    own = {"hyperlora.deviations": "serving", "hyperlora.statistics": False}
    own |= {"train.local-steps": 2, "train.adapt-steps": 0}
    probed = metrics_without_times(make_run(tmp_path / "probed", **own))
    plain = metrics_without_times(make_run(tmp_path / "run", **own, **{"hyperlora.probe-clients": 0}))
    assert plain[-1]["method"]["newcomer_strength"] == 1.0
    assert probed[-1]["method"]["newcomer_strength"] in (0.0, 0.5, 1.0)
    assert [one["bytes"].get("probe_up", 0) > 0 for one in probed] == [False, True, True]
    assert probed[-1]["evaluation"]["seen"] == plain[-1]["evaluation"]["seen"]


@pytest.mark.usefixtures("metrics_alone")
def test_heads_from_class_statistics_are_served_and_never_trained(finished: Path, tmp_path: Path) -> None:
    own = {"hyperlora.statistics": False, "train.adapt-steps": 0}
    served, plain = metrics_without_times(finished), metrics_without_times(make_run(tmp_path / "plain", **own))
    assert [one["bytes"].get("statistics_up", 0) > 0 for one in served] == [False, True, True]
    assert [one["training"] for one in served] == [one["training"] for one in plain]
    gains = [
        served[-1]["evaluation"][group]["zero_step"]["mean"] - plain[-1]["evaluation"][group]["zero_step"]["mean"]
        for group in ("seen", "unseen")
    ]
    assert min(gains) > 0.02


def test_a_method_says_what_is_off(finished: Path) -> None:
    assert "off: synthesizer, LoRA generator, corrector" in (finished / "console.log").read_text()


@pytest.mark.usefixtures("metrics_alone")
def test_the_generator_that_puts_out_factors_runs(tmp_path: Path) -> None:
    own = {"generator.kind": "mlp", "generator.rank": 4, "hyperlora.deviations": "rounds", "train.adapt-steps": 0}
    last = metrics_without_times(make_run(tmp_path / "mlp", **own))[-1]
    assert last["evaluation"]["unseen generator"]["zero_step"]["mean"] > 0.2


def test_a_node_of_another_backbone_is_left_out_and_the_reason_is_named() -> None:
    values = RunConfig.parse(SMALL).flat()
    registrar = Registrar(fingerprint="f" * 64, signature_size=2 * 64 + 10 + 1, num_classes=10)
    with pytest.raises(
        FederationError, match="this node has another backbone: the server's fingerprint is ffffffffffff"
    ):
        registrar.wait_for(LocalGrid(client_app, values, 2), wanted=20, join_timeout=0.1, reply_timeout=60)
    assert registrar.roster.cards == {}
    assert sorted(registrar.roster.left_out) == ["node 1", "node 2"]

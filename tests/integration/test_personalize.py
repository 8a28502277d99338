"""`hyperlora personalize` on a real, short run and a folder of images that no client had."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from typer.testing import CliRunner

from client_app.runtime import open_runtime
from hyperlora import newcomer, serving
from hyperlora.cli.main import app
from hyperlora.config.schema import RunConfig
from hyperlora.data.personal import Shares, read_image_folder
from hyperlora.newcomer import start_for
from hyperlora.reporting.run_files import RunFiles
from hyperlora.serving import PersonalizeOptions
from hyperlora.task import build_model
from models.adapters.training import evaluate
from models.personalization.prior import add_prior


def personalize(*arguments: object, status: int = 0) -> str:
    outcome = CliRunner().invoke(app, ["personalize", *map(str, arguments)])
    assert outcome.exit_code == status, outcome.output
    return outcome.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rotated digits of another division's clients, as files."""
    root = tmp_path_factory.mktemp("images") / "mine"
    runtime = open_runtime(RunConfig.parse({"seed": 5}))
    for client_id in ("rotated-0", "rotated-1"):
        data = runtime.client(client_id)
        for part, samples in (("a", data.train), ("b", data.test)):
            for index, (image, label) in enumerate(zip(samples.inputs, samples.labels, strict=True)):
                path = root / str(int(label)) / f"{client_id}-{part}-{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def personal(short_run: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("personal") / "adapters"
    personalize(short_run, folder, "--to", target, "--steps", 4)
    return target


def test_both_adapters_load_with_peft_and_have_the_accuracy_that_was_said(personal: Path, folder: Path) -> None:
    scores = json.loads((personal / "scores.json").read_text())
    config = RunConfig()
    classes = [str(digit) for digit in range(10)]
    test = read_image_folder(folder, "mine", classes, image_size=16, channels=1, shares=Shares(0.15, 0.25)).test
    assert len(test) == scores["num_test"]
    for name, accuracy in zip(("generated", "after-4-steps"), scores["accuracy"], strict=True):
        built = build_model(config.data, config.model, config.lora)
        model = PeftModel.from_pretrained(built.peft_model.unload(), str(personal / name)).eval()
        with torch.no_grad():
            predicted = model(built.backbone.prepare(test.inputs)).argmax(dim=1)
        assert float((predicted == test.labels).float().mean()) == pytest.approx(accuracy)


def test_the_generated_adapter_is_far_better_than_chance_and_local_steps_change_it(personal: Path) -> None:
    scores = json.loads((personal / "scores.json").read_text())
    assert scores["steps"] == [0, 4]
    assert scores["accuracy"][0] > 0.3
    assert scores["validation_loss"][0] != scores["validation_loss"][1]


def test_the_same_signature_under_a_new_name_gets_nearly_what_the_unseen_client_got(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    card = run.require_clients().cards["rotated-4"]
    after_round, start = start_for(run, replace(card, client_id="somebody"))
    assert after_round == 3
    runtime = open_runtime(run.config)
    tokens = runtime.tokens("rotated-4", "test")
    runtime.model.load(add_prior(start.adapter, card.signature.class_frequencies, run.config.prior_strength))
    accuracy, _ = evaluate(runtime.model, tokens)
    score = next(one for one in run.scores if one["client_id"] == "rotated-4" and one["track"] == "start")
    assert accuracy == pytest.approx(score["zero_step"], abs=0.15)


def test_another_signature_gets_another_adapter(short_run: Path) -> None:
    run = RunFiles.open(short_run)
    cards = run.require_clients().cards
    starts = [start_for(run, replace(cards[name], client_id="x"))[1].adapter for name in ("rotated-4", "inverted-4")]
    assert float((starts[0].head - starts[1].head).norm()) > 1e-2


def test_the_library_function_gives_what_the_command_writes(
    short_run: Path, folder: Path, personal: Path, tmp_path: Path
) -> None:
    options = PersonalizeOptions(steps=4, target=tmp_path / "made")
    made = serving.personalize(short_run, folder, options)
    assert made.directory == str(tmp_path / "made")
    scores = json.loads((personal / "scores.json").read_text())
    assert (list(made.steps), made.num_test) == (scores["steps"], scores["num_test"])
    assert made.accuracy == pytest.approx(scores["accuracy"])


def test_no_local_step_writes_the_generated_adapter_alone(short_run: Path, folder: Path, tmp_path: Path) -> None:
    said = personalize(short_run, folder, "--steps", 0, "--to", tmp_path / "a", "--format", "json")
    assert len(json.loads(said)["accuracy"]) == 1
    made = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"generated", "scores.json"} <= made <= {"generated", "anchor", "scores.json"}


def test_a_directory_that_is_no_class_is_named(short_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "eleven").mkdir(parents=True)
    said = personalize(short_run, tmp_path / "images", "--to", tmp_path / "a", status=1)
    assert "no class of the run: eleven; its classes are 0, 1, 2" in said


def test_a_bad_image_is_left_out_with_its_name_and_the_others_are_used(
    short_run: Path, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = Path(shutil.copytree(folder, tmp_path / "mine"))
    (images / "3" / "broken.png").write_bytes(b"no image")
    made = serving.personalize(short_run, images, PersonalizeOptions(steps=0, target=tmp_path / "a"))
    total = len(list(images.rglob("*.png")))
    assert f"1 of {total} images cannot be read and are left out: 3/broken.png" in caplog.text
    assert made.num_train + made.num_validation + made.num_test == total - 1


def test_a_folder_that_cannot_be_used_leaves_no_directory(short_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "3").mkdir(parents=True)
    for index in range(4):
        (tmp_path / "images" / "3" / f"{index}.png").write_bytes(b"no image")
    said = personalize(short_run, tmp_path / "images", "--to", tmp_path / "a", status=1)
    assert "has 0 readable images below its class directories" in said
    assert not (tmp_path / "a").exists()


def test_beside_the_scores_stand_those_of_the_anchor_and_of_the_largest_class(personal: Path, folder: Path) -> None:
    scores = json.loads((personal / "scores.json").read_text())
    behind = scores["anchor_validation_loss"][0] >= scores["validation_loss"][0]
    assert len(scores["anchor_accuracy"]) == len(scores["anchor_validation_loss"]) == (1 if behind else 2)
    assert scores["anchor_accuracy"][0] != scores["accuracy"][0]
    classes = [str(digit) for digit in range(10)]
    data = read_image_folder(folder, "mine", classes, image_size=16, channels=1, shares=Shares(0.15, 0.25))
    largest = data.train.labels.bincount().argmax()
    assert scores["majority_accuracy"] == pytest.approx(float((data.test.labels == largest).float().mean()))


def test_the_start_with_the_lower_validation_loss_is_the_one_to_use(
    short_run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PersonalizeOptions(steps=2, target=tmp_path / "a")
    made = serving.personalize(short_run, folder, options)
    losses = dict(zip(("generated", "after-2-steps"), made.validation_loss, strict=True))
    losses |= dict(zip(("anchor", "anchor-after-2-steps"), made.anchor_validation_loss, strict=False))
    assert made.use == min(losses, key=losses.__getitem__)
    assert (tmp_path / "a" / made.use / "adapter_model.safetensors").is_file()
    started, serve = RunFiles.open(short_run), newcomer.serve

    def useless(*arguments: Any) -> newcomer.Served:
        served = serve(*arguments)
        wrong = replace(served.start.adapter, head=100 * served.start.adapter.head.flip(0))
        return replace(served, start=replace(served.start, adapter=wrong))

    monkeypatch.setattr(newcomer, "serve", useless)
    fallen = serving.personalize(started.path, folder, replace(options, target=tmp_path / "b"))
    assert fallen.use.startswith("anchor")
    built = build_model(started.config.data, started.config.model, started.config.lora)
    directory = str(tmp_path / "b" / "anchor-after-2-steps")
    model = PeftModel.from_pretrained(built.peft_model.unload(), directory).eval()
    classes = [str(digit) for digit in range(10)]
    test = read_image_folder(folder, "mine", classes, image_size=16, channels=1, shares=Shares(0.15, 0.25)).test
    with torch.no_grad():
        predicted = model(built.backbone.prepare(test.inputs)).argmax(dim=1)
    assert float((predicted == test.labels).float().mean()) == pytest.approx(fallen.anchor_accuracy[1])


def test_data_far_from_those_of_every_client_are_warned_of(short_run: Path, folder: Path, tmp_path: Path) -> None:
    said = personalize(short_run, folder, "--steps", 0, "--to", tmp_path / "a")
    assert "nearest client: rotated-" in said
    assert "unlike those of every client" not in said
    for index, label in enumerate("0123456789" * 4):
        path = tmp_path / "flat" / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 6 * index).save(path)
    assert "unlike those of every client" in personalize(
        short_run, tmp_path / "flat", "--steps", 0, "--to", tmp_path / "b"
    )


def test_a_name_that_a_client_of_the_run_has_is_refused(short_run: Path, folder: Path, tmp_path: Path) -> None:
    said = personalize(short_run, folder, "--name", "clean-0", "--to", tmp_path / "a", status=1)
    assert "choose another name with --name" in said


def test_an_empty_folder_is_one_sentence(short_run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    said = personalize(short_run, tmp_path / "images", "--to", tmp_path / "a", status=1)
    assert "has 0 readable images below its class directories" in said

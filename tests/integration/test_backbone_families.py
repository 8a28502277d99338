"""A whole round of every family of backbones on own data, through the real ServerApp and ClientApp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import save_file

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from client_app.runtime import open_runtime
from hyperlora.config.schema import RunConfig
from hyperlora.serving import PersonalizeOptions, personalize
from models.backbones.loading import build_backbone
from server_app.run import run
from strategies.federation.roster import FederationError
from tests import tiny_mixer
from tests.tiny_models import write_model

SMALL = {
    "data.clients-per-domain": 3,
    "data.dirichlet-alpha": 0.0,
    "data.unseen-fraction": 0.34,
    "federation.rounds": 1,
    "lora.rank": 2,
    "train.local-steps": 2,
    "train.batch-size": 8,
    "model.image-size": 24,
}
TEXT_FAMILIES = ("bert", "distilbert", "deberta-v2")
IMAGE_FAMILIES = ("vit", "dinov2", "clip", "siglip")
TEXT_TOWER = "clip, both towers"
TIMM = {"mixer": tiny_mixer.tiny_mixer.__name__, "timm vit": "test_vit"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("photos")
    for index in range(66):
        directory = root / ("cat", "film", "book")[index % 3]
        directory.mkdir(exist_ok=True)
        Image.new("RGB", (30, 24), (index, 3 * index, 85 * (index % 3))).save(directory / f"{index}.png")
    return str(root)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = [f"{'very ' * (i % 7)}{('bad', 'good')[i % 2]} film {i},{('neg', 'pos')[i % 2]}" for i in range(66)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("instructions") / "instructions.jsonl"
    rows = [{"prompt": f"{'very ' * (i % 5)}a film", "response": ("good book", "bad")[i % 2]} for i in range(66)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def model_values(family: str, directory: Path) -> dict[str, str | int]:
    if family == TEXT_TOWER:
        return {"model.name": write_model("clip", directory), "model.text-tower": True}
    if family not in TIMM:
        return {"model.name": write_model(family, directory)}
    size = 32 if family == "timm vit" else 24
    path = str(directory / "weights.safetensors")
    torch.manual_seed(0)
    save_file(timm.create_model(TIMM[family], img_size=size).state_dict(), path)
    return {"model.name": TIMM[family], "model.weights": path, "model.image-size": size}


def make_run(directory: Path, values: dict[str, Any]) -> tuple[RunConfig, list[dict[str, Any]]]:
    config = RunConfig.parse({**SMALL, **values, "run.output-dir": str(directory / "run")})
    run(LocalGrid(client_app, config.flat(), 2), config.flat())
    return config, json.loads((directory / "run" / "evaluation.json").read_text())


@pytest.mark.parametrize("family", [*TEXT_FAMILIES, *IMAGE_FAMILIES, TEXT_TOWER, *TIMM])
def test_a_family_trains_and_its_adapters_load_with_peft(
    family: str, tmp_path: Path, photos: str, reviews: str
) -> None:
    own = ("csv", reviews) if family in TEXT_FAMILIES else ("folder", photos)
    values = {"data.name": own[0], "data.path": own[1], **model_values(family, tmp_path)}
    config, scores = make_run(tmp_path, values)
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert record["cohort"] == ["all-0", "all-1"]
    starts = [score for score in scores if score["track"] == "start"]
    assert [score["client_id"] for score in starts] == ["all-0", "all-1", "all-2"]
    runtime = open_runtime(config)
    backbone = build_backbone(
        name=config.model.name,
        weights=config.model.weights,
        image_size=config.model.image_size,
        num_classes=len(runtime.federation.class_names),
        class_names=runtime.federation.class_names,
        text_tower=config.model.text_tower,
    )
    adapter = tmp_path / "run" / "adapters" / "all-2"
    model = PeftModel.from_pretrained(backbone.module, str(adapter)).eval()
    test = runtime.client("all-2").test
    with torch.no_grad():
        predicted = model(backbone.prepare(test.inputs)).argmax(dim=1)
    assert float((predicted == test.labels).float().mean()) == pytest.approx(starts[2]["zero_step"], abs=1e-6)


def test_a_language_model_learns_responses_and_its_adapters_load_with_peft(tmp_path: Path, instructions: str) -> None:
    name = write_model("llama", tmp_path)
    values = {"data.name": "instructions", "data.path": instructions, "model.name": name, "train.learning-rate": 0.05}
    config, scores = make_run(tmp_path, {**values, "federation.rounds": 3, "train.local-steps": 10})
    backbone = build_backbone(name=name, weights="", image_size=24, num_classes=7)
    model = PeftModel.from_pretrained(backbone.module, str(tmp_path / "run" / "adapters" / "all-2")).eval()
    test = open_runtime(config).client("all-2").test
    inputs = backbone.prepare(test.inputs)
    targets = backbone.targets(inputs, test.labels)
    with torch.no_grad():
        right = (model(inputs).argmax(dim=1) == targets).sum() / (targets >= 0).sum()
    start = next(score for score in scores if score["client_id"] == "all-2" and score["track"] == "start")
    assert float(right) == pytest.approx(start["zero_step"], abs=1e-6)
    assert float(right) > 0.3
    assert start["loss_by_steps"]["0"] == start["zero_step_loss"]
    assert start["loss_by_steps"].keys() == start["by_steps"].keys()
    assert "class statistics" not in (tmp_path / "run" / "console.log").read_text(encoding="utf-8")  # nobody is asked
    made = personalize(tmp_path / "run", Path(instructions), PersonalizeOptions(target=tmp_path / "mine"))
    assert (tmp_path / "mine" / "generated" / "adapter_model.safetensors").is_file()
    assert made.accuracy[0] > 0.3


def test_images_under_a_text_model_are_one_sentence(tmp_path: Path, photos: str) -> None:
    values = {"data.name": "folder", "data.path": photos, "model.name": write_model("bert", tmp_path)}
    with pytest.raises(FederationError, match="takes texts, but the data are images; choose an image model"):
        make_run(tmp_path, {**values, "federation.join-timeout": 0.1})

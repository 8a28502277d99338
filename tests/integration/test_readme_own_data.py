"""README's lines for own data, word for word: a folder of images and a csv of texts train with two lines each.

Random weights stand in for the pretrained ones, which a test has no network for: of DeiT-tiny itself, and a tiny BERT.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.local_grid import LocalGrid
from client_app.app import app as client_app
from hyperlora.cli.settings import read_settings, require_inputs
from server_app.run import run
from tests.tiny_models import write_model

ROOT = Path(__file__).parents[2]
SAMPLES = 200
QUICK = ("federation.rounds=1", "train.local-steps=1", "run.checkpoint-every=0")


def readme_file(name: str) -> str:
    """The toml block that README gives as the content of the file ``name``."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"hyperlora run --config {name}" in text
    (block,) = re.findall(rf"`{re.escape(name)}`:\n\n```toml\n(.*?)```", text, re.DOTALL)
    return str(block)


def own_photos(directory: Path) -> Path:
    for index in range(SAMPLES):
        path = directory / "photos" / ("cat", "dog", "owl")[index % 3] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (index, 255 - index, 80 * (index % 3))).save(path)
    torch.manual_seed(0)
    save_file(timm.create_model("deit_tiny_patch16_224").state_dict(), directory / "deit.safetensors")
    return directory / "deit.safetensors"


def own_reviews(directory: Path) -> Path:
    rows = [f"{'very ' * (i % 9)}{('bad', 'good')[i % 2]} film {i},{('neg', 'pos')[i % 2]}" for i in range(SAMPLES)]
    (directory / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    write_model("bert", directory / "bert")
    return directory / "bert"


@pytest.mark.parametrize(("name", "write"), [("photos.toml", own_photos), ("reviews.toml", own_reviews)])
def test_own_data_train_with_the_two_lines_of_the_readme(
    name: str, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = readme_file(name)
    assert len(lines.strip().splitlines()) == 2
    weights = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(lines)
    settings = read_settings(ROOT, [Path(name)], [*QUICK, f"model.weights={weights}"], {"run.output-dir": "out"})
    require_inputs(settings.config)
    directory = run(LocalGrid(client_app, settings.config.flat(), 2), settings.config.flat())
    record = json.loads((directory / "metrics.jsonl").read_text())
    assert record["cohort"] == ["all-0", "all-1", "all-2", "all-3"]
    assert not record["failures"]
    assert {path.name for path in (directory / "adapters").iterdir()} >= {f"all-{index}" for index in range(5)}

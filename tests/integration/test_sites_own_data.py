"""Sites that bring their own data: folders that the server has never seen, as a hospital's SuperNode hosts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from PIL import Image
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.data.digits import digits_public
from server_app.run import run
from tests.integration.test_run_in_process import fresh_backbone
from tests.sites import SiteGrid

pytestmark = pytest.mark.usefixtures("every_site_keeps_its_parts")

HOSPITALS = ("north", "east", "south")
CLASSES = tuple(str(digit) for digit in range(10))
SETTINGS: dict[str, Any] = {
    "data.name": "folder",
    "data.classes": ",".join(CLASSES),
    "data.clients-per-domain": 1,
    "data.unseen-fraction": 0.0,
    "federation.min-clients": len(HOSPITALS),
    "federation.clients-per-round": len(HOSPITALS),
    "federation.rounds": 2,
    "federation.evaluate-every": 2,
    "train.local-steps": 5,
}
SAMPLES = 80


def write_folder(folder: Path, images: Tensor, labels: Tensor) -> Path:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / str(int(label)) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Node configs of three sites, each with a folder of its own digits, and one with none."""
    root, (images, labels) = tmp_path_factory.mktemp("hospitals"), digits_public()
    configs = []
    for index, name in enumerate(HOSPITALS):
        own = slice(index * SAMPLES, (index + 1) * SAMPLES)
        data = write_folder(root / name / "images", images[own], labels[own])
        configs.append({"client-id": name, "data-path": str(data), "state-dir": str(root / name / "state")})
    return [*configs, {"client-id": "west", "data-path": str(root / "nothing-here")}]


@pytest.fixture(scope="module")
def finished(sites: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = RunConfig.parse({**SETTINGS, "run.output-dir": str(tmp_path_factory.mktemp("server") / "run")}).flat()
    return run(SiteGrid(values, sites), values)


def test_every_site_trains_on_its_own_folder_and_gets_its_own_adapter(finished: Path) -> None:
    scores = json.loads((finished / "evaluation.json").read_text())
    assert {one["client_id"] for one in scores} == set(HOSPITALS)
    assert all(one["num_test"] and one["zero_step"] > 0.5 for one in scores)
    states = [
        PeftModel.from_pretrained(fresh_backbone().module, str(finished / "adapters" / name)).state_dict()
        for name in HOSPITALS
    ]
    assert any(not states[0][name].equal(states[1][name]) for name in states[0])


def test_a_site_whose_folder_is_missing_is_left_out_by_name_of_the_fault(finished: Path) -> None:
    (reason,) = json.loads((finished / "left_out.json").read_text()).values()
    assert "nothing-here" in reason


def test_the_server_holds_no_path_of_a_site(finished: Path, sites: list[dict[str, str]]) -> None:
    folders = [str(Path(site["data-path"]).parent).encode() for site in sites[:3]]
    files = [path for path in finished.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files for folder in folders if folder in path.read_bytes()]


def test_a_run_of_sums_over_folders_of_their_own(sites: list[dict[str, str]], tmp_path: Path) -> None:
    sums = {"privacy.mode": "sums", "privacy.least-clients": 3, "train.adapt-steps": 0}
    values = RunConfig.parse({**SETTINGS, **sums, "run.output-dir": str(tmp_path / "run")}).flat()
    last = json.loads((run(SiteGrid(values, sites[:3]), values) / "metrics.jsonl").read_text().splitlines()[-1])
    assert not last["failures"]
    assert last["evaluation"]["seen"]["zero_step"]["mean"] > 0.5

"""The published setting, dry: every setting of the suite ``paper`` on tiny images and tiny random backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks.pages import tables_of
from benchmarks.result import load_results, run_file
from benchmarks.run_job import run_federation
from benchmarks.suite import load_jobs
from tests import tiny_mixer
from tests.official_layouts import DOMAINS, write_domainnet, write_nico

TRAIN, TEST = 160, 25
BACKBONES = {"vit": ("test_vit", 32), "mixer": (tiny_mixer.tiny_mixer.__name__, 24)}
WRITERS = {"domainnet": write_domainnet, "nico": write_nico}
SMALL = {
    "data.first-classes": 4,
    "lora.rank": 2,
    "lora.last-blocks": 2,
    "train.local-steps": 1,
    "train.batch-size": 8,
    "train.device": "cpu",
    "federation.rounds": 1,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("official")
    found = {name: write(root / name, TRAIN, TEST) for name, write in WRITERS.items()}
    torch.manual_seed(0)
    for family, (name, size) in BACKBONES.items():
        found[family] = str(root / f"{family}.safetensors")
        save_file(timm.create_model(name, img_size=size).state_dict(), found[family])
    return found


@pytest.mark.parametrize("division", ["6-clients", "30-clients"])
@pytest.mark.parametrize("data", WRITERS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_setting_runs_and_scores_the_official_test_split(
    backbone: str, data: str, division: str, places: dict[str, str], tmp_path: Path
) -> None:
    name, size = BACKBONES[backbone]
    own: dict[str, Any] = {"model.name": name, "model.weights": places[backbone], "model.image-size": size}
    suite = f"paper/{backbone}-{data}-{division}"
    (job,) = load_jobs(suite, {**SMALL, **own, "data.path": places[data]}, [0], ["fedit"])
    run_federation(job, run_file(tmp_path, job))
    found = load_results(tmp_path, suite)
    clients = found["fedit"][0]["clients"]
    assert len({client["client_id"] for client in clients}) == int(division.split("-")[0])
    assert all(client["seen"] for client in clients)
    domains = DOMAINS["domainnet" if data == "domainnet" else "nico++"]
    tested = {one: sum(client["num_test"] for client in clients if client["domain"] == one) for one in domains}
    assert tested == dict.fromkeys(domains, TEST * 4 // 5)
    text = "\n".join(tables_of(found, ["fedit"], "fedit"))
    assert f"| global model | {' | '.join(domains)} | mean |" in text

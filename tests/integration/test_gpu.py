"""What a GPU changes: nothing but the last digits. Left out where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.integration.test_run_in_process import make_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("precision", "gap"), [("float32", 0.01), ("bfloat16", 0.05)])
def test_a_run_on_a_gpu_serves_what_one_on_the_cpu_does(tmp_path: Path, precision: str, gap: float) -> None:
    runs = {
        device: make_run(tmp_path / device, **{"train.device": device, "train.precision": precision})
        for device in ("cpu", "cuda")
    }
    means = {}
    for device, run in runs.items():
        scores = [one for one in json.loads((run / "evaluation.json").read_text()) if one["track"] == "start"]
        means[device] = sum(one["zero_step"] for one in scores) / len(scores)
    assert torch.cuda.max_memory_allocated() > 0
    assert means["cuda"] == pytest.approx(means["cpu"], abs=gap)

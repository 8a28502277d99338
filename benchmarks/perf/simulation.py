"""Rounds of the PACS preset with 100 clients in Flower's simulation, beside plain FedAvg as Flower's quickstart has it.

Both train the same adapter on the same backbone for as many local steps on images of the same size. Images and weights
are random, since only time is measured: wall time, here, of all cores.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image

from benchmarks.perf.measure import Comparison
from hyperlora.cli import flower
from hyperlora.cli.output import CommandError
from hyperlora.cli.superlink import local_superlink, simulation_size
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.storage.run_names import METRICS

HERE = Path(__file__).parent
DOMAINS, CLASSES, IMAGES, CLIENTS, SIDE = 4, 7, 100, 100, 96
ROUNDS, PLAIN_ROUNDS, WARM = 6, 3, 1
LONGEST = 1200.0
MODEL = "deit_tiny_patch16_224"


def run(repeats: int) -> Iterator[Comparison]:
    """Yield how busy the cores are with local training, the time of a round, and the server's share of it."""
    with tempfile.TemporaryDirectory(prefix="hyperlora-perf-") as scratch:
        root = Path(scratch)
        _write_images(root / "images")
        _write_weights(root / "weights.safetensors")
        plain, ours = _plain(root), _ours(root)
    reference = "plain FedAvg, Flower's quickstart"
    case = f"{CLIENTS} clients: seconds in local training over wall seconds times cores"
    theirs, own = (one["training"] / (one["wall"] * (os.cpu_count() or 1)) for one in (plain, ours))
    yield Comparison("simulation", case, reference, theirs, own, "", own, "at least 0.8", 1)
    case = f"{CLIENTS} clients: wall time of a round"
    yield Comparison(
        "simulation", case, reference, plain["wall"], ours["wall"], "s", ours["wall"] / plain["wall"], "", 1
    )
    case = f"{CLIENTS} clients: hyperlora's server in a round"
    share = ours["server"] / ours["wall"]
    yield Comparison("simulation", case, "the round", ours["wall"], ours["server"], "s", share, "at most 0.05", 1)


def _ours(root: Path) -> Mapping[str, float]:
    """Run hyperlora and return means over the warm rounds without evaluation, in seconds."""
    values: dict[str, Scalar] = {
        "data.name": "folder",
        "data.path": str(root / "images"),
        "data.clients-per-domain": CLIENTS // DOMAINS,
        "data.dirichlet-alpha": 0.0,
        "data.unseen-fraction": 0.0,
        "model.name": MODEL,
        "model.weights": str(root / "weights.safetensors"),
        "model.image-size": 64,
        "federation.rounds": ROUNDS,
        "federation.clients-per-round": CLIENTS,
        "federation.evaluate-every": ROUNDS,
        "train.local-steps": 10,
        "run.output-dir": str(root / "ours"),
    }
    _simulate(HERE.parents[1], RunConfig.parse(values).flat(), root / "ours.log")
    lines = (root / "ours" / METRICS).read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines][WARM : ROUNDS - 1]
    return {
        "training": mean(one["training"] for one in seconds),
        "wall": mean(one["waiting"] + one["aggregating"] for one in seconds),
        "server": mean(one["aggregating"] for one in seconds),
    }


def _plain(root: Path) -> Mapping[str, float]:
    """Run plain FedAvg and return means over the warm rounds, in seconds."""
    app = HERE / "quickstart"
    known = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["flwr"]["app"]["config"]
    own = {
        "data": str(root / "plain"),
        "weights": str(root / "weights.safetensors"),
        "result": str(root / "plain.json"),
    }
    _flatten(root / "images", root / "plain")
    _simulate(app, {**known, **own, "rounds": PLAIN_ROUNDS, "cohort": CLIENTS}, root / "plain.log")
    found = json.loads((root / "plain.json").read_text(encoding="utf-8"))
    walls = [later - earlier for earlier, later in zip(found["ended"], found["ended"][1:], strict=False)]
    return {"training": CLIENTS * mean(found["seconds"][WARM:]), "wall": mean(walls[WARM:])}


def _simulate(app: Path, values: Mapping[str, Any], log: Path) -> None:
    """Run an app in Flower's simulation, a core for each client, and wait for its end; raises CommandError."""
    deadline = time.monotonic() + LONGEST
    with local_superlink(log) as connection:
        run_id = flower.submit(connection, app, values, simulation_size(CLIENTS, 1, 0))
        while not (state := flower.status(connection, run_id)).finished:
            if time.monotonic() > deadline:
                raise CommandError(f"the run did not end within {LONGEST:.0f} s")
            time.sleep(2.0)
    if not state.completed:
        raise CommandError(f"{state.details or state.status}: {log.read_text(encoding='utf-8')[-2000:]}")


def _write_images(root: Path) -> None:
    """Write noise as ``root/domain/class/*.jpg``."""
    chance = torch.Generator().manual_seed(0)
    for domain in range(DOMAINS):
        for label in range(CLASSES):
            folder = root / f"domain-{domain}" / f"class-{label}"
            folder.mkdir(parents=True)
            for index in range(IMAGES):
                pixels = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8, generator=chance)
                Image.fromarray(pixels.numpy()).save(folder / f"{index}.jpg")


def _flatten(images: Path, to: Path) -> None:
    """Link the same files as ``to/class/*.jpg``, which is what torchvision's ImageFolder reads."""
    for path in sorted(images.glob("*/*/*.jpg")):
        place = to / path.parent.name / f"{path.parents[1].name}-{path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)


def _write_weights(path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(MODEL, num_classes=0).state_dict(), path)

"""Federated rounds of ten clients through the ServerApp and the ClientApp, one client after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

from PIL import Image

from benchmarks.gpu.bench import Bench, Case, Figures
from benchmarks.gpu.vit import CLASSES, NAME, RANK, SIDE, TINY_NAME, TINY_SIDE, random_samples, random_weights
from hyperlora.storage.run_names import METRICS

CLIENTS, TINY_CLIENTS, SAMPLES, TINY_SAMPLES, ROUNDS, WARM = 10, 3, 64, 24, 3, 1


def cases(bench: Bench) -> Iterator[Case]:
    """Yield runs of hyperlora and of fedit."""
    for method in ("hyperlora", "fedit"):
        yield f"{method}, bfloat16", partial(_run, bench, method)


def _run(bench: Bench, method: str) -> Figures:
    """Return medians over the rounds after the first: of a round, of its parts, and the server's share of it."""
    from benchmarks.local_grid import LocalGrid
    from benchmarks.run_job import NODES, require_all_clients
    from client_app.app import app
    from hyperlora.config.schema import RunConfig
    from server_app.run import run

    bench.clean()
    directory = bench.scratch / method
    values = RunConfig.parse(_settings(bench, method, directory)).flat()
    run(LocalGrid(app, values, NODES, remembers=False), values)
    lines = (directory / METRICS).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    require_all_clients(records)
    phases = {name: median(one["seconds"].get(name, 0.0) for one in records[WARM:]) for name in records[0]["seconds"]}
    phases["evaluating"] = records[-1]["seconds"].get("evaluating", 0.0)
    seconds = phases["waiting"] + phases["aggregating"]
    first = records[0]["seconds"]["waiting"]
    return {"seconds": seconds, "server": phases["aggregating"] / seconds, "first": first, "phases": phases} | (
        bench.memory()
    )


def _settings(bench: Bench, method: str, directory: Path) -> dict[str, str | int | float]:
    name, side = (TINY_NAME, TINY_SIDE) if bench.tiny else (NAME, SIDE)
    weights = random_weights(bench.scratch, name, side)
    clients = TINY_CLIENTS if bench.tiny else CLIENTS
    samples = clients * (TINY_SAMPLES if bench.tiny else SAMPLES)
    return {
        "method": method,
        "data.name": "folder",
        "data.path": str(_images(bench.scratch / "images", side, samples)),
        "data.clients-per-domain": clients,
        "data.dirichlet-alpha": 0.0,
        "data.unseen-fraction": 0.0,
        "model.name": name,
        "model.weights": str(weights),
        "model.image-size": side,
        "lora.rank": RANK,
        "lora.alpha": 2.0 * RANK,
        "lora.last-blocks": 6 if bench.tiny else 12,
        "federation.rounds": ROUNDS,
        "federation.clients-per-round": clients,
        "federation.evaluate-every": ROUNDS,
        "train.local-steps": 2 if bench.tiny else 10,
        "train.batch-size": 4 if bench.tiny else 32,
        "train.learning-rate": 1e-3,
        "train.embedding-cache-mb": 0,
        "train.device": bench.device.type,
        "train.precision": "bfloat16",
        "run.output-dir": str(directory),
        "run.checkpoint-every": 0,
    }


def _images(root: Path, side: int, samples: int) -> Path:
    """Write noise as ``root/class/*.jpg``, once; return ``root``."""
    if not root.exists():
        images, _ = random_samples(samples, side)
        for index, pixels in enumerate(images.permute(0, 2, 3, 1)):
            path = root / f"class-{index % CLASSES}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path)
    return root

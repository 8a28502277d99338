"""``python -m benchmarks.personalize``: does a folder of images get what its owner would have got as a client?

A run is made (or named with ``--run``); then the files of each of its unseen clients, a skewed share of a domain, are
written to a folder as they came, and ``hyperlora personalize`` is called on it. A file's part (train, validation,
test) depends on its bytes alone, here as in the run, so the same images are held out and the accuracies can be paired.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.local_grid import LocalGrid
from benchmarks.result import current_commit, write_json
from benchmarks.run_job import NODES
from benchmarks.table import markdown
from hyperlora.cli.output import CommandError
from hyperlora.cli.settings import flatten, parse_override, read_toml, with_absolute_paths
from hyperlora.config.schema import RunConfig, Scalar
from hyperlora.data.hub_images import encoded_images
from hyperlora.data.plans import DividedFederation
from hyperlora.reporting.figures import scores_by_client
from hyperlora.reporting.run_files import RunFiles
from hyperlora.task import build_federation

HERE = Path(__file__).parent
MOST_LOSS = 0.02
MOST_SECONDS = 60.0
COLUMNS = ("held out in the run", "held out here", "run (%)", "here (%)", "run, after K (%)", "here, after K (%)", "s")
console = Console()


def main(
    preset: Annotated[str, typer.Option(help="name of a file in benchmarks/presets")] = "pacs",
    override: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE for the run")] = None,
    run: Annotated[Path | None, typer.Option(help="directory of a run that is there already")] = None,
    to: Annotated[Path, typer.Option(help="json file")] = HERE / "results" / "personalize.json",
) -> None:
    """Make the run, personalise to the files of every unseen client, and print both accuracies."""
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="hyperlora-personalize-") as scratch:
        files = RunFiles.open(run or make_run(preset, override or [], Path(scratch) / "run"))
        clients = {name: measured(files, name, folder) for name, folder in folders(files, Path(scratch) / "images")}
    found = summary(list(clients.values()))
    write_json(to, {"preset": preset, "commit": current_commit(), **found, "clients": clients})
    console.print(markdown("client", COLUMNS, {name: row(one) for name, one in clients.items()}), soft_wrap=True)
    console.print(json.dumps(found), soft_wrap=True)
    raise typer.Exit(0 if found["passed"] else 1)


def make_run(preset: str, overrides: Sequence[str], directory: Path) -> Path:
    """Make a run of a preset in this process and return its directory; raises CommandError, ConfigError."""
    from client_app.app import app
    from server_app.run import run

    path = HERE / "presets" / f"{preset}.toml"
    values: dict[str, Scalar] = {**flatten(read_toml(path), path), **dict(map(parse_override, overrides))}
    values |= {"run.output-dir": str(directory.absolute())}
    config = RunConfig.parse(with_absolute_paths(values))
    return run(LocalGrid(app, config.flat(), NODES), config.flat(), echo=True)


def folders(run: RunFiles, root: Path) -> Iterator[tuple[str, Path]]:
    """Write the image files of each unseen client to a folder by class; yield client-ids and folders.

    Raises:
        CommandError: the run's data are no image files of a known set.
    """
    data, names = run.config.data, run.require_clients().class_names
    federation = build_federation(data, image_size=run.config.model.image_size, seed=run.config.seed)
    if not isinstance(federation, DividedFederation):
        raise CommandError(f"'{data.name}' has no image files to write to a folder")
    for name, card in sorted(run.require_clients().cards.items()):
        if card.trains:
            continue
        samples = encoded_images(data.name, data.path, federation.rows(name))
        for index, (encoded, label) in enumerate(samples):
            path = root / f"{name}-files" / names[label] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded)
        yield name, root / f"{name}-files"


def measured(run: RunFiles, name: str, folder: Path) -> dict[str, float]:
    """Call ``hyperlora personalize`` on a folder; return its figures and the run's for the client it was made from."""
    command = [str(Path(sys.executable).with_name("hyperlora")), "personalize", str(run.path), str(folder)]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--to", str(folder.parent / f"{name}-adapters"), "--device", "cpu", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise CommandError(done.stderr.strip() or done.stdout.strip())
    here, there = json.loads(done.stdout), scores_by_client(run.scores)[name]
    return {
        "run_num_test": there["num_test"],
        "num_test": here["num_test"],
        "run_zero_step": there["zero_step"],
        "zero_step": here["accuracy"][0],
        "run_k_step": there["k_step"],
        "k_step": here["accuracy"][-1],
        "seconds": seconds,
    }


def summary(clients: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return means over clients, and whether none took too long and the mean accuracy is that of the run."""

    def mean(column: str) -> float:
        return sum(one[column] for one in clients) / len(clients)

    slowest = max(one["seconds"] for one in clients)
    loss = mean("run_zero_step") - mean("zero_step")
    return {
        "num_clients": len(clients),
        **{column: mean(column) for column in ("run_zero_step", "zero_step", "run_k_step", "k_step")},
        "slowest_seconds": slowest,
        "passed": loss <= MOST_LOSS and slowest <= MOST_SECONDS,
    }


def row(one: Mapping[str, float]) -> list[str]:
    """Return the cells of a client under ``COLUMNS``."""
    shares = [f"{100 * one[name]:.1f}" for name in ("run_zero_step", "zero_step", "run_k_step", "k_step")]
    return [str(one["run_num_test"]), str(one["num_test"]), *shares, f"{one['seconds']:.0f}"]


if __name__ == "__main__":
    typer.run(main)

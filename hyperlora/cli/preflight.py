"""What can be refused before Flower starts: a directory in use, a finished run, data that cannot be divided.

Nothing here writes into a run directory that it refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from hyperlora.cli.output import CommandError, say
from hyperlora.cli.settings import require_inputs
from hyperlora.config.schema import RunConfig
from hyperlora.storage.run_names import EVALUATION, METRICS

if TYPE_CHECKING:
    from hyperlora.data.federation import Federation

COMMAND_LOCK, RUN_LOCK = ".command.lock", ".lock"
"""Held by a command for as long as it runs, and by the process of the run itself, as by one of ``flwr run``."""
LEAST_SAMPLES = 3
PATIENCE = 10.0
"""Seconds that a run which is just being ended gets, as in :mod:`server_app.run_directory`."""
FILES_SECONDS = 1.0
"""How long images are looked at before a run; the header of one takes about a tenth of a millisecond."""


def check_before(config: RunConfig, gpus_per_client: float, *, clients_here: bool = True) -> None:
    """Check directory, device and data of a simulation, what takes least time first.

    Args:
        config: of the run.
        gpus_per_client: share of a GPU for each client.
        clients_here: whether clients run on this machine, and on its GPUs.

    Raises:
        CommandError, DataError: one sentence; nothing was written.
    """
    if config.run.output_dir:
        check_directory(Path(config.run.output_dir), config)
    require_inputs(config)
    check_device(config, gpus_per_client, clients_here=clients_here)
    check_data(config)


def check_directory(directory: Path, config: RunConfig) -> None:
    """Refuse a directory that another run writes to, or that holds what this one may not go on with.

    Raises:
        CommandError: one sentence; the directory is as it was.
    """
    if not directory.exists():
        return
    with _unlocked(directory, COMMAND_LOCK, patience=0), _unlocked(directory, RUN_LOCK, patience=PATIENCE):
        if config.run.resume:
            _check_rounds(directory, config)
        elif (directory / METRICS).exists():
            raise CommandError(
                f"run directory '{directory}' already holds a run: name a new one, or go on with --resume {directory}"
            )


@contextmanager
def _unlocked(directory: Path, name: str, patience: float) -> Iterator[None]:
    """Hold a lock of the run directory, if it is there; raises CommandError where another run has it."""
    if not (directory / name).is_file():
        yield
        return
    with held(directory, name, patience):
        yield


@contextmanager
def held(directory: Path, name: str = COMMAND_LOCK, patience: float = 0) -> Iterator[None]:
    """Keep other commands out of the run directory inside the block.

    Raises:
        CommandError: another one still writes to it after ``patience`` seconds.
    """
    lock = FileLock(directory / name)
    try:
        if patience and not _free(lock):
            say(f"{directory} is in use; waiting up to {patience:.0f} s for that run to end", style="yellow")
        lock.acquire(timeout=patience)
    except Timeout:
        raise CommandError(f"another run writes to '{directory}': let it end, or name another directory") from None
    try:
        yield
    finally:
        lock.release()


def _free(lock: FileLock) -> bool:
    with suppress(Timeout), lock.acquire(timeout=0):
        return True
    return False


def rounds_made(directory: Path) -> int:
    """Return the last round in the metrics of a run; 0 where there is none. A line that was cut off does not count."""
    last, path = 0, directory / METRICS
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            last = max(last, int(json.loads(line)["server_round"]))
        except (ValueError, ArithmeticError, LookupError, TypeError, RecursionError):
            break
    return last


def _check_rounds(directory: Path, config: RunConfig) -> None:
    made, rounds = rounds_made(directory), config.federation.rounds
    if made > rounds or (made == rounds and (directory / EVALUATION).exists()):
        raise CommandError(
            f"{made} rounds of the run in '{directory}' are made and federation.rounds is {rounds}: for more of them, "
            f"hyperlora run --resume {directory} -c federation.rounds={2 * made}"
        )
    if any((directory / "checkpoints").glob("*")):
        return
    if made > config.run.checkpoint_every:
        raise CommandError(f"there is no checkpoint in '{directory}' to go on from, though {made} rounds were made")
    say(f"there is no checkpoint in {directory} to go on from: the run begins at round 1", style="yellow")


def check_device(config: RunConfig, gpus_per_client: float, *, clients_here: bool = True) -> None:
    """Refuse a GPU that clients will not get.

    Raises:
        CommandError: ``train.device`` or ``--gpus-per-client`` asks for one and there is none to be had.
    """
    if config.train.device == "cuda" and not gpus_per_client:
        raise CommandError("train.device is 'cuda', but --gpus-per-client is 0, so that no client sees a GPU: raise it")
    if not gpus_per_client or not clients_here:
        return
    import torch

    if not torch.cuda.is_available():
        raise CommandError(f"--gpus-per-client is {gpus_per_client:g}, but this machine has no GPU that torch can use")


def check_kind(config: RunConfig) -> None:
    """Refuse texts for a model of images; raises CommandError."""
    from hyperlora.data.opening import TEXTS  # torch takes seconds to import

    data, model = config.data, config.model
    if data.name in TEXTS and not model.name.startswith("hf:"):
        raise CommandError(
            f"data.name '{data.name}' is texts and model '{model.name}' takes images: name a text model, as "
            "-c model.name=hf:sentence-transformers/all-MiniLM-L6-v2"
        )


def check_data(config: RunConfig) -> None:
    """Refuse data that cannot be divided over the clients, or that the model does not take.

    Known sets are left alone: listing one may mean to download it.

    Raises:
        CommandError, DataError: one sentence.
    """
    from hyperlora.data.opening import OWN_DATA
    from hyperlora.task import build_federation

    check_kind(config)
    data, model = config.data, config.model
    if data.name not in OWN_DATA or not data.path:
        return
    tell_clients(samples_per_client(build_federation(data, image_size=model.image_size, seed=config.seed)))
    if data.name == "folder":
        tell_bad_images(Path(data.path), seconds=FILES_SECONDS)


def samples_per_client(federation: Federation) -> dict[str, int]:
    """Return how many samples each client of a divided data set holds, unreadable ones included."""
    from hyperlora.data.plans import DividedFederation

    if not isinstance(federation, DividedFederation):
        return {}
    return {name: len(federation.rows(name)) for name in federation.client_ids}


def tell_clients(counts: Mapping[str, int]) -> None:
    """Say how many samples the clients hold, and which of them hold too few to take part."""
    if counts:
        say(f"{len(counts)} clients hold {min(counts.values())} to {max(counts.values())} samples each")
    small = [name for name, count in counts.items() if count < LEAST_SAMPLES]
    if small:
        named = ", ".join(small[:5]) + (" ..." if len(small) > 5 else "")
        say(f"{len(small)} of them have too few to train, validate and test, and are left out: {named}", style="yellow")


def tell_bad_images(root: Path, seconds: float, *, thorough: bool = False) -> None:
    """Say once which images cannot be read; after so many ``seconds`` the others are left to the clients' log."""
    from hyperlora.data.images import image_files, named_files, unreadable_images

    until = time.monotonic() + seconds
    found = list(takewhile(lambda _: time.monotonic() < until, unreadable_images(image_files(root), thorough=thorough)))
    bad = [file.relative_to(root) for file in found if file is not None]
    if bad:
        say(f"{len(bad)} of {len(found)} images cannot be read and are left out{named_files(bad)}", style="yellow")

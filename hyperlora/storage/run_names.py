"""Where a run lies that is named (``latest``, ``demo``, ``hf:owner/name``, its path), and what its files are called."""

from __future__ import annotations

from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from uuid import uuid4

NAME = "latest"
CONFIG, ENVIRONMENT = "config.json", "environment.json"
METRICS, EVALUATION = "metrics.jsonl", "evaluation.json"
CLIENTS, LEFT_OUT, ASKED = "clients.json", "left_out.json", "asked.jsonl"
"""``ASKED`` grows with every cohort that is sent a message; nothing is taken off it, for what was sent is released."""
CONSOLE, ERROR = "console.log", "error.txt"
STATEMENT = "PRIVACY.md"
"""Stands in a run that was published, and in no other."""
BACKBONE = "backbone.safetensors"
"""The frozen backbone, where a published run comes with it."""
SHARED_STATE = "state.safetensors"
"""What adapters are generated from, in a run that was published."""
HUB, DEMO = "hf:", "demo"
"""``demo`` is the small federation on digits that comes with the package."""


def point_to(run: Path) -> None:
    """Make ``latest``, beside the directory ``run``, a link to it; where a folder cannot have links there is none.

    A file or directory of that name that is no link is left alone.
    """
    link = run.parent / NAME
    if run.name == NAME or (link.exists() and not link.is_symlink()):
        return
    fresh = link.with_name(f".{NAME}.{uuid4().hex}.tmp")
    with suppress(OSError):
        fresh.symlink_to(run.name, target_is_directory=True)
        fresh.replace(link)


def followed(run: Path) -> Path:
    """Return the directory that a path ending in ``latest`` stands for; any other path is returned as it is."""
    return run.parent / run.readlink() if run.name == NAME and run.is_symlink() else run


def located(run: Path) -> Path:
    """Return the directory of a run that is named by a path, by ``demo`` or by a place on the Hugging Face hub.

    A directory of such a name is taken before anything else.
    """
    name = str(run)
    if run.exists():
        return followed(run)
    if name.startswith(HUB):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name.removeprefix(HUB)))
    if name == DEMO:
        return Path(str(files("hyperlora").joinpath("federations", DEMO)))
    return followed(run)


def is_published(run: Path) -> bool:
    """Tell whether a directory is what ``hyperlora publish`` wrote: to be read, not to be gone on with."""
    return (run / STATEMENT).exists()

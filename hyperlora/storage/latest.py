"""``runs/latest``: a link beside the run directories to the one that was started last."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import uuid4

NAME = "latest"


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

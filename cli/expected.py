"""Which errors of the layers below are a user's: their sentence is shown and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cli.output import CommandError
from data.federation import DataError
from models.adapter import AdapterError
from models.backbone import BackboneError
from models.state_tree import StateError
from reporting.run_files import RunFilesError

EXPECTED = (AdapterError, BackboneError, DataError, RunFilesError, StateError)


@contextmanager
def as_command_errors() -> Iterator[None]:
    """Turn an expected error of the block into a CommandError with its sentence."""
    try:
        yield
    except EXPECTED as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"'{error.filename}' cannot be used: {error.strerror or error}") from error

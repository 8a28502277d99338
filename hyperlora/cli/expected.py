"""Which errors of the layers below are a user's: their sentence is shown and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hyperlora.cli.output import CommandError
from hyperlora.data.federation import DataError
from hyperlora.reporting.run_files import RunFilesError
from hyperlora.storage.state_tree import StateError
from models.adapters.adapter import AdapterError
from models.backbones.backbone import BackboneError

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

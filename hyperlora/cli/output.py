"""What the commands print on the terminal, and the only way in which they fail: one sentence, status 1."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")


class OutputFormat(StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"


class CommandError(Exception):
    """A command cannot do what was asked; the message is one sentence for a person."""


def say(line: str, *, style: str | None = None, stderr: bool = False) -> None:
    """Print one line as it is: no markup, no highlighting, no wrapping."""
    Console(stderr=stderr).print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their column names, without markup."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


@contextmanager
def waiting(text: str) -> Iterator[Callable[[], None]]:
    """Show a spinner with ``text`` on a terminal, nothing elsewhere; call the value to take it away."""
    console = Console()
    if not console.is_terminal:
        yield lambda: None
        return
    with console.status(text) as spinner:
        yield spinner.stop


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn an error of ``command`` that the user can correct into one red sentence on stderr and exit status 1."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except OSError as error:
            sentence = f"'{error.filename}' cannot be used: {error.strerror}" if error.filename else str(error)
        except Exception as error:
            if not isinstance(error, CommandError) and not isinstance(error, user_errors()):
                raise
            sentence = str(error)
        say(one_line(sentence), style="red", stderr=True)
        raise typer.Exit(1)

    return wrapper


def user_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the layers below whose sentence is for the user; importing them brings torch."""
    from hyperlora.config.schema import ConfigError
    from hyperlora.data.federation import DataError
    from hyperlora.reporting.run_files import RunFilesError
    from hyperlora.storage.files import StorageError
    from models.adapters.adapter import AdapterError
    from models.backbones.backbone import BackboneError
    from strategies.federation.allow_list import AllowListError

    return (AdapterError, AllowListError, BackboneError, ConfigError, DataError, RunFilesError, StorageError)


def one_line(text: str) -> str:
    """Return ``text`` with each stretch of white space replaced by a single space."""
    return " ".join(text.split())

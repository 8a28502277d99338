"""What the commands print on the terminal, and the only way in which they fail: one sentence, status 1."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperlora.progress import told_to

USER_ERRORS = {
    "hyperlora.config.schema": "ConfigError",
    "hyperlora.data.federation": "DataError",
    "hyperlora.reporting.run_files": "RunFilesError",
    "hyperlora.storage.files": "StorageError",
    "models.adapters.adapter": "AdapterError",
    "models.backbones.backbone": "BackboneError",
    "hyperlora.storage.allow_list": "AllowListError",
}
"""Module -> its exception with messages for the user. None is imported for this: an unloaded module has raised none."""

UNBOUNDED = 10_000
"""Columns of an output that is no terminal."""

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
    Console(stderr=stderr).print(line, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their column names, without markup: to a terminal in its width, else a line for each row."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=UNBOUNDED)
    console.print(fitted_table(columns, list(rows), console))


def fitted_table(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> Table:
    """Return a table that cuts no cell short; where it is wider than the console, names in front go over some lines."""
    table = _table(columns, rows)
    if console.measure(table, options=console.options.update(max_width=UNBOUNDED)).maximum > console.width:
        table = _table(columns, [(over_lines(first), *rest) for first, *rest in rows])
    return table


def over_lines(name: str, width: int = 12) -> str:
    """Return a name broken after hyphens, slashes and spaces into lines of at most ``width``, where it has any."""
    lines = [""]
    for part in re.findall(r"[^-_/ ]*[-_/ ]|[^-_/ ]+", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


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
    """Turn an error of ``command`` that the user can correct into one red sentence on stderr and exit status 1.

    How far long work of ``command`` is goes to stderr too.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with told_to(lambda line: say(f"  {line}", stderr=True)):
                return command(*args, **kwargs)
        except (typer.Exit, BrokenPipeError):
            raise
        except OSError as error:
            sentence = f"'{error.filename}' cannot be used: {error.strerror}" if error.filename else str(error)
        except Exception as error:
            if not isinstance(error, (CommandError, *user_errors())):
                raise
            sentence = str(error)
        say(one_line(sentence), style="red", stderr=True)
        raise typer.Exit(1)

    return wrapper


def user_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of ``USER_ERRORS`` whose modules are loaded; their messages are meant for the user."""
    return tuple(getattr(sys.modules[module], name) for module, name in USER_ERRORS.items() if module in sys.modules)


def one_line(text: str) -> str:
    """Return ``text`` with each stretch of white space replaced by a single space."""
    return " ".join(text.split())

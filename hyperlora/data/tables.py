"""Tables of texts: csv, jsonl or parquet files with the columns text, label and, where there is one, domain.

Instruction data: jsonl, csv or parquet files with the columns prompt and response (or instruction and output).
"""

from __future__ import annotations

import csv
import glob
import json
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperlora.data.federation import DataError
from hyperlora.data.listing import ONE_DOMAIN, Listing, Origin, Source, absolute_path, number_labels, rows_by_domain
from hyperlora.progress import counted
from hyperlora.seeds import content_key

Row = Mapping[str, Any]
SEPARATOR = "\x1f"
LONGEST_CELL = 2**31 - 1
COLUMNS = (("prompt", "response"), ("instruction", "output"))
LENGTHS = ("64", "128", "256", "512", "1024", "2048", "more")
"""Classes of a sample: the characters that it has at most. Their frequencies tell the lengths of a client's texts."""
log = logging.getLogger(__name__)


def list_table(name: str, origin: Origin) -> Listing:
    """List the rows of a file, or of all files of one kind in a directory.

    Without a domain column the domain of a row is the name of its file, or ``all`` where there is one file only.
    Rows without text or label are left out and counted.

    Args:
        name: ``csv``, ``jsonl`` or ``parquet``, or a known set, of parquet files.
        origin: path, classes, and the names of the columns.

    Raises:
        DataError: no such file, an unreadable one, or one without a column that is needed.
    """
    needed = (origin.text_column, origin.label_column)
    rows = list(_read_rows(name if name in _READERS else "parquet", origin, needed))
    whole = [(cells, domain) for cells, domain in rows if all(cells)]
    if len(whole) < len(rows):
        log.warning("%d rows of '%s' have no text or no label and are left out", len(rows) - len(whole), origin.path)
    texts, labels = [text for (text, _), _ in whole], [label for (_, label), _ in whole]
    names, numbers = number_labels(labels, origin.classes, origin.path)
    return _text_listing(texts, names, numbers, [domain for _, domain in whole])


def _read_rows(kind: str, origin: Origin, columns: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    """Yield the cells of ``columns``, stripped, and the domain of every row; raises DataError as above."""
    files = _files(kind, origin.path)
    for file in files:
        fallback = file.stem if len(files) > 1 else ONE_DOMAIN
        for row in _whole_rows(file, counted(_rows(kind, file, columns), f"reading rows of '{file}'")):
            yield [_cell(row, column) for column in columns], _cell(row, origin.domain_column) or fallback


def _whole_rows(file: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows of a file; those of a csv with more cells than the header are counted and left out.

    Raises:
        DataError: it has none.
    """
    count, longer = 0, []
    for count, row in enumerate(rows, start=1):
        if None in row:
            longer.append(count)
        else:
            yield row
    if longer:
        log.warning(
            "%d rows of '%s' have more cells than its header and are left out, row %d first; a text with a comma "
            "stands in double quotes",
            len(longer),
            file,
            longer[0],
        )
    if not count:
        raise DataError(f"'{file}' has no rows: it is empty, or has a header only")


def _text_listing(
    texts: Sequence[str], names: tuple[str, ...], numbers: Sequence[int], domains: Sequence[str]
) -> Listing:
    """Return a listing of texts, without those of number -1; the key of a sample is the hash of its text."""

    def read(domain: str, chosen: Sequence[int]) -> Source:
        import torch  # takes seconds, and listing rows does without

        held = [texts[row] for row in chosen]
        keys = [content_key(text.encode()) for text in held]
        return Source(held, torch.tensor([numbers[row] for row in chosen], dtype=torch.int64), keys)

    return Listing(names, rows_by_domain(domains, numbers), numbers, read)


def _files(kind: str, path: str) -> list[Path]:
    if not path:
        raise DataError(f"data.name is '{kind}'; set data.path to the file")
    place = absolute_path(path, "the data")
    if place.is_file():
        return [place]
    files = sorted(place.glob(f"*.{kind}"))
    if not files:
        raise DataError(f"there is no {kind} file at '{path}'")
    return files


def _rows(kind: str, file: Path, needed: Sequence[str]) -> Iterator[Row]:
    try:
        for number, row in enumerate(_READERS[kind](file), start=1):
            if missing := [column for column in needed if column not in row]:
                raise DataError(
                    f"row {number} of '{file}' has no column '{missing[0]}', only {', '.join(map(str, row))}; "
                    "set data.text-column and data.label-column"
                )
            yield row
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"'{file}' cannot be read as {kind} in UTF-8: {error}") from error


def _read_csv(file: Path) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)
        try:
            yield from rows
        except csv.Error as error:
            raise DataError(
                f"'{file}' cannot be read as csv: {error}, up to line {rows.line_num}; a text with a quote or a comma "
                "stands in double quotes, and a quote in it is doubled"
            ) from error


def _read_jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, Mapping):
                    raise DataError(f"line {number} of '{file}' is no object of columns: {line.strip()[:40]}")
                yield row


def _read_parquet(file: Path) -> Iterator[Row]:
    from datasets import load_dataset  # slow to import

    try:
        table = load_dataset("parquet", data_files=glob.escape(str(file)), split="train")
    except Exception as error:  # datasets wraps whatever pyarrow raises in several unrelated types
        raise DataError(f"'{file}' cannot be read as parquet ({type(error).__name__})") from error
    yield from table


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "csv": _read_csv,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def list_instructions(name: str, origin: Origin) -> Listing:
    """List prompts with responses, joined by a separator; the label of a sample is the class of its length.

    Raises:
        DataError: no such file, an unreadable one, or one without the columns.
    """
    rows = _instruction_rows(origin)
    whole = [(prompt, response, domain) for (prompt, response), domain in rows if response]
    if len(whole) < len(rows):
        log.warning("%d rows of '%s' have no response and are left out", len(rows) - len(whole), origin.path)
    texts = [prompt + SEPARATOR + response for prompt, response, _ in whole]
    numbers = [bisect_left([int(name) for name in LENGTHS[:-1]], len(text)) for text in texts]
    return _text_listing(texts, LENGTHS, numbers, [domain for _, _, domain in whole])


def _instruction_rows(origin: Origin) -> list[tuple[list[str], str]]:
    kind = "jsonl" if Path(origin.path).is_dir() else Path(origin.path).suffix.removeprefix(".").lower() or "jsonl"
    if kind not in _READERS:
        raise DataError(f"instructions are jsonl, csv or parquet files, got '{origin.path}'")
    try:
        return list(_read_rows(kind, origin, COLUMNS[0]))
    except DataError as error:
        if "has no column" not in str(error):
            raise
    return list(_read_rows(kind, origin, COLUMNS[1]))

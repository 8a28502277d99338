"""Instruction data: jsonl, csv or parquet files with the columns prompt and response (or instruction and output)."""

from __future__ import annotations

import logging
from pathlib import Path

from data.federation import DataError
from data.listing import Listing, Origin
from data.table import numbered_listing, read_rows

SEPARATOR = "\x1f"
COLUMNS = (("prompt", "response"), ("instruction", "output"))
LENGTHS = ("64", "128", "256", "512", "1024", "2048", "more")
"""Classes of a sample: the characters that it has at most. Their frequencies tell the lengths of a client's texts."""

log = logging.getLogger(__name__)


def list_instructions(origin: Origin) -> Listing:
    """List prompts with responses, joined by a separator; the label of a sample is the class of its length.

    Raises:
        DataError: no such file, an unreadable one, or one without the columns.
    """
    rows = _rows(origin)
    whole = [(prompt, response, domain) for (prompt, response), domain in rows if response]
    if len(whole) < len(rows):
        log.warning("%d rows of '%s' have no response and are left out", len(rows) - len(whole), origin.path)
    texts = [prompt + SEPARATOR + response for prompt, response, _ in whole]
    numbers = [_length_class(len(text)) for text in texts]
    return numbered_listing(texts, LENGTHS, numbers, [domain for _, _, domain in whole])


def _rows(origin: Origin) -> list[tuple[list[str], str]]:
    kind = Path(origin.path).suffix.removeprefix(".") or "jsonl"
    if kind not in ("jsonl", "csv", "parquet"):
        raise DataError(f"instructions are jsonl, csv or parquet files, got '{origin.path}'")
    for columns in COLUMNS[:-1]:
        try:
            return list(read_rows(kind, origin, columns))
        except DataError as error:
            if "has no column" not in str(error):
                raise
    return list(read_rows(kind, origin, COLUMNS[-1]))


def _length_class(characters: int) -> int:
    return next((number for number, name in enumerate(LENGTHS[:-1]) if characters <= int(name)), len(LENGTHS) - 1)

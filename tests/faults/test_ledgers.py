"""Damaged privacy ledgers."""

from __future__ import annotations

from pathlib import Path

from tests.faults.ledgers import ledger_row
from tests.faults.table import as_table


def test_the_row_is_as_expected(tmp_path: Path) -> None:
    row = ledger_row(60, tmp_path)
    assert row.passed, as_table([row])
    assert " 0 refused" not in f" {row.seen}"

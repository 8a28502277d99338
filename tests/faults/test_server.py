"""A server that is killed or whose disk is full, as in ``make faults`` with fewer tries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disk import full_disk
from tests.faults.server import server_rows
from tests.faults.table import as_table


@pytest.mark.long
def test_a_server_that_is_killed_or_whose_disk_is_full_is_resumed_and_ends_as_one_that_was_left_alone(
    tmp_path: Path,
) -> None:
    rows = list(server_rows(1, tmp_path))
    assert all(row.passed for row in rows), as_table(rows)
    row = full_disk(tmp_path / "disk", tmp_path / "alone")
    assert row.passed, as_table([row])

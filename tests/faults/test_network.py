"""A network that drops, with real SuperNodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.network import network_row
from tests.faults.table import as_table


@pytest.mark.slow
def test_a_network_that_drops_for_twenty_seconds_costs_nothing(tmp_path: Path) -> None:
    row = network_row(tmp_path)
    assert row.passed, as_table([row])

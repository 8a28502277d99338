"""Every fault of a client, as in ``make faults``."""

from __future__ import annotations

from tests.faults.clients import FAULTS, client_rows
from tests.faults.table import as_table


def test_every_fault_of_a_client_costs_its_own_contribution_only() -> None:
    rows = list(client_rows())
    assert len(rows) == len(FAULTS) + 3
    assert all(row.passed for row in rows), as_table(rows)

"""Damaged checkpoints and other files of a run, found by hypothesis and by seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.damaged import Damager, damaged_rows
from tests.faults.places import place_rows
from tests.faults.run_files import run_files_row
from tests.faults.server import left_alone
from tests.faults.table import as_table


@pytest.fixture(scope="module")
def damager(tmp_path_factory: pytest.TempPathFactory) -> Damager:
    return Damager(tmp_path_factory.mktemp("damaged"))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damager: Damager, chance) -> None:
    assert damager.objection(chance)[1] == ""


def test_damaged_files_of_a_run_are_read_or_refused_by_every_command(tmp_path: Path) -> None:
    alone = left_alone(tmp_path / "alone")
    rows = [run_files_row(37, tmp_path / "damaged", alone), *place_rows(tmp_path / "places", alone)]
    assert all(row.passed for row in rows), as_table(rows)


def test_the_rows_are_as_expected(tmp_path: Path) -> None:
    rows = list(damaged_rows(50, tmp_path))
    assert all(row.passed for row in rows), as_table(rows)

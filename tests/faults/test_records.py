"""Mutated records, found by hypothesis and by seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.intake import intake_rows
from tests.faults.records import Decoder, decoders, list_row, objection
from tests.faults.table import as_table

KNOWN = decoders()


@pytest.mark.parametrize("decoder", KNOWN, ids=[decoder.name for decoder in KNOWN])
def test_what_was_not_mutated_is_read(decoder: Decoder) -> None:
    decoder.decode(decoder.encode())


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.sampled_from(KNOWN), st.randoms(use_true_random=False))
def test_a_mutated_record_is_refused_by_the_protocol_s_own_error_or_sound(decoder: Decoder, chance) -> None:
    assert objection(decoder, chance)[1] == ""


def test_most_mutations_are_refused_so_that_the_test_tests_something() -> None:
    chance = random.Random(1)
    refused = [objection(decoder, chance)[0] for decoder in KNOWN for _ in range(30)]
    assert 0.5 < sum(refused) / len(refused) < 1


def test_a_mutated_list_of_clients_is_refused_by_its_own_error_or_read() -> None:
    row = list_row(300, random.Random(3))
    assert row.passed, row.seen


def test_what_takes_mutated_messages_in_is_changed_by_sound_ones_alone() -> None:
    rows = list(intake_rows(60))
    assert all(row.passed for row in rows), as_table(rows)
    assert not any(" 0 refused" in f" {row.seen}" for row in rows)

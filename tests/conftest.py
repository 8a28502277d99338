"""Settings that must stand before torch is imported (one thread, as on one core), and the order of the tests."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the rehearsals of separate machines first, in one worker: they mostly wait, and the other goes on meanwhile.

    Of the other tests each file stays in one worker, as its fixtures want.
    """
    for item in items:
        rehearsal = item.get_closest_marker("deployment") is not None
        item.add_marker(pytest.mark.xdist_group("rehearsals" if rehearsal else item.nodeid.split("::")[0]))
    items.sort(key=lambda item: item.get_closest_marker("deployment") is None)

"""Settings that must stand before torch is imported (one thread, as on one core), and the order of the tests."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the probe_starts of separate machines, which take minutes, behind everything else."""
    items.sort(key=lambda item: item.get_closest_marker("deployment") is not None)

"""An adapter takes a short way through the house, down to a client and back."""

from __future__ import annotations

import pytest

from tests.adapter_walk import files_with_adapters


@pytest.mark.parametrize(("method", "most"), [("fedit", 12), ("hyperlora", 15)])
def test_few_files_handle_an_adapter_in_a_round(method: str, most: int) -> None:
    files = files_with_adapters(method)
    assert {"client_app/tasks.py", "hyperlora/messages/plan.py", "models/adapters/adapted_model.py"} <= set(files)
    assert len(files) <= most, sorted(files)

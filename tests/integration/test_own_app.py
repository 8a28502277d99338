"""The example app in docs/examples: somebody else's ServerApp and ClientApp around our strategy and functions."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp.strategy import Strategy
from ray import cloudpickle

from benchmarks.local_grid import LocalGrid
from client_app import handlers
from hyperlora import HyperLoraStrategy
from hyperlora.messages.signature import SignatureRequest

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "own_app.py"


def test_the_example_is_short() -> None:
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) < 80


def test_the_example_runs_and_serves_a_shop_that_never_trained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = runpy.run_path(str(EXAMPLE))
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    own["server_app"](LocalGrid(own["client_app"], {}, 6), context)
    *rounds, last = capsys.readouterr().out.splitlines()
    assert rounds == ["waiting for 6 shops", *(f"round {number}" for number in range(1, 16))]
    figures = dict(part.split(": ") for part in last.strip("{}").replace("'", "").split(", "))
    assert float(figures["unseen_zero_step"]) > 0.3
    assert float(figures["seen_zero_step"]) > 0.45


def test_a_simulation_may_pickle_the_app_for_every_message_and_a_process_makes_the_model_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    own_app = importlib.import_module("own_app")
    made, built = [], handlers.ClientRuntime
    monkeypatch.setattr(handlers, "ClientRuntime", lambda *parts, **named: made.append(1) or built(*parts, **named))
    sent = cloudpickle.dumps(own_app.client_app)
    for _ in range(2):
        grid = LocalGrid(cloudpickle.loads(sent), {}, 6)
        asked = Message(SignatureRequest("f" * 64).encode(), dst_node_id=1, message_type="query.signature")
        (answer,) = grid.send_and_receive([asked])
        assert "another backbone" in answer.error.reason
    assert made == [1]


def test_it_is_a_flower_strategy() -> None:
    assert issubclass(HyperLoraStrategy, Strategy)


def test_importing_hyperlora_alone_imports_no_torch() -> None:
    code = "import sys, hyperlora; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(ImportError):
        from hyperlora import NoSuchStrategy  # noqa: F401


def test_the_front_door_has_what_it_names() -> None:
    import hyperlora

    assert {"HyperLoraStrategy", "make_client_app", "AdaptedModel", "personalize", "METHODS"} <= set(hyperlora.__all__)
    assert all(getattr(hyperlora, name) is not None for name in hyperlora.__all__)

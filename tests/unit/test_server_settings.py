"""What a run's settings make of its server: whom it lets in, and what it believes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from hyperlora import HyperLoraStrategy
from hyperlora.config.schema import RunConfig
from hyperlora.storage.allow_list import AllowList
from hyperlora.task import build_model
from models.adapters.adapted_model import AdaptedModel
from server_app.run import build_strategy
from strategies.engine.screening import Screen


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    config = RunConfig()
    return build_model(config.data, config.model, config.lora)


@pytest.mark.parametrize(("name", "one_rank"), [("fedit", True), ("fed-sb", True), ("hyperlora", False)])
def test_every_client_must_have_the_rank_of_the_run_where_the_method_needs_it(
    model: AdaptedModel, name: str, one_rank: bool
) -> None:
    config = RunConfig.parse({"method": name})
    of_a_run = build_strategy(config, model)
    of_your_own = HyperLoraStrategy(model, num_classes=10, min_clients=2, config=config)
    for strategy in (of_a_run, of_your_own):
        assert strategy.registrar.required_rank == (config.lora.rank if one_rank else 0)


def test_what_an_operator_sets_against_clients_is_in_force(model: AdaptedModel, tmp_path: Path) -> None:
    listed = tmp_path / "allowed.json"
    listed.write_text(AllowList({}).as_text())
    config = RunConfig.parse(
        {
            "federation.allowed-clients": str(listed),
            "federation.clients-per-node": 3,
            "federation.min-replies": 4,
            "defence.norm-rule": "reject",
            "defence.factor": 3.0,
            "defence.aggregation": "trimmed",
            "defence.trim": 0.1,
        }
    )
    strategy = build_strategy(config, model)
    assert strategy.roster.allowed is not None
    assert "not on the allow-list" in str(strategy.roster.allowed.objection("clean-0", b"", datetime.now(UTC)))
    assert (strategy.roster.most_clients, strategy.settings.min_replies) == (3, 4)
    assert strategy.settings.screen == Screen("reject", 3.0, "trimmed", 0.1)

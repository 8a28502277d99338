from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from benchmarks.attack_tables import honest_accuracy, loss_table
from benchmarks.attacks import ATTACKS, AttackedApp, FlippedFederation, choose_attackers
from benchmarks.local_grid import LocalGrid
from hyperlora.config.schema import RunConfig
from hyperlora.task import build_federation
from strategies.engine.screening import Screen, Screened, movement_gram
from strategies.methods.flexlora import FlexLoRA
from tests.builders import fake_client_app, make_card
from tests.unit.test_lora_strategy import SETTINGS, make_strategy

CARDS = [make_card(f"client-{index}") for index in range(8)]
BAD = frozenset({"client-0", "client-1"})


def lengths_under(kind: str, bad: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return by client-id the length of its movement in one round of eight clients."""
    seen: dict[str, float] = {}

    def note(self: Screen, updates: list, former: Mapping[str, float], claims: list[int]) -> Screened:
        lengths = movement_gram(updates).diagonal().sqrt().tolist()
        seen.update({one.card.client_id: length for one, length in zip(updates, lengths, strict=True)})
        return Screened(list(updates))

    monkeypatch.setattr(Screen, "apply", note)
    strategy = make_strategy(FlexLoRA(), replace(SETTINGS, clients_per_round=8))
    grid = LocalGrid(AttackedApp(fake_client_app(CARDS, None), kind, bad, 0), {}, 3)
    strategy.start(grid, num_rounds=1, timeout=5.0)
    return seen


@pytest.mark.parametrize("kind", ATTACKS[:3])
def test_only_the_chosen_clients_tamper(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, bad = lengths_under(kind, frozenset(), monkeypatch), lengths_under(kind, BAD, monkeypatch)
    changed = {name for name in honest if abs(honest[name] - bad[name]) > 1e-6 * honest[name]}
    assert changed <= BAD
    if kind != "sign-flip":
        assert all(bad[name] > 5 * honest[name] for name in BAD)


def test_flipped_labels_are_counted_from_the_other_end_and_tests_are_left_alone() -> None:
    config = RunConfig.parse({})
    honest = build_federation(config.data, image_size=config.model.image_size, seed=0)
    attackers = choose_attackers(honest, 0.3, seed=0)
    flipped, name = FlippedFederation(honest, attackers), min(attackers)
    top = len(honest.class_names) - 1
    assert torch.equal(flipped.load(name).train.labels, top - honest.load(name).train.labels)
    assert torch.equal(flipped.load(name).test.labels, honest.load(name).test.labels)
    other = min(set(honest.client_ids) - attackers)
    assert torch.equal(flipped.load(other).train.labels, honest.load(other).train.labels)


def test_attackers_are_a_seeded_share_of_those_who_train() -> None:
    config = RunConfig.parse({})
    federation = build_federation(config.data, image_size=config.model.image_size, seed=0)
    training = {name for name in federation.client_ids if federation.load(name).trains}
    chosen = choose_attackers(federation, 0.25, seed=3)
    assert chosen < training
    assert len(chosen) == round(0.25 * len(training))
    assert chosen == choose_attackers(federation, 0.25, seed=3)


def test_bad_clients_are_not_counted() -> None:
    def score(name: str, accuracy: float, track: str = "start") -> dict[str, object]:
        return {"client_id": name, "zero_step": accuracy, "seen": True, "track": track}

    run = {
        "attackers": ["b"],
        "clients": [score("a", 0.5), score("b", 0.0), score("c", 1.0), score("a", 0.0, "anchor")],
    }
    assert honest_accuracy(run) == 75.0


def test_what_an_attack_costs_is_paired_by_honest_client_and_seed() -> None:
    def run(seed: int, attackers: list[str], **accuracies: float) -> dict[str, object]:
        clients = [
            {"client_id": name, "zero_step": value, "seen": name != "new", "track": "start"}
            for name, value in accuracies.items()
        ]
        return {"seed": seed, "attackers": attackers, "clients": clients}

    honest = [run(seed, [], a=0.8, b=0.9, new=0.5) for seed in (0, 1)]
    attacked = [run(seed, ["b"], a=0.7, b=0.0, new=0.6) for seed in (0, 1)]
    table = loss_table({"none": {"ours": honest}, "noise": {"ours": attacked}, "not run": {}}, ["ours"])
    assert table.splitlines() == [
        "| attack | ours, seen | ours, unseen |",
        "|---|---|---|",
        "| noise | -10.0 [-10.0, -10.0] | +10.0 [+10.0, +10.0] |",
    ]

"""A run directory of any size, written in a second: the state is real, the figures are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from strategies.engine.checkpoint import Checkpoint, CheckpointStore
from strategies.federation.client_list import ClientList
from strategies.methods.base.server import ClientUpdate, with_clients
from strategies.methods.registry import build_method
from tests.builders import make_adapter, make_card, make_metrics, moved

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
SMALLEST = {
    "hyperlora.deviations": "serving",
    "generator.kind": "off",
}


def make_synthetic_run(directory: Path, *, clients: int, rounds: int, **overrides: bool | float | str) -> Path:
    """Write a run of ``clients`` clients (every fifth unseen) and ``rounds`` rounds, evaluated every second round."""
    own = {**SMALLEST, "federation.rounds": rounds, "run.output-dir": str(directory), **overrides}
    config = RunConfig.parse(own)
    cards = _cards(clients)
    directory.mkdir(parents=True)
    _write(directory / "config.json", config.flat())
    _write(directory / "clients.json", ClientList(["one", "two", "three"], cards).as_json())
    machine = {"packages": {"flwr": "1.41.0"}, "python": "3.11.7", "backbone_fingerprint": "f" * 64}
    _write(directory / "environment.json", machine)
    tracks = ("start", "anchor") if config.method == "hyperlora" else ("start",)
    _write(directory / "evaluation.json", [_score(card, track) for card in cards.values() for track in tracks])
    lines = [json.dumps(_record(number)) + "\n" for number in range(1, rounds + 1)]
    (directory / "metrics.jsonl").write_text("".join(lines))
    _write_checkpoint(directory, config, cards, rounds)
    return directory


def _cards(count: int) -> dict[str, ClientCard]:
    cards = {}
    for index in range(count):
        domain = DOMAINS[index % len(DOMAINS)]
        name = f"{domain}-{index // len(DOMAINS)}"
        cards[name] = replace(make_card(name, trains=index % 5 != 4, seed=index), domain=domain)
    return cards


def _score(card: ClientCard, track: str) -> dict[str, Any]:
    level = 0.6 + 0.002 * (sum(map(ord, card.client_id)) % 100) - (0.1 if track == "anchor" else 0.0)
    return {
        "client_id": card.client_id,
        "domain": card.domain,
        "seen": card.trains,
        "track": track,
        "num_test": 40,
        "zero_step": level,
        "k_step": level + 0.05,
        "class_samples": [20, 12, 8],
        "class_hits": [round(level * 20), round(level * 12), 0],
    }


def _record(number: int) -> dict[str, Any]:
    level = 0.8 - 0.5 / number
    spread = {"mean": level, "std": 0.1, "worst_tenth": level - 0.2}
    group = {"clients": 80, "zero_step": spread, "k_step": spread}
    return {
        "server_round": number,
        "cohort": [],
        "training": {},
        "evaluation": {} if number % 2 else {"seen": group, "unseen": group},
        "bytes": {"train_down": 3_000_000, "train_up": 2_500_000, "evaluate_down": 0 if number % 2 else 9_000_000},
        "failures": {"train photo-1": "no reply within the time limit"} if number % 10 == 3 else {},
        "drift": {},
        "method": {"newcomer_strength": 0.5},
        "seconds": {"waiting": 4.0, "aggregating": 1.5, "training": 12.0, "evaluating": 0.0 if number % 2 else 6.0},
    }


def _write_checkpoint(directory: Path, config: RunConfig, cards: dict[str, ClientCard], rounds: int) -> None:
    method = build_method(config)
    torch.manual_seed(0)
    state = with_clients(method, method.init(make_adapter(0)), cards)
    updates = []
    for name, card in sorted(cards.items()):
        if card.trains:
            start = method.start(state, card)
            updates.append(ClientUpdate(card, start, moved(start, name, 1), make_metrics()))
    state = method.aggregate(state, updates)
    CheckpointStore(directory / "checkpoints", keep=1).save(Checkpoint(rounds, state), method.state_classes)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))

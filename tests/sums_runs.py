"""Short runs of sums on digits through the real ServerApp and ClientApp, in this process, and what they wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from hyperlora.config.schema import RunConfig
from server_app.run import run

SUMS = {
    "federation.clients-per-round": 5,
    "hyperlora.probe-clients": 4,
    "privacy.mode": "sums",
    "privacy.least-clients": 3,
    "data.clients-per-domain": 2,
    "federation.rounds": 2,
    "federation.evaluate-every": 2,
    "train.local-steps": 2,
    "train.adapt-steps": 0,
    "run.checkpoint-every": 1,
}
CLIENTS = 8
Step = tuple[str, str]


class Recording(LocalGrid):
    """Keeps every reply."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.replies: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(list(message_ids)))
        self.replies += replies
        return replies


def breaking(broken: Step) -> Callable[[Message, Context], Message]:
    """Return the app with a client that fails in a step of every sum."""

    def answer(message: Message, context: Context) -> Message:
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        if (config.get("client_id"), config.get("step")) == broken:
            raise RuntimeError("its power was cut")
        return app(message, context)

    return answer


def made(directory: Path, broken: Step = ("", ""), **overrides: Any) -> tuple[Path, Recording]:
    values = RunConfig.parse({**SUMS, "run.output-dir": str(directory), **overrides}).flat()
    grid = Recording(breaking(broken), values, CLIENTS)
    return run(grid, values), grid


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_times(directory: Path) -> list[dict[str, Any]]:
    """Return the records without seconds, and without bytes: the length of sealed shares varies a little."""
    return [
        {name: value for name, value in one.items() if name not in ("seconds", "bytes")} for one in records(directory)
    ]

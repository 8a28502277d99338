"""Taking a client out of a run that is stopped: what the run holds of it is dropped, what cannot be is named."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyperlora.config.schema import ConfigError
from hyperlora.reporting.run_files import RunFiles
from hyperlora.storage.files import storage_errors
from hyperlora.storage.run_names import CLIENTS, EVALUATION
from server_app.run_directory import RunDirectory, open_checkpoints
from strategies.engine.checkpoint import Checkpoint
from strategies.federation.client_list import ClientList
from strategies.methods.base.server import Forgets, Method
from strategies.methods.registry import build_method

STAYS = (
    "the shared adapter and what was learned with it: the client's contribution cannot be separated from the others'",
    "the other clients' adapters, which its contributions influenced; clients may have copies of them",
    "metrics.jsonl and asked.jsonl, which name it: figures of rounds, and who was asked (privacy that is spent)",
    "audit.jsonl, which names it in a hash chain from which no line can be removed",
    "reports written before, experiment trackers, copies of this directory and the client's own disk",
    "federations published before (as in published/) and adapters exported to other places: delete those yourself",
)

EXPORTED = ("{}", "{}-merged", "{}-rank-*", "{}-*-bytes")
"""What ``hyperlora export`` calls what it makes of a client's adapter."""


@dataclass(frozen=True)
class Forgotten:
    """What became of a client's traces.

    Attributes:
        dropped: what the run held of the client and does not hold any more.
        stays: what cannot be unlearned.
        server_round: of the checkpoint that the run goes on from.
    """

    dropped: Sequence[str]
    stays: Sequence[str]
    server_round: int


def forget_client(path: Path, client_id: str) -> Forgotten:
    """Drop a client out of a run directory; the run can go on from its last checkpoint as if it had never joined.

    Older checkpoints, which hold the client, are removed. A client that is still connected joins again when the run
    goes on: its permission must end first.

    Raises:
        ConfigError: another run writes to the directory, there is no checkpoint, or the run knows no such client.
        StorageError: a file cannot be read or written.
    """
    directory = RunDirectory.open(str(path.absolute()), resume=True)
    with directory.held():
        run = RunFiles.open(directory.path)
        known, scores, method = run.clients, run.scores, build_method(run.config)
        store = replace(open_checkpoints(directory, run.config), keep=1)
        found = store.latest(method.state_classes)
        if found is None:
            raise ConfigError(f"the run in '{path}' has no checkpoint, so there is nothing to take a client out of")
        if client_id not in found.cards:
            raise ConfigError(f"the run in '{path}' knows no client '{client_id}'")
        dropped = _dropped_files(directory, known, scores, client_id)
        # last, so that what is stopped half-way can be asked for again
        store.save(without_client(found, method, client_id), method.state_classes)
        dropped.insert(0, "checkpoints: its card and signature, its scores, its part of the method's state")
    return Forgotten(dropped, STAYS, found.server_round)


def without_client(checkpoint: Checkpoint, method: Method, client_id: str) -> Checkpoint:
    """Return a checkpoint without what it holds of a client; what it was asked stays counted."""
    state = method.forget(checkpoint.state, client_id) if isinstance(method, Forgets) else checkpoint.state
    return replace(
        checkpoint,
        state=state,
        cards={name: card for name, card in checkpoint.cards.items() if name != client_id},
        scores=[score for score in checkpoint.scores if score.client_id != client_id],
        history=checkpoint.history.without(client_id),
    )


def _dropped_files(
    directory: RunDirectory, known: ClientList | None, scores: Sequence[dict[str, Any]], client_id: str
) -> list[str]:
    dropped = []
    if known is not None:
        cards = {name: card for name, card in known.cards.items() if name != client_id}
        directory.write_json(CLIENTS, ClientList(known.class_names, cards).as_json())
        dropped.append(f"{CLIENTS}: its card and signature")
    if directory.has_results:
        directory.write_json(EVALUATION, [score for score in scores if score["client_id"] != client_id])
        dropped.append(f"{EVALUATION}: its scores")
    adapter = directory.path / "adapters" / client_id
    if adapter.exists():
        with storage_errors(adapter, "cannot be removed"):
            shutil.rmtree(adapter)
        dropped.append(f"adapters/{client_id}")
    for made in (one for name in EXPORTED for one in sorted((directory.path / "exports").glob(name.format(client_id)))):
        with storage_errors(made, "cannot be removed"):
            shutil.rmtree(made)
        dropped.append(f"exports/{made.name}")
    return dropped

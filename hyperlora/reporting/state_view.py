"""What a report shows of the method's state, read from the run's last checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperlora.reporting.run_files import RunFiles
from hyperlora.storage.run_names import SHARED_STATE
from hyperlora.storage.state import StateError
from models.adapters.adapter import Adapter
from models.lowrank.factors import truncate
from strategies.engine.checkpoint import Checkpoint, CheckpointStore, shared
from strategies.methods.base.server import Method
from strategies.methods.hyperlora.server import HyperLoraMethod
from strategies.methods.hyperlora.state import HyperLoraState
from strategies.methods.registry import build_method


@dataclass(frozen=True)
class StateView:
    """The parts of a state that can be shown.

    Attributes:
        server_round: the round that the state is of.
        anchor_spectrum: kind -> singular values of scaling B A, largest first, mean over blocks, (r,).
        residual_spectrum: the same of what the corrector carries; empty where it carries nothing.
        attending: client-ids of the rows of ``attention``, in their order.
        attended: client-ids of its columns.
        attention: (rows, columns), every row of sum 1; None for a method without attention.
    """

    server_round: int
    anchor_spectrum: Mapping[str, Tensor]
    residual_spectrum: Mapping[str, Tensor]
    attending: Sequence[str] = ()
    attended: Sequence[str] = ()
    attention: Tensor | None = None


def open_checkpoint(run: RunFiles) -> tuple[Method, Checkpoint | None]:
    """Return the run's method, which keeps its memory in RAM here, and the last checkpoint; None where there is none.

    Raises:
        StateError: there are checkpoints, and none can be used.
    """
    method = build_method(run.config.with_values({"hyperlora.memory-limit": 0}))
    published = run.path / SHARED_STATE
    if published.exists():
        return method, shared(published, method.state_classes)
    return method, CheckpointStore(run.path / "checkpoints", keep=1).latest(method.state_classes)


def view_state(run: RunFiles) -> StateView | None:
    """Return what can be shown of the run's last checkpoint, or None where it has none that can be used.

    Raises:
        OldRunError: the run was made by a version whose checkpoints are no longer read.
    """
    try:
        method, found = open_checkpoint(run)
    except StateError:
        return None
    if found is None:
        return None
    server_round, state = found.server_round, found.state
    anchor = method.anchor(state)
    scaling = run.config.lora.scaling
    view = StateView(server_round, spectrum(anchor, scaling) if anchor else {}, {})
    return _with_attention(view, state, method, scaling) if isinstance(method, HyperLoraMethod) else view


def spectrum(adapter: Adapter, scaling: float) -> dict[str, Tensor]:
    """Return for every kind the singular values of scaling B A, mean over blocks, (rank,)."""
    return {
        kind: scaling * truncate(factors, factors.rank).singular_values.mean(dim=0)
        for kind, factors in sorted(adapter.low_rank.items())
    }


def _with_attention(view: StateView, state: HyperLoraState, method: HyperLoraMethod, scaling: float) -> StateView:
    residual = spectrum(state.residual, scaling) if state.residual is not None else {}
    if not state.memory:
        return replace(view, residual_spectrum=residual)
    names = sorted(state.signature_vectors)
    queries = state.standardize(torch.stack([state.signature_vectors[name] for name in names]))
    return replace(
        view,
        residual_spectrum=residual,
        attending=names,
        attended=list(state.names),
        attention=method.synthesizer.attention(queries, state.keys, state.own(names), state.groups),
    )

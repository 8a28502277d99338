"""What adapters are worth on validation samples of a run's clients, where its data can be opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client_app.runtime import ClientRuntime
from hyperlora.newcomer import local_runtime
from hyperlora.reporting.run_files import RunFiles
from hyperlora.task import build_federation
from models.adapters.adapter import Adapter
from models.adapters.compression import adapter_of
from models.adapters.training import evaluate
from models.lowrank.factors import Factors


@dataclass(frozen=True)
class ValidationScores:
    """Accuracies of several adapters on the same validation samples.

    Attributes:
        clients: whose samples they are.
        samples: their number.
        accuracies: a share of them for each adapter.
    """

    clients: int
    samples: int
    accuracies: Sequence[float]


def validation_scores(
    run: RunFiles, adapters: Sequence[Mapping[str, Tensor]], client: str | None = None, weights: Path | None = None
) -> ValidationScores:
    """Score adapters on the validation share of a client of the run, or of all that train where none is named.

    Args:
        run: the run; its data are opened and divided anew, as its clients did.
        adapters: tensors under PEFT's names, of any ranks, with the run's scaling.
        client: id of the one client that the adapters are for, its class prior in them; where there is none, each
            client adds its own, if the run has a prior.
        weights: the backbone's weights, where they are not where the run found them.

    Raises:
        DataError, BackboneError, RunFilesError: data or backbone are not on this machine.
        AdapterError: an adapter is not for this backbone.
    """
    config = run.config.with_values({"train.device": "auto"})
    federation = build_federation(config.data, image_size=config.model.image_size, seed=config.seed)
    chosen = [client] if client else [one for one in federation.client_ids if federation.load(one).trains]
    runtime = local_runtime(config, run.rebuild_model(weights), federation)
    sizes = [len(runtime.tokens(one, "validation")) for one in chosen]
    shares = torch.tensor(sizes, dtype=torch.float64) / max(sum(sizes), 1)
    made = [adapter_of(one, runtime.model) for one in adapters]
    hits = torch.tensor(
        [[_accuracy(runtime, one, adapter, adds_prior=client is None) for one in chosen] for adapter in made],
        dtype=torch.float64,
    )
    return ValidationScores(len(chosen), sum(sizes), (hits @ shares).tolist())


def _accuracy(runtime: ClientRuntime, client_id: str, adapter: Adapter, *, adds_prior: bool) -> float:
    """Return the accuracy with the product beside the frozen weights, which may have any rank."""
    model, own = runtime.model, runtime.with_prior(client_id, adapter) if adds_prior else adapter
    nothing = {kind: Factors(0 * one.B, one.A) for kind, one in model.extract().low_rank.items()}
    model.load(Adapter(nothing, own.head))
    with model.prepared("all", None, own):
        return evaluate(model, runtime.tokens(client_id, "validation"))[0]

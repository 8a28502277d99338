"""Flower's robust rules as rivals of the default defence: MultiKrum, Bulyan and FedTrimmedAvg, in product space.

The functions are Flower's own. They are given every module's product as a dense matrix, since clients may write one
product with different factors, and what they return is cut back to the rank, as FlexLoRA does it. They are told the
largest share of bad clients that the suite has, and clients count alike, as in their papers: MultiKrum (Blanchard et
al. 2017), Bulyan (El Mhamdi et al. 2018), trimmed mean (Yin et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.trials import SuiteError
from hyperlora.config.schema import RunConfig
from models.adapters.adapter import Adapter
from models.lowrank.factors import Factors
from strategies.methods import flexlora
from strategies.methods.base.server import ClientUpdate

SHARE = 0.3
"""Share of bad clients that the rules are told."""
Arrays = list[NDArray[np.float64]]
"""A client's model: the products of each kind (blocks, m, n), and the head (classes, width + 1)."""


def multikrum(models: Sequence[Arrays]) -> Arrays:
    """Return the mean of the n - f models that lie nearest to others, for f of n that are bad."""
    bad = int(SHARE * len(models))
    kept = _selected(models, bad, len(models) - bad)
    return [np.mean(layers, axis=0) for layers in zip(*kept, strict=True)]


def bulyan(models: Sequence[Arrays]) -> Arrays:
    """Return, coordinate by coordinate, the mean of what is nearest to the median of the models that Krum selects.

    It holds against f of at least 4 f + 3 models only, so it may be told of fewer bad ones than there are.
    """
    bad = max(0, min(int(SHARE * len(models)), (len(models) - 3) // 4))
    kept = _selected(models, bad, len(models) - 2 * bad)
    medians = [np.median(layers, axis=0) for layers in zip(*kept, strict=True)]
    found: Arrays = aggregate_n_closest_weights(medians, kept, len(kept) - 2 * bad)
    return found


def trimmed_mean(models: Sequence[Arrays]) -> Arrays:
    """Return, coordinate by coordinate, the mean without the highest and the lowest share."""
    return [np.asarray(trim_mean(np.stack(layers), SHARE)) for layers in zip(*models, strict=True)]


RULES: dict[str, Callable[[Sequence[Arrays]], Arrays]] = {
    "multikrum": multikrum,
    "bulyan": bulyan,
    "trimmed-mean": trimmed_mean,
}


@dataclass(frozen=True)
class RobustFlexLoRA(flexlora.FlexLoRA):
    """FlexLoRA with a rule in place of the average."""

    rule: Callable[[Sequence[Arrays]], Arrays]

    def aggregate(self, state: Adapter, updates: Sequence[ClientUpdate]) -> Adapter:
        """Combine the products by the rule, truncate, and keep the gauge of the last round."""
        kinds = sorted(state.low_rank)
        models = [
            [*(_dense(update.end.low_rank[kind]) for kind in kinds), _array(update.end.head)] for update in updates
        ]
        *products, head = [torch.from_numpy(one).to(state.head.dtype) for one in self.rule(models)]
        low_rank = {kind: _factored(product) for kind, product in zip(kinds, products, strict=True)}
        return Adapter(low_rank, head).truncated(state.rank).aligned(state)


@contextmanager
def robust(rule: str) -> Iterator[None]:
    """Have FlexLoRA combine by a rule of :data:`RULES` while the context lasts; "" changes nothing.

    Raises:
        SuiteError: there is no such rule.
    """
    if not rule:
        yield
        return
    if rule not in RULES:
        raise SuiteError(f"there is no reference '{rule}'; there are centralised, {', '.join(RULES)}")

    def build(config: RunConfig) -> RobustFlexLoRA:
        return RobustFlexLoRA(RULES[rule])

    with patch.object(flexlora, "build", build):
        yield


def _selected(models: Sequence[Arrays], bad: int, count: int) -> list[Arrays]:
    contents = [
        RecordDict({"arrays": ArrayRecord({str(place): Array(one) for place, one in enumerate(model)})})
        for model in models
    ]
    kept = select_multikrum(contents, bad, count)
    return [models[next(i for i, one in enumerate(contents) if one is content)] for content in kept]


def _dense(factors: Factors) -> NDArray[np.float64]:
    return _array(factors.to(torch.float64).product())


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.to(torch.float64).numpy()


def _factored(product: Tensor) -> Factors:
    blocks, _, n = product.shape
    return Factors(B=product, A=torch.eye(n, dtype=product.dtype).expand(blocks, n, n))

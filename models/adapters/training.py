"""Local training and evaluation of an adapter on tokens: no Flower, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.adapters.sensitivity import SensitivityMeter
from models.backbones.backbone import NO_TARGET

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel
    from models.adapters.optimizers import OptimizerSpec

EVALUATION_BATCH, TOKEN_BATCH = 256, 16
CALIBRATION_BINS = 15
Penalty = Callable[[], Tensor]


@dataclass(frozen=True)
class TokenSet:
    """Samples behind the frozen prefix of the backbone: ``tokens`` (n, ...) and ``labels`` (n,) or (n, t)."""

    tokens: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self) -> Iterator[Tensor]:
        """Yield the positions of all samples in batches to be evaluated; fewer where every token has its logits."""
        size = EVALUATION_BATCH if self.labels.ndim == 1 else TOKEN_BATCH
        yield from torch.split(torch.arange(len(self)), size) if len(self) else ()

    def first(self, count: int) -> TokenSet:
        """Return the first ``count`` samples."""
        return TokenSet(self.tokens[:count], self.labels[:count])

    def num_targets(self) -> int:
        """Return how many labels count."""
        return int((self.labels != NO_TARGET).sum())


class LocalTrainer:
    """Trains the adapter that ``model`` carries, and can be continued: ``run(2)`` then ``run(8)`` is ``run(10)``.

    Args:
        model: the model, its adapter loaded.
        samples: to train on, drawn in full epochs of random order.
        optimizer: makes the optimiser.
        batch_size: samples per step.
        seed: of the order of the samples.
        nested: draw for every step how many of the first components of each product it works with (DyLoRA, arXiv
            2210.07558), so that every lower rank is of use by itself; the scaling stays that of the whole rank.
        penalty: a scalar that is added to the loss at every step, such as a proximal term; None adds nothing.
        meter: is shown the gradient of the loss and the adapter after the step; None is shown nothing.
        rank: of the client's adapter, which ``nested`` draws from; 0 is the model's.
    """

    def __init__(
        self,
        model: AdaptedModel,
        samples: TokenSet,
        *,
        optimizer: OptimizerSpec,
        batch_size: int,
        seed: int,
        nested: bool = False,
        penalty: Penalty | None = None,
        meter: SensitivityMeter | None = None,
        rank: int = 0,
    ) -> None:
        self._model, self._samples, self._penalty, self._meter = model, samples, penalty, meter
        self._optimizers = optimizer.build(model)
        self._batches = _endless_batches(len(samples), batch_size, seed)
        self._ranks = _endless_ranks(rank or model.extract().rank, derive_seed(seed, "ranks")) if nested else None

    def run(self, steps: int) -> float:
        """Make ``steps`` optimiser steps and return the mean training loss over them (0.0 for no step)."""
        losses = [self._step(next(self._batches)) for _ in range(steps)]
        return sum(losses) / max(len(losses), 1)

    def _step(self, batch: Tensor) -> float:
        tokens, labels = _on_device(self._model, self._samples, batch)
        losses: list[float] = []

        def loss() -> Tensor:
            value = cross_entropy(self._model.logits(tokens), labels)
            losses.append(float(value.detach()))
            return value if self._penalty is None else value + self._penalty()

        gradients: list[Adapter] = []
        seen = None if self._meter is None else lambda: gradients.append(self._model.gradient())
        descend(loss, self._optimizers, self._model.cut(next(self._ranks)) if self._ranks else None, seen)
        if self._meter is not None:
            self._meter.see(self._model.extract(), gradients[0])
        return losses[0]


def cross_entropy(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """Return the cross-entropy of logits (n, classes) or (n, classes, t), nats, with labels (n,) or (n, t).

    A language model's logits are taken as rows of classes, the way its last layer wrote them: with 32,000 of them the
    loss and its gradient take half as long on a CPU.
    """
    if logits.ndim == 3:
        logits, labels = logits.mT.flatten(0, 1), labels.flatten()
        if reduction == "mean":  # 0 where no token counts, as where prompts fill all of a batch
            return F.cross_entropy(logits, labels, reduction="sum") / (labels != NO_TARGET).sum().clamp_min(1)
    return F.cross_entropy(logits, labels, reduction=reduction)


def descend(
    loss: Callable[[], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    meanwhile: AbstractContextManager[None] | None = None,
    seen: Callable[[], None] | None = None,
) -> None:
    """Make one step of all optimisers, in turn, on one gradient.

    Args:
        loss: computes it.
        optimizers: are stepped in this order.
        meanwhile: what holds while loss and gradient are computed, and no longer when the step is made.
        seen: is called when the gradient is there, before an optimiser turns it into a step.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    with meanwhile or nullcontext():
        torch.autograd.backward(loss())
    if seen is not None:
        seen()
    for optimizer in optimizers:
        optimizer.step()


class Scores(NamedTuple):
    """Accuracy, mean cross-entropy, expected calibration error, and of every sample whether it was right: (n,)."""

    accuracy: float
    loss: float
    calibration_error: float
    hits: Tensor


@torch.inference_mode()
def evaluate(model: AdaptedModel, samples: TokenSet) -> tuple[float, float]:
    """Return accuracy (share) and mean cross-entropy (nats), per label, of the adapter that ``model`` carries.

    An empty set has accuracy 0 and loss 0; the number of its samples tells.
    """
    return evaluate_samples(model, samples)[:2]


@torch.inference_mode()
def evaluate_samples(model: AdaptedModel, samples: TokenSet) -> Scores:
    """Return the scores of the adapter that ``model`` carries; all 0 for an empty set."""
    count = samples.num_targets()
    if not count:
        return Scores(0.0, 0.0, 0.0, torch.zeros(0, dtype=torch.bool))
    correct, loss = 0.0, 0.0
    confidences, hits = [], []
    for batch in samples.batches():
        tokens, labels = _on_device(model, samples, batch)
        logits = model.logits(tokens)
        hit, counted = logits.argmax(dim=1) == labels, labels != NO_TARGET
        correct += float(hit.sum())
        loss += float(cross_entropy(logits, labels, reduction="sum"))
        confidences.append(logits.softmax(dim=1).amax(dim=1)[counted])
        hits.append(hit[counted])
    right = torch.cat(hits)
    return Scores(correct / count, loss / count, calibration_error(torch.cat(confidences), right), right.cpu())


def hits_by_class(samples: TokenSet, scores: Scores, num_classes: int) -> tuple[list[int], list[int]]:
    """Return how many ``samples`` each class has, and how many of them are right; both of ``num_classes`` entries."""
    labels = samples.labels.cpu()
    counts, hits = (torch.bincount(one, minlength=num_classes) for one in (labels, labels[scores.hits]))
    return counts.tolist(), hits.tolist()


def calibration_error(confidences: Tensor, hits: Tensor) -> float:
    """Return sum_b n_b / n |accuracy_b - confidence_b| over equal-width bins of confidence (Guo et al. 2017).

    Args:
        confidences: (n,) probability of the predicted class; what is no number counts as 0.
        hits: (n,) whether it was right.
    """
    confidences = confidences.double().nan_to_num(0.0)
    bins = (confidences * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=confidences.device)
    gaps.index_add_(0, bins, hits.double() - confidences)
    return min(float(gaps.abs().sum()) / max(len(hits), 1), 1.0)


def loss_gradient(model: AdaptedModel, samples: TokenSet) -> Adapter:
    """Return the gradient of the mean cross-entropy over ``samples``, by the parts of the adapter.

    The frozen backbone gets none; the model's own gradients are cleared.
    """
    model.clear_gradient()
    count = max(samples.num_targets(), 1)
    for batch in samples.batches():
        tokens, labels = _on_device(model, samples, batch)
        torch.autograd.backward(cross_entropy(model.logits(tokens), labels, reduction="sum") / count)
    return model.take_gradient()


def _on_device(model: AdaptedModel, samples: TokenSet, batch: Tensor) -> tuple[Tensor, Tensor]:
    return samples.tokens[batch].to(model.device), samples.labels[batch].to(model.device)


def _endless_batches(count: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield index batches of full epochs in random order; a batch may span two epochs."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while waiting.numel() < batch_size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _endless_ranks(most: int, seed: int) -> Iterator[int]:
    """Yield ranks from 1 to ``most``, each as likely as the others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield int(torch.randint(1, most + 1, (), generator=generator))

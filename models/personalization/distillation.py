"""Distillation: the generator learns, in product space, to give what the memory gives.

The target of an embedding s is a mixture of the N remembered deviations, target(s) = sum_j C[s, j] D_j. With <., .>
summed over the layers of a part (a kind, or ``head``),
||G(s) - target(s)||^2 = ||G(s)||^2 - 2 sum_j C_sj <G(s), D_j> + C_s^T Gram(D) C_s,
so r x r products are all it takes. The *error* of a part is that, over the mean of ||D_j||^2; the loss is the
mean over parts and embeddings. 0 is perfect; a generator of zeros has an error of about the coefficients' square.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.adapters.batch import AdapterBatch
from models.personalization.generators.base import Generator, StackedMemory

EVALUATE_EVERY = 5


@dataclass(frozen=True)
class DistillationReport:
    """What :func:`distill` reached with the weights that were kept.

    Attributes:
        train_error: error on the embeddings trained on.
        held_out_error: error on those held out; nan where there are none.
        steps_made: steps until it stopped.
    """

    train_error: float
    held_out_error: float
    steps_made: int


@dataclass(frozen=True, eq=False)
class Targets:
    """Mixtures of remembered deviations for S embeddings.

    Attributes:
        embeddings: (S, k) of signatures.
        coefficients: C (S, N).
        squares: part -> C_s^T Gram(D) C_s, (S,).
        scales: part -> mean over the memory of ||D_j||^2.
        memory: the deviations.
    """

    embeddings: Tensor
    coefficients: Tensor
    squares: Mapping[str, Tensor]
    scales: Mapping[str, float]
    memory: StackedMemory

    def chosen(self, which: Tensor) -> Targets:
        """Return the targets of the embeddings that ``which`` (S,) marks."""
        return replace(
            self,
            embeddings=self.embeddings[which],
            coefficients=self.coefficients[which],
            squares={part: square[which] for part, square in self.squares.items()},
        )


def make_targets(embeddings: Tensor, coefficients: Tensor, memory: AdapterBatch) -> Targets:
    """Prepare the targets; the gram of the memory (N deviations) is computed here, once, in float64.

    Raises:
        ValueError: if the coefficients are not (S, N).
    """
    expected, got = (len(embeddings), len(memory)), tuple(coefficients.shape)
    if got != expected:
        raise ValueError(f"expected coefficients (S, N) = {expected}, got {got}")
    stacked = StackedMemory.of(memory)
    gram = stacked.double().gram()
    scales = {part: float(g.diagonal().mean()) or 1.0 for part, g in gram.items()}
    wide = coefficients.double()
    squares = {part: ((wide @ g) * wide).sum(dim=1).to(coefficients) for part, g in gram.items()}
    return Targets(embeddings, coefficients, squares, scales, stacked)


def distillation_loss(generator: Generator, targets: Targets) -> Tensor:
    """Return the mean over parts and embeddings of ||G(s) - target(s)||^2 / mean_j ||D_j||^2; differentiable."""
    errors = []
    for part, (squares, inners) in generator.products(targets.embeddings, targets.memory).items():
        crossed = (targets.coefficients * inners).sum(dim=1)
        errors.append((squares - 2 * crossed + targets.squares[part]).mean() / targets.scales[part])
    return torch.stack(errors).mean()


def virtual_embeddings(embeddings: Tensor, count: int, noise: float, generator: torch.Generator) -> Tensor:
    """Return ``count`` embeddings of clients that do not exist: t s_i + (1 - t) s_j + noise * N(0, 1).

    i and j are two different clients where there are two, and t is uniform in [0, 1].

    Args:
        embeddings: of the clients, (N, k), standardised.
        count: number of rows that are made.
        noise: standard deviation of the noise, in standardised units.
        generator: draws i, j, t and the noise.
    """
    size, width = embeddings.shape
    first = torch.randint(size, (count,), generator=generator)
    step = torch.randint(1, max(size, 2), (count,), generator=generator)
    share = torch.rand(count, 1, generator=generator).to(embeddings)
    spread = noise * torch.randn(count, width, generator=generator).to(embeddings)
    return share * embeddings[first] + (1 - share) * embeddings[(first + step) % size] + spread


def distill(
    generator: Generator,
    *,
    embeddings: Tensor,
    coefficients: Tensor,
    memory: AdapterBatch,
    held_out: Tensor,
    steps: int,
    learning_rate: float,
    patience: int,
    optimizer: torch.optim.Adam | None = None,
) -> DistillationReport:
    """Train by full-batch Adam and keep the weights of the smallest held-out error; deterministic.

    Args:
        generator: changed in place.
        embeddings: (S, k) of signatures: real, mixed, noised.
        coefficients: C (S, N), the mixture of the memory that each embedding should give.
        memory: the N deviations.
        held_out: (S,) True for the embeddings that only decide when to stop; with none of them all steps are made.
        steps: at most so many.
        learning_rate: of Adam; also set in ``optimizer``.
        patience: stop after so many evaluations, one every ``EVALUATE_EVERY`` steps, without improvement.
        optimizer: made by the caller on the generator's parameters, to keep its moments between calls; they
            are those of the last step, also where earlier weights are restored.

    Raises:
        ValueError: if every embedding is held out, or as :func:`make_targets`.
    """
    if bool(held_out.all()):
        raise ValueError(f"expected inputs to train on, got all {len(held_out)} held out")
    targets = make_targets(embeddings, coefficients, memory)
    train, held = targets.chosen(~held_out), targets.chosen(held_out)
    adam = optimizer or torch.optim.Adam(generator.parameters())
    for group in adam.param_groups:
        group["lr"] = learning_rate
    best, kept, waited, step = _error(generator, held), copy.deepcopy(generator.state_dict()), 0, 0
    while step < steps and waited < patience:
        for _ in range(min(EVALUATE_EVERY, steps - step)):
            adam.zero_grad(set_to_none=True)
            torch.autograd.backward(distillation_loss(generator, train))
            adam.step()
            step += 1
        error = _error(generator, held)
        waited += 1
        if math.isnan(best) or error < best:
            best, kept, waited = error, copy.deepcopy(generator.state_dict()), 0
    generator.load_state_dict(kept)
    return DistillationReport(_error(generator, train), best, step)


@torch.no_grad()
def _error(generator: Generator, targets: Targets) -> float:
    """Return the loss as a number, nan without embeddings."""
    return float(distillation_loss(generator, targets)) if len(targets.embeddings) else math.nan

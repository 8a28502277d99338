from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import models.personalization.distillation
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.personalization.distillation import distill, distillation_loss, make_targets, virtual_embeddings
from models.personalization.generators.base import StackedMemory, batch_products
from models.personalization.generators.build import GENERATORS, Generator
from tests.unit.test_generator import BLOCKS, CLASSES, SHAPES, WIDTH, build, random_batch, shaken, signatures

PARTS = [*SHAPES, "head"]
MEMBERS, LATENT, TERMS = 24, 3, 5
ALL = torch.zeros(MEMBERS, dtype=torch.bool)


def dense(batch: AdapterBatch) -> dict[str, Tensor]:
    return {kind: factors.product() for kind, factors in batch.low_rank.items()} | {"head": batch.head}


def mixtures(count: int, entries: int) -> Tensor:
    return torch.rand(count, entries, generator=torch.Generator().manual_seed(3))


def dense_loss(generator: Generator, inputs: Tensor, coefficients: Tensor, memory: AdapterBatch) -> Tensor:
    errors = []
    for part, generated in dense(generator(inputs)).items():
        deviations = dense(memory)[part]
        target = torch.einsum("sj,j...->s...", coefficients, deviations)
        scale = deviations.square().sum() / len(deviations)
        errors.append((generated - target).square().sum() / len(inputs) / scale)
    return torch.stack(errors).mean()


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_loss_and_its_gradients_are_those_of_the_dense_computation(kind: str) -> None:
    generator, memory = shaken(build(kind)), random_batch(10, 6, seed=2)
    generator.seed(memory)
    inputs, coefficients = signatures(9), mixtures(9, 10)
    loss = distillation_loss(generator, make_targets(inputs, coefficients, memory))
    expected = dense_loss(generator, inputs, coefficients, memory)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)

    parameters = list(generator.parameters())
    pairs = zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_the_products_of_atoms_are_those_of_their_factors() -> None:
    generator, memory = shaken(build("atoms")), StackedMemory.of(random_batch(10, 6, seed=2))
    direct = generator.products(signatures(9), memory)
    torch.testing.assert_close(direct, batch_products(generator(signatures(9)), memory), rtol=1e-4, atol=1e-4)


def test_coefficients_must_fit_the_memory() -> None:
    with pytest.raises(ValueError, match=r"\(9, 10\).*\(9, 11\)"):
        make_targets(signatures(9), mixtures(9, 11), random_batch(10, 6, seed=2))


def test_virtual_embeddings_lie_between_two_clients_and_are_seeded() -> None:
    inputs = torch.eye(5)
    drawn = virtual_embeddings(inputs, 50, 0.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(50))
    assert bool(((drawn > 0).sum(dim=1) == 2).all())
    noisy = [virtual_embeddings(inputs, 50, 0.3, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(noisy[0], noisy[1])
    assert 0.2 < float((noisy[0] - drawn).std()) < 0.4
    assert torch.equal(virtual_embeddings(inputs[:1], 3, 0.0, torch.Generator()), inputs[:1].expand(3, -1))


class Family:
    """Clients whose deviation follows from three numbers: sum_k tanh(w_k z + b_k) atom_k."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.atoms = {
            kind: (self.draw(BLOCKS, m, TERMS), self.draw(BLOCKS, TERMS, n)) for kind, (m, n) in SHAPES.items()
        }
        self.heads, self.slopes = self.draw(TERMS, CLASSES, WIDTH + 1), 0.8 * self.draw(LATENT, TERMS)
        self.offsets = 0.3 * self.draw(TERMS)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random)

    def deviations(self, latent: Tensor) -> AdapterBatch:
        f = 0.01 * torch.tanh(latent @ self.slopes + self.offsets)
        low_rank = {
            kind: Factors(B * f[:, None, None, :], A.expand(len(latent), -1, -1, -1))
            for kind, (B, A) in self.atoms.items()
        }
        return AdapterBatch(low_rank, torch.einsum("nk,kcw->ncw", f, self.heads))


def relative_error(predicted: dict[str, Tensor], true: dict[str, Tensor]) -> float:
    """Root of the mean over parts of ||predicted - true||^2 / ||true||^2; zero predicts with an error of 1."""
    shares = [float((predicted[part] - true[part]).square().sum() / true[part].square().sum()) for part in PARTS]
    return math.sqrt(sum(shares) / len(shares))


@pytest.mark.parametrize("seed", [0, 1])
def test_atoms_generalise_to_unseen_members_of_a_low_dimensional_family(seed: int) -> None:
    family = Family(seed)
    seen, unseen = family.draw(MEMBERS, LATENT), family.draw(64, LATENT)
    memory, true = family.deviations(seen), dense(family.deviations(unseen))
    generator = build("atoms", rank=8, embedding_size=LATENT, seed=seed)
    generator.seed(memory)
    distill(
        generator,
        embeddings=seen,
        coefficients=torch.eye(MEMBERS),
        memory=memory,
        held_out=ALL,
        steps=250,
        learning_rate=1e-2,
        patience=9,
    )
    with torch.no_grad():
        error = relative_error(dense(generator(unseen)), true)
    mean = {part: deviations.mean(dim=0, keepdim=True) for part, deviations in dense(memory).items()}
    assert error < 0.3
    assert error < 0.5 * min(1.0, relative_error(mean, true))


@pytest.mark.parametrize("kind", GENERATORS)
def test_every_kind_learns_its_training_members(kind: str) -> None:
    family = Family(0)
    seen = family.draw(MEMBERS, LATENT)
    memory, generator = family.deviations(seen), build(kind, rank=5, embedding_size=LATENT)
    generator.seed(memory)
    report = distill(
        generator,
        embeddings=seen,
        coefficients=torch.eye(MEMBERS),
        memory=memory,
        held_out=ALL,
        steps=60,
        learning_rate=1e-2,
        patience=9,
    )
    assert report.train_error < 0.5
    assert math.isnan(report.held_out_error)
    assert report.steps_made == 60


Distil = Callable[..., models.personalization.distillation.DistillationReport]


@pytest.fixture
def noisy() -> tuple[Generator, Distil]:
    """A task without anything to generalise, so that the held-out error rises once training fits the noise."""
    memory, generator = random_batch(MEMBERS, 1, seed=6), build("mlp", rank=5)
    generator.seed(memory)
    given = {
        "embeddings": signatures(MEMBERS),
        "coefficients": torch.eye(MEMBERS),
        "memory": memory,
        "learning_rate": 1e-2,
    }
    held_out = torch.arange(MEMBERS) % 3 == 0
    return generator, lambda **more: distill(generator, **(given | {"held_out": held_out, "patience": 4} | more))


def test_training_stops_early_and_the_best_weights_are_back(
    noisy: tuple[Generator, Distil], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = noisy
    evaluated: list[float] = []
    error = models.personalization.distillation._error

    def recorded(generator: Generator, targets: models.personalization.distillation.Targets) -> float:
        evaluated.append(error(generator, targets))
        return evaluated[-1]

    monkeypatch.setattr(models.personalization.distillation, "_error", recorded)
    report = run(steps=200)
    held_out = evaluated[:-1]
    assert report.steps_made == 5 * (len(held_out) - 1) < 200
    assert report.held_out_error == min(held_out)
    assert held_out.index(min(held_out)) == len(held_out) - 1 - 4
    assert run(steps=0).held_out_error == report.held_out_error


def test_the_same_call_gives_the_same_weights_and_draws_no_global_random_number() -> None:
    memory, inputs, ends = random_batch(6, 2, seed=6), signatures(6), []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        generator = build("atoms")
        generator.seed(memory)
        held_out = torch.arange(6) == 2
        distill(
            generator,
            embeddings=inputs,
            coefficients=torch.eye(6),
            memory=memory,
            held_out=held_out,
            steps=12,
            learning_rate=1e-2,
            patience=9,
        )
        assert torch.equal(torch.get_rng_state(), before)
        ends.append(generator.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_an_optimizer_of_the_caller_keeps_its_moments(noisy: tuple[Generator, Distil]) -> None:
    generator, run = noisy
    adam = torch.optim.Adam(generator.parameters(), lr=1.0)
    run(steps=7, optimizer=adam)
    run(steps=3, optimizer=adam, learning_rate=1e-3)
    assert {int(state["step"]) for state in adam.state.values()} == {10}
    assert adam.param_groups[0]["lr"] == 1e-3


def test_inputs_that_are_all_held_out_are_an_error(noisy: tuple[Generator, Distil]) -> None:
    with pytest.raises(ValueError, match="all 24 held out"):
        noisy[1](steps=5, held_out=~ALL)

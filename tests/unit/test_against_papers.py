"""Each aggregation against the paper's equation written in plain numpy: unequal weights, m, n, r pairwise different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import Start
from models.adapters.adapter import Adapter
from models.adapters.weight_gradient import packed
from models.lowrank.factors import Factors
from strategies.methods.base.server import ClientUpdate, Method
from strategies.methods.potara.client import deviations, merging_weight
from strategies.methods.registry import build_method
from tests.builders import make_card, make_metrics

M, N, R, CLASSES, WIDTH = 11, 7, 3, 4, 5
COUNTS = (10, 35, 5)
WEIGHTS = np.array(COUNTS) / sum(COUNTS)
Matrix = np.ndarray[Any, np.dtype[np.float64]]


def draw(seed: int, rank: int = R) -> tuple[Matrix, Matrix, Matrix]:
    """Return B (m, r), A (r, n) and a head (classes, width + 1)."""
    chance = np.random.default_rng(seed)
    return chance.normal(size=(M, rank)), chance.normal(size=(rank, N)), chance.normal(size=(CLASSES, WIDTH + 1))


def adapter(B: Matrix, A: Matrix, head: Matrix) -> Adapter:
    tensors = [torch.tensor(one, dtype=torch.float64) for one in (B[None], A[None], head)]
    return Adapter({"w": Factors(B=tensors[0], A=tensors[1])}, tensors[2])


def product(one: Adapter) -> Matrix:
    return (one.low_rank["w"].B @ one.low_rank["w"].A)[0].double().numpy()


def method_of(name: str, **values: str | float) -> Method:
    return build_method(RunConfig.parse({"method": name, "lora.rank": R, **values}))


INITIAL = adapter(np.zeros((M, R)), draw(99)[1], np.zeros((CLASSES, WIDTH + 1)))


def updates(ends: Sequence[Adapter], cores: Sequence[Matrix] = ()) -> list[ClientUpdate]:
    made = []
    for index, (end, count) in enumerate(zip(ends, COUNTS, strict=True)):
        core = {"w": torch.tensor(cores[index][None])} if len(cores) else {}
        made.append(
            ClientUpdate(make_card(f"c{index}", num_examples=count), INITIAL, end, make_metrics(count), core=core)
        )
    return made


def after(method: Method, *rounds: Sequence[Adapter]) -> Any:
    state = method.init(INITIAL)
    for ends in rounds:
        state = method.aggregate(state, updates(ends))
    return state


def used_by_clients(method: Method, state: Any) -> Adapter:
    card = make_card("c0")
    return Start(method.starts(state, [card])[0], method.plan(state, card)).whole()


def mean(matrices: Sequence[Matrix]) -> Matrix:
    return np.tensordot(WEIGHTS, np.stack(matrices), axes=1)


FIRST, SECOND = ([draw(seed) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6)))
HEAD = mean([head for _, _, head in FIRST])


def test_fedit() -> None:
    method = method_of("fedit")
    made = used_by_clients(method, after(method, [adapter(*one) for one in FIRST]))
    B, A = mean([B for B, _, _ in FIRST]), mean([A for _, A, _ in FIRST])
    np.testing.assert_allclose(product(made), B @ A, atol=1e-6)
    np.testing.assert_allclose(made.head.numpy(), HEAD, atol=1e-6)


def test_flexlora() -> None:
    method = method_of("flexlora")
    made = used_by_clients(method, after(method, [adapter(*one) for one in FIRST]))
    U, S, V = np.linalg.svd(mean([B @ A for B, A, _ in FIRST]))
    np.testing.assert_allclose(product(made), U[:, :R] * S[:R] @ V[:R], atol=1e-6)
    np.testing.assert_allclose(made.head.numpy(), HEAD, atol=1e-6)


def test_flora() -> None:
    """W <- W + sum_i w_i B_i A_i in every round; the new adapters add nothing, and A is another for every client."""
    method = method_of("flora")
    made = used_by_clients(method, after(method, *([adapter(*one) for one in ends] for ends in (FIRST, SECOND))))
    merged = sum(mean([B @ A for B, A, _ in ends]) for ends in (FIRST, SECOND))
    np.testing.assert_allclose(product(made), merged, atol=1e-5)
    state = after(method, [adapter(*one) for one in FIRST])
    cards = [make_card("c0"), make_card("c1"), make_card("c2", rank=2)]
    fresh = [one.low_rank["w"] for one in method.starts(state, cards)]
    assert [one.rank for one in fresh] == [R, R, 2]
    assert not any(bool(one.B.any()) for one in fresh)
    assert all(float(one.A.abs().max()) <= 1 / np.sqrt(N) for one in fresh)
    assert not np.allclose(fresh[0].A, fresh[1].A)
    assert not np.allclose(fresh[0].A, method.starts(method.init(INITIAL), cards)[0].low_rank["w"].A)


def test_fedex_lora() -> None:
    """W gathers the residuals, and W + B A is what was there plus the exact average of the products."""
    method = method_of("fedex-lora")
    made = used_by_clients(method, after(method, *([adapter(*one) for one in ends] for ends in (FIRST, SECOND))))
    B, A = mean([B for B, _, _ in FIRST]), mean([A for _, A, _ in FIRST])
    residual = mean([B @ A for B, A, _ in FIRST]) - B @ A
    np.testing.assert_allclose(product(made), residual + mean([B @ A for B, A, _ in SECOND]), atol=1e-5)


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_lora_fair(penalty: float) -> None:
    """The closed form is where the gradient of ||dW - (B + dB) A||^2 + lambda ||dB||^2 by dB is zero."""
    method = method_of("lora-fair", **{"lora-fair.penalty": penalty})
    made = used_by_clients(method, after(method, [adapter(*one) for one in FIRST]))
    B, A, exact = mean([B for B, _, _ in FIRST]), mean([A for _, A, _ in FIRST]), mean([B @ A for B, A, _ in FIRST])
    change = made.low_rank["w"].B[0].numpy() - B
    np.testing.assert_allclose(made.low_rank["w"].A[0].numpy(), A, atol=1e-6)
    np.testing.assert_allclose(-(exact - (B + change) @ A) @ A.T + penalty * change, 0, atol=1e-5)


@pytest.mark.parametrize("basis", ["gradient", "sign"])
def test_fed_sb(basis: str) -> None:
    """U S V^T of the first step of full fine-tuning; then B = U and A = V^T stay and R is averaged, which is exact."""
    r, values = 4, {"train.learning-rate": 0.01, "lora.alpha": 6.0}
    method = method_of("fed-sb", **{"fed-sb.basis": basis, "fed-sb.rank": r}, **values)
    gradients = [B @ A for B, A, _ in FIRST]
    told = [
        replace(one, gradient=packed({"w": torch.tensor(gradient[None])}, r))
        for one, gradient in zip(updates([adapter(*one) for one in FIRST]), gradients, strict=True)
    ]
    state = method.aggregate(method.init(INITIAL), told)
    G, eta, s = mean(gradients), 0.01, 6.0 / R
    step = -eta * (np.sign(G) if basis == "sign" else np.sqrt(M * N) * G / np.linalg.norm(G)) / s
    U, S, V = np.linalg.svd(step)
    made = used_by_clients(method, state)
    np.testing.assert_allclose(product(made), U[:, :r] * S[:r] @ V[:r], atol=1e-6)
    np.testing.assert_allclose(made.head.numpy(), HEAD, atol=1e-6)
    B, A = (one[0].numpy() for one in (state.frame.low_rank["w"].B, state.frame.low_rank["w"].A))
    np.testing.assert_allclose(B.T @ B, np.eye(r), atol=1e-6)
    np.testing.assert_allclose(A @ A.T, np.eye(r), atol=1e-6)
    cores = [np.random.default_rng(seed).normal(size=(r, r)) for seed in (7, 8, 9)]
    made = used_by_clients(method, method.aggregate(state, updates([adapter(*one) for one in SECOND], cores)))
    np.testing.assert_allclose(product(made), mean([B @ one @ A for one in cores]), atol=1e-5)


def test_hetlora() -> None:
    """Zero-padded factors of ranks 1, 2, 3, weighted by the norms of the clients' products."""
    method, ranks = method_of("hetlora"), (1, 2, 3)
    drawn = [draw(seed, rank) for seed, rank in zip((1, 2, 3), ranks, strict=True)]
    state = after(method, [adapter(*one) for one in drawn])
    sizes = np.array([np.linalg.norm(B @ A) for B, A, _ in drawn])
    B = sum(
        p * np.pad(B, ((0, 0), (0, R - B.shape[1]))) for p, (B, _, _) in zip(sizes / sizes.sum(), drawn, strict=True)
    )
    A = sum(
        p * np.pad(A, ((0, R - A.shape[0]), (0, 0))) for p, (_, A, _) in zip(sizes / sizes.sum(), drawn, strict=True)
    )
    np.testing.assert_allclose(product(used_by_clients(method, state)), B @ A, atol=1e-6)
    low = method.starts(state, [make_card("c0", rank=2)])[0].low_rank["w"]
    np.testing.assert_allclose(low.B[0].numpy(), B[:, :2], atol=1e-6)
    np.testing.assert_allclose(low.A[0].numpy(), A[:2], atol=1e-6)


def test_hetlora_weighs_products_by_a_robust_rules_factors_too() -> None:
    method = method_of("hetlora")
    drawn, factors = [draw(seed) for seed in (1, 2, 3)], (1.0, 0.25, 0.5)
    some = [replace(one, weight=w) for one, w in zip(updates([adapter(*one) for one in drawn]), factors, strict=True)]
    made = used_by_clients(method, method.aggregate(method.init(INITIAL), some))
    sizes = np.array([w * np.linalg.norm(B @ A) for w, (B, A, _) in zip(factors, drawn, strict=True)])
    shares = sizes / sizes.sum()
    B, A = (sum(p * one[part] for p, one in zip(shares, drawn, strict=True)) for part in (0, 1))
    np.testing.assert_allclose(product(made), B @ A, atol=1e-6)


def test_hetlora_prunes_where_training_made_the_last_columns_smaller() -> None:
    """k = floor(gamma r); the client whose ||B[:, k:]|| ||A[k:, :]|| fell counts with k columns and is then sent k."""
    method, start = method_of("hetlora", **{"hetlora.kept": 0.7}), draw(5)
    B, A, head = start
    ends = [adapter(B * [1, 1, 0.5], A, head), adapter(B * [0.1, 0.1, 1.5], A, head)]
    sent = [
        ClientUpdate(make_card(f"c{i}", num_examples=n), adapter(*start), end, make_metrics(n))
        for i, (n, end) in enumerate(zip((10, 35), ends, strict=True))
    ]
    state = method.aggregate(method.init(INITIAL), sent)
    pruned = [B[:, :2], B * [0.1, 0.1, 1.5]]
    sizes = np.array([np.linalg.norm(left @ A[: left.shape[1]]) for left in pruned])
    shares = sizes / sizes.sum()
    left = shares[0] * np.pad(pruned[0], ((0, 0), (0, 1))) + shares[1] * pruned[1]
    right = shares[0] * np.pad(A[:2], ((0, 1), (0, 0))) + shares[1] * A
    np.testing.assert_allclose(product(state.adapter), left @ right, atol=1e-6)
    ranks = [one.rank for one in method.starts(state, [make_card(name) for name in ("c0", "c1", "new")])]
    assert ranks == [2, 3, 3]
    assert method.starts(state, [make_card("c0", rank=1)])[0].rank == 1


def test_potara() -> None:
    """lambda minimises tr Var(lambda theta_fed + (1 - lambda) theta_loc): no other weight has less."""
    chance = np.random.default_rng(0)
    left, right = chance.normal(size=(30, 6)), 0.7 * chance.normal(size=(30, 6)) + 0.2
    damped = [gradients / ((gradients**2).mean(axis=0) + 0.1 * (gradients**2).mean()) for gradients in (left, right)]
    tensors = [deviations(torch.tensor(gradients)) for gradients in (left, right)]
    for ours, theirs in zip(tensors, damped, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9)
    weight = merging_weight(*tensors)

    def spread(share: float) -> float:
        return float(((share * damped[0] + (1 - share) * damped[1]) ** 2).mean(axis=0).sum())

    assert 0 < weight < 1
    assert all(spread(weight) <= spread(other) + 1e-12 for other in np.linspace(0, 1, 201))

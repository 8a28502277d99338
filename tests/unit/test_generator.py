from __future__ import annotations

import pytest
import torch

from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.personalization.generators.atoms import AtomGenerator, rank_one_atoms
from models.personalization.generators.build import GENERATORS, Generator, build_generator

CLASSES, WIDTH, BLOCKS, SIGNATURE, RANK = 3, 5, 4, 8, 2
SHAPES = {"attn.qkv": (18, 7), "mlp.fc1": (11, 13)}


def random_batch(count: int, rank: int, seed: int) -> AdapterBatch:
    generator = torch.Generator().manual_seed(seed)
    low_rank = {
        kind: Factors(
            B=torch.randn(count, BLOCKS, m, rank, generator=generator),
            A=torch.randn(count, BLOCKS, rank, n, generator=generator),
        )
        for kind, (m, n) in SHAPES.items()
    }
    return AdapterBatch(low_rank, torch.randn(count, CLASSES, WIDTH + 1, generator=generator))


def build(kind: str, *, rank: int = RANK, seed: int = 0, embedding_size: int = SIGNATURE) -> Generator:
    template = random_batch(1, 6, seed=1)[0]
    return build_generator(kind, template=template, embedding_size=embedding_size, rank=rank, hidden=16, seed=seed)


def signatures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, SIGNATURE, generator=torch.Generator().manual_seed(seed))


def shaken(generator: Generator) -> Generator:
    """The generator with weights that are no longer those of its birth, so that its output is not zero."""
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return generator


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_fresh_generator_gives_zero_and_gradients_flow(kind: str) -> None:
    generator = build(kind)
    batch = generator(signatures(9))
    assert not batch.head.any()
    assert not any(factors.product().any() for factors in batch.low_rank.values())

    target = random_batch(9, 1, seed=2)
    for name, factors in batch.low_rank.items():
        loss = (factors.product() - target.low_rank[name].product()).square().sum()
        gradients = torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True, retain_graph=True)
        assert any(g is not None and g.any() for g in gradients), name
    loss = (batch.head - target.head).square().sum()
    gradients = torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True)
    assert any(g is not None and g.any() for g in gradients)


@pytest.mark.parametrize("kind", GENERATORS)
def test_an_adapter_batch_has_one_more_dimension_than_an_adapter(kind: str) -> None:
    batch = shaken(build(kind))(signatures(9))
    for name, (m, n) in SHAPES.items():
        assert batch.low_rank[name].B.shape == (9, BLOCKS, m, RANK)
        assert batch.low_rank[name].A.shape == (9, BLOCKS, RANK, n)
    assert batch.head.shape == (9, CLASSES, WIDTH + 1)


@pytest.mark.parametrize("kind", GENERATORS)
def test_kinds_may_differ_in_their_number_of_blocks(kind: str) -> None:
    template = random_batch(1, 6, seed=1)[0]
    fc1 = template.low_rank["mlp.fc1"]
    template = Adapter({**template.low_rank, "mlp.fc1": Factors(fc1.B[:3], fc1.A[:3])}, template.head)
    generator = build_generator(kind, template=template, embedding_size=SIGNATURE, rank=RANK, hidden=16, seed=0)
    assert shaken(generator)(signatures(9)).low_rank["mlp.fc1"].B.shape == (9, 3, 11, RANK)


@pytest.mark.parametrize("kind", GENERATORS)
def test_each_input_gets_its_own_deviation_whatever_the_others_are(kind: str) -> None:
    generator, inputs = shaken(build(kind)), signatures(9)
    together, alone = generator(inputs), generator(inputs[4:5])
    for name, factors in together.low_rank.items():
        product = factors.product()
        torch.testing.assert_close(product[4:5], alone.low_rank[name].product(), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(product[3], product[4], rtol=1e-2, atol=1e-3)
    assert not torch.allclose(together.head[3], together.head[4], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_seed_decides_and_the_global_generator_is_left_alone(kind: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = build(kind, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    same, other = build(kind, seed=3).state_dict(), build(kind, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_seeded_generator_still_gives_zero(kind: str) -> None:
    generator = build(kind)
    generator.seed(random_batch(5, 2, seed=3))
    batch = generator(signatures(9))
    assert not batch.head.any()
    assert not any(factors.product().any() for factors in batch.low_rank.values())


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_memory_of_zeros_seeds_nothing(kind: str) -> None:
    generator, untouched = build(kind), build(kind).state_dict()
    generator.seed(random_batch(5, 2, seed=3).weighted(torch.zeros(5)))
    assert all(torch.equal(value, untouched[name]) for name, value in generator.state_dict().items())


def test_an_unknown_kind_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"atoms, mlp.*'lstm'"):
        build("lstm")
    with pytest.raises(ValueError, match="at least 1"):
        build("atoms", rank=0)


def planted_memory(count: int, terms: int) -> AdapterBatch:
    """``count`` mixtures of ``terms`` rank-1 atoms whose sum nearly cancels, as deviations from an anchor do."""
    atoms, generator = random_batch(1, terms, seed=7), torch.Generator().manual_seed(8)
    mixtures = torch.randn(count, terms, generator=generator)
    mixtures -= mixtures.mean(dim=0)
    low_rank = {
        kind: Factors(f.B * mixtures[:, None, None, :], f.A.expand(count, -1, -1, -1))
        for kind, f in atoms.low_rank.items()
    }
    heads = torch.randn(terms, CLASSES, WIDTH + 1, generator=generator)
    return AdapterBatch(low_rank, torch.einsum("nk,kcw->ncw", mixtures, heads))


def unexplained(atoms: torch.Tensor, deviations: torch.Tensor) -> float:
    """Share of the squared norm of the rows of ``deviations`` (N, d) outside the span of ``atoms`` (K, d)."""
    basis = torch.linalg.qr(atoms.T.double()).Q
    rest = deviations.double() - deviations.double() @ basis @ basis.T
    return float(rest.square().sum() / deviations.double().square().sum())


def test_seeded_atoms_span_the_deviations_and_coefficients_are_of_order_one() -> None:
    memory, generator = planted_memory(9, terms=5), build("atoms", rank=5)
    assert isinstance(generator, AtomGenerator)
    generator.seed(memory)
    for kind in SHAPES:
        atoms, deviations = generator._atoms(kind).factors(), memory.low_rank[kind].product()
        single = torch.einsum("lmk,lkn->lkmn", atoms.B, atoms.A).flatten(2).detach()
        for block in range(BLOCKS):
            assert unexplained(single[block], deviations[:, block].flatten(1)) < 0.1
            fitted = torch.linalg.lstsq(single[block].T, deviations[:, block].flatten(1).T).solution
            assert 0.3 < float(fitted.square().mean().sqrt()) < 3
    heads = (generator.head_atoms * generator.head_scale).flatten(1).detach()
    assert unexplained(heads, memory.head.flatten(1)) < 1e-6


@pytest.mark.parametrize(("count", "rank", "atoms"), [(1, 1, 6), (2, 3, 16), (9, 2, 5)])
def test_atoms_are_finite_units_whatever_the_memory_holds(count: int, rank: int, atoms: int) -> None:
    for factors in random_batch(count, rank, seed=4).low_rank.values():
        left, right, size = rank_one_atoms(factors, atoms)
        torch.testing.assert_close(left.norm(dim=1), torch.ones(BLOCKS, atoms))
        torch.testing.assert_close(right.norm(dim=1), torch.ones(BLOCKS, atoms))
        assert bool(size.isfinite().all())

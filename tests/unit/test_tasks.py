"""What a client does when asked, with a stub of its data: empty clients, local training, splits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from client_app.device import choose_device, worthwhile_threads
from client_app.runtime import ClientRuntime
from client_app.tasks import describe_clients, evaluate_adapter, train_start
from client_app.token_cache import TokenCache
from hyperlora.config.methods import METHODS
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.data.digits import digits_public
from hyperlora.data.federation import ClientData, DataError, Samples
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import LocalPlan, Start, chosen, part_of
from hyperlora.messages.train import TrainReply, TrainRequest
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter, Core, resized
from models.adapters.optimizers import OptimizerSpec
from models.adapters.training import (
    LocalTrainer,
    TokenSet,
    calibration_error,
    cross_entropy,
    evaluate,
    loss_gradient,
)
from models.adapters.weight_gradient import packed, unpacked, weight_gradient
from models.backbones.backbone import NO_TARGET
from models.backbones.loading import build_backbone
from models.lowrank.factors import Factors
from strategies.methods.base.server import with_clients
from strategies.methods.hetlora.pruning import tail_size
from strategies.methods.hetlora.server import pairs
from strategies.methods.registry import build_method

EMPTY = Samples(torch.empty(0, 1, 16, 16, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


class StubFederation:
    client_ids = ("empty", "full", "single")
    class_names = tuple("0123456789")

    def load(self, client_id: str) -> ClientData:
        if client_id == "empty":
            raise DataError("client 'empty' holds no training samples")
        count = 1 if client_id == "single" else 30
        images = torch.full((count, 1, 16, 16), 9, dtype=torch.uint8)
        samples = Samples(images, torch.arange(count) % 10)
        return ClientData(client_id, "domain", True, samples, samples if count > 1 else EMPTY, samples)


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    backbone = build_backbone(name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=digits_public)
    return AdaptedModel(backbone, rank=3, alpha=6.0, last_blocks=2)


@pytest.fixture
def runtime(model: AdaptedModel) -> ClientRuntime:
    federation = StubFederation()
    return ClientRuntime(RunConfig(), model, federation, TokenCache(model, federation, limit=2**20), at_site=False)


def trainer(model: AdaptedModel, seed: int = 0, name: str = "adamw", nested: bool = False) -> LocalTrainer:
    generator = torch.Generator().manual_seed(5)
    samples = TokenSet(torch.randn(20, 16, 64, generator=generator), torch.arange(20) % 10)
    model.load(model.initialise(seed=1))
    return LocalTrainer(
        model, samples, optimizer=OptimizerSpec(name, 1e-2, 0.0), batch_size=8, seed=seed, nested=nested
    )


def test_an_empty_client_is_left_out_with_its_reason_and_the_others_are_not(runtime: ClientRuntime) -> None:
    reply = describe_clients(runtime, StubFederation.client_ids)
    assert [card.client_id for card in reply.cards] == ["full", "single"]
    assert reply.left_out == {"empty": "client 'empty' holds no training samples"}


def test_a_single_sample_has_a_finite_signature(runtime: ClientRuntime) -> None:
    assert bool(torch.isfinite(runtime.signature("single").vector()).all())


def test_an_empty_split_scores_zero(runtime: ClientRuntime) -> None:
    assert evaluate(runtime.model, runtime.tokens("single", "validation")) == (0.0, 0.0)


def test_tokens_are_kept_up_to_the_limit(model: AdaptedModel) -> None:
    cache = TokenCache(model, StubFederation(), limit=0)
    assert cache.get("full", "train") is cache.get("full", "train")
    first = cache.get("full", "train")
    cache.get("full", "test")
    assert cache.get("full", "train") is not first
    assert torch.equal(cache.get("full", "train").tokens, first.tokens)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_can_be_continued(model: AdaptedModel, name: str) -> None:
    trainer(model, name=name).run(5)
    at_once = model.extract()
    halves = trainer(model, name=name)
    halves.run(2)
    halves.run(3)
    assert all(torch.equal(one, model.extract().tensors()[key]) for key, one in at_once.tensors().items())


def test_training_lowers_the_loss_and_moves_every_part(model: AdaptedModel) -> None:
    start = model.initialise(seed=1)
    training = trainer(model)
    first, last = training.run(2), [training.run(10) for _ in range(3)][-1]
    assert last < first
    assert all(not torch.equal(one, model.extract().tensors()[key]) for key, one in start.tensors().items())


def test_the_loss_of_a_language_model_is_pytorchs_over_tokens_that_count() -> None:
    chance = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=chance).mT.requires_grad_()
    labels = torch.randint(0, 7, (3, 5), generator=chance)
    labels[0, 2:] = NO_TARGET
    for reduction in ("mean", "sum"):
        expected, got = (make(logits, labels, reduction=reduction) for make in (F.cross_entropy, cross_entropy))
        torch.testing.assert_close(got, expected)
        gradients = [torch.autograd.grad(one, logits)[0] for one in (expected, got)]
        torch.testing.assert_close(gradients[1], gradients[0])


def test_a_batch_without_a_token_that_counts_has_no_loss() -> None:
    logits, labels = torch.randn(2, 5, 3, requires_grad=True), torch.full((2, 3), -100)
    loss = cross_entropy(logits, labels)
    loss.backward()
    assert float(loss) == 0.0
    assert logits.grad is not None
    assert not bool(logits.grad.any())


def test_half_precision_rounds_products_and_nothing_that_is_kept(model: AdaptedModel) -> None:
    tokens = torch.randn(9, 16, 64, generator=torch.Generator().manual_seed(5))
    training = trainer(model)
    training.run(3)
    exact = model.logits(tokens).detach()
    try:
        model.to(model.device, half=True)
        rounded = model.logits(tokens).detach()
        losses = training.run(1), training.run(5)
    finally:
        model.to(model.device)
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).norm()) < 0.05 * float(exact.norm())
    assert losses[1] < losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in model.extract().tensors().values())


def test_the_gradient_is_that_of_the_loss_and_of_nothing_before(model: AdaptedModel) -> None:
    training = trainer(model)
    samples = training._samples
    training.run(3)
    adapter = model.extract()
    gradient = loss_gradient(model, samples)
    moved = adapter.tensors()
    step = 1e-2 / float(sum(one.square().sum() for one in gradient.tensors().values())) ** 0.5
    moved = {name: value - step * gradient.tensors()[name] for name, value in moved.items()}
    before = evaluate(model, samples)[1]
    model.load(Adapter.from_tensors(moved))
    predicted = step * float(sum(one.square().sum() for one in gradient.tensors().values()))
    assert before - evaluate(model, samples)[1] == pytest.approx(predicted, rel=0.1)
    assert all(parameter.grad is None for parameter in model.trainable_parameters())


def test_another_seed_draws_other_batches(model: AdaptedModel) -> None:
    trainer(model, seed=0).run(3)
    first = model.extract()
    trainer(model, seed=1).run(3)
    assert not torch.equal(first.head, model.extract().head)


def test_the_backbone_stays_frozen(model: AdaptedModel) -> None:
    before = {name: value.clone() for name, value in model.network.named_parameters() if not value.requires_grad}
    trainer(model).run(5)
    after = dict(model.network.named_parameters())
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_small_products_are_not_shared_between_threads(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert worthwhile_threads(model.backbone, batch_size=16) == 1
    assert worthwhile_threads(model.backbone, batch_size=4096) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="no GPU is visible to this client"):
        choose_device("cuda")


def of_method(runtime: ClientRuntime, method: str, **values: str | float) -> ClientRuntime:
    config = RunConfig.parse({"method": method, **values})
    return ClientRuntime(config, runtime.model, runtime.federation, runtime.cache, at_site=False)


class DictKeeper:
    def __init__(self) -> None:
        self.kept: dict[str, Adapter] = {}

    def get(self, client_id: str) -> Adapter | None:
        return self.kept.get(client_id)

    def put(self, client_id: str, adapter: Adapter) -> None:
        self.kept[client_id] = adapter


def trained_with(runtime: ClientRuntime, plan: LocalPlan, start: Adapter, kept: DictKeeper | None = None) -> TrainReply:
    request = TrainRequest("full", 1, 3, Start(start, plan))
    return train_start(runtime, request, kept or DictKeeper())


@pytest.mark.parametrize(("trains", "fixed"), [("A", "B"), ("B", "A"), ("head", "AB"), ("body", "head")])
def test_what_is_not_trained_stays_as_it_was(runtime: ClientRuntime, trains: str, fixed: str) -> None:
    start = nonzero(runtime)
    end = trained_with(of_method(runtime, "fedit"), LocalPlan(trains=trains), start).end
    for name, tensor in end.tensors().items():
        assert torch.equal(tensor, start.tensors()[name]) == (part_of(name) in fixed)
    assert all(one.requires_grad for one in runtime.model.trainable_parameters())


def test_a_core_is_trained_between_fixed_factors_of_any_rank_and_leaves_the_layers_as_they_were(
    runtime: ClientRuntime,
) -> None:
    start, before = nonzero(runtime), len(runtime.model.trainable_parameters())
    frame = frame_like(start, 7)
    core = {kind: 0.01 * torch.eye(7).expand(2, 7, 7) for kind in start.low_rank}
    plan = LocalPlan(trains="core", up=("head",), frame=frame, core=core)
    reply = trained_with(runtime, plan, start)
    assert {kind: tuple(one.shape) for kind, one in reply.core.items()} == dict.fromkeys(start.low_rank, (2, 7, 7))
    assert all(not torch.equal(one, core[kind]) for kind, one in reply.core.items())
    assert not torch.equal(reply.end.head, start.head)
    after = runtime.model.extract()
    for kind, one in start.low_rank.items():
        assert torch.equal(after.low_rank[kind].A, one.A)
        assert torch.equal(after.low_rank[kind].B, one.B)
    assert len(runtime.model.trainable_parameters()) == before


def test_a_core_acts_like_its_product_in_place_of_the_adapters_own(runtime: ClientRuntime) -> None:
    start, tokens = nonzero(runtime), runtime.tokens("full", "test").tokens
    frame = frame_like(start, 7)
    core = {kind: 0.01 * torch.ones(2, 7, 7).tril() for kind in start.low_rank}
    runtime.model.load(start)
    with runtime.model.prepared("core", Core(frame, core), None):
        got = runtime.model.logits(tokens).detach()
    whole = Start(start, LocalPlan(trains="core", frame=frame, core=core)).whole()
    runtime.model.load(Adapter(resized(start, 3).scaled(0.0).low_rank, start.head))
    with runtime.model.prepared("all", None, Adapter(whole.low_rank, 0 * start.head)):
        expected = runtime.model.logits(tokens).detach()
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def frame_like(adapter: Adapter, rank: int) -> Adapter:
    chance, low_rank = torch.Generator().manual_seed(8), {}
    for kind, (*layers, m, n) in ((kind, one.shape) for kind, one in adapter.low_rank.items()):
        B, A = (torch.randn(*layers, *size, generator=chance) for size in ((m, rank), (rank, n)))
        low_rank[kind] = Factors(B=B, A=A)
    return Adapter(low_rank, 0 * adapter.head)


def test_the_gradient_of_the_weights_is_the_slope_of_the_loss_along_a_product(runtime: ClientRuntime) -> None:
    model, samples, step, scaling = runtime.model, runtime.tokens("full", "train"), 1e-3, 2.0
    start = nonzero(runtime)
    direction = Adapter(start.low_rank, 0 * start.head)
    model.load(start)
    gradient = weight_gradient(model, samples)
    expected = scaling * sum(float((gradient[kind] * one.product()).sum()) for kind, one in direction.low_rank.items())
    losses = []
    for sign in (1, -1):
        with model.prepared("all", None, direction.scaled(sign * step)):
            losses.append(evaluate(model, samples)[1])
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(expected, rel=0.05)
    assert same(model.extract(), start)


def test_packed_factors_are_the_best_of_their_rank() -> None:
    matrices = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(2))
    like = Adapter({"w": Factors(B=torch.zeros(2, 9, 1), A=torch.zeros(2, 1, 5))}, torch.zeros(3, 4))
    U, S, Vh = torch.linalg.svd(matrices, full_matrices=False)
    cut = unpacked(packed({"w": matrices}, 3), like, 3)["w"]
    torch.testing.assert_close(cut.product(), (U[..., :3] * S[..., None, :3]) @ Vh[..., :3, :])
    whole = unpacked(packed({"w": matrices}, 7), like, 7)["w"]
    torch.testing.assert_close(whole.product(), matrices)


def test_fed_sbs_client_trains_the_head_and_tells_the_gradient_at_its_end(runtime: ClientRuntime) -> None:
    runtime, start = of_method(runtime, "fed-sb"), runtime.model.initialise(seed=2)
    plan = LocalPlan(trains="head", down=("head",), up=("head",), gradient_rank=4)
    reply = trained_with(runtime, plan, start)
    runtime.model.load(runtime.with_prior("full", reply.end))
    expected = packed(weight_gradient(runtime.model, runtime.tokens("full", "train")), 4)
    assert all(bool(one.any()) for one in expected.values())
    torch.testing.assert_close(reply.gradient, expected)


def test_a_base_acts_like_an_adapter_and_is_taken_out_again(runtime: ClientRuntime) -> None:
    model, tokens = runtime.model, runtime.tokens("full", "test").tokens
    base, start = nonzero(runtime), model.initialise(seed=4)
    model.load(start)
    plain = model.logits(tokens).detach()
    with model.prepared("all", None, base):
        based = model.logits(tokens).detach()
    torch.testing.assert_close(model.logits(tokens).detach(), plain, rtol=0, atol=0)
    model.load(Adapter(base.low_rank, start.head + 0))
    torch.testing.assert_close(model.logits(tokens).detach(), based, rtol=1e-4, atol=1e-5)


def test_a_start_of_lower_rank_is_trained_within_its_rank(runtime: ClientRuntime) -> None:
    end = trained_with(runtime, LocalPlan(), resized(nonzero(runtime), 2)).end
    assert end.rank == 2
    assert all(bool((runtime.model.extract().low_rank[kind].B[..., 2:] == 0).all()) for kind in end.low_rank)


def test_fedsas_client_goes_on_from_the_b_that_it_kept(runtime: ClientRuntime) -> None:
    runtime = of_method(runtime, "fedsa-lora")
    kept, plan = DictKeeper(), LocalPlan(down=("A",), up=("A",), personal=True)
    start = runtime.model.initialise(seed=2)
    trained_with(runtime, plan, start, kept)
    first = kept.kept["full"]
    request = EvaluateRequest("full", 1, [0], Start(start, plan))
    evaluate_adapter(runtime, request, kept)
    assert torch.equal(runtime.model.extract().low_rank["attn.qkv"].B, first.low_rank["attn.qkv"].B)


@pytest.mark.parametrize("personal", ["feddpa", "potara"])
def test_a_client_with_something_of_its_own_uses_it_and_sends_the_shared_part(
    runtime: ClientRuntime, personal: str
) -> None:
    runtime = of_method(runtime, personal)
    kept, plan = DictKeeper(), LocalPlan(personal=True)
    start = nonzero(runtime)
    reply = trained_with(runtime, plan, start, kept)
    shared = trained_with(of_method(runtime, "fedit"), LocalPlan(), start).end
    assert all(torch.equal(reply.end.tensors()[name], value) for name, value in shared.tensors().items())
    alone = evaluate_adapter(runtime, EvaluateRequest("full", 1, [0], Start(start, plan)), DictKeeper())
    mixed = evaluate_adapter(runtime, EvaluateRequest("full", 1, [0], Start(start, plan)), kept)
    assert alone.test_loss != mixed.test_loss


def same(left: Adapter, right: Adapter) -> bool:
    return all(torch.equal(value, right.tensors()[name]) for name, value in left.tensors().items())


def test_potaras_local_adapter_begins_fresh_goes_on_by_itself_and_never_sees_the_servers(
    runtime: ClientRuntime,
) -> None:
    alone, kept, plan = of_method(runtime, "fedit"), DictKeeper(), LocalPlan(personal=True)
    expected = runtime.model.fresh_adapter(alone.config.seed)
    for _ in range(2):
        trained_with(of_method(runtime, "potara"), plan, nonzero(runtime), kept)
        expected = trained_with(alone, LocalPlan(), expected).end
        assert same(kept.kept["full"], expected)


@pytest.mark.parametrize(("personal", "shared_steps"), [("feddpa", 1), ("potara", 2)])
def test_an_equal_budget_shares_the_local_steps_out(runtime: ClientRuntime, personal: str, shared_steps: int) -> None:
    runtime = of_method(runtime, personal, **{f"{personal}.budget": "equal"})
    kept, start = DictKeeper(), nonzero(runtime)
    reply = trained_with(runtime, LocalPlan(personal=True), start, kept)
    plain = of_method(runtime, "fedit")
    request = TrainRequest("full", 1, shared_steps, Start(start))
    assert same(reply.end, train_start(plain, request, DictKeeper()).end)


def test_hetloras_client_shrinks_the_columns_that_it_would_prune(runtime: ClientRuntime) -> None:
    start = nonzero(runtime)
    free, held = (
        trained_with(of_method(runtime, "hetlora", **{"hetlora.penalty": penalty}), LocalPlan(), start).end
        for penalty in (0.0, 100.0)
    )
    sizes = [float(tail_size(pairs(one), 2)) for one in (free, held, start)]
    assert sizes[1] < min(sizes[0], sizes[2])
    low = resized(start, 1)
    cannot_prune = [
        trained_with(of_method(runtime, "hetlora", **{"hetlora.penalty": penalty}), LocalPlan(), low).end
        for penalty in (0.0, 100.0)
    ]
    assert same(*cannot_prune)


def nonzero(runtime: ClientRuntime) -> Adapter:
    fresh = runtime.model.initialise(seed=3)
    chance = torch.Generator().manual_seed(1)
    return Adapter.from_tensors(
        {k: v + 0.05 * torch.randn(v.shape, generator=chance) for k, v in fresh.tensors().items()}
    )


def test_a_client_adapts_at_the_rate_of_use_and_trains_at_that_of_rounds(runtime: ClientRuntime) -> None:
    values: dict[str, bool | int | float | str] = {
        "train.learning-rate": 1e-3,
        "train.adapt-learning-rate": 1e-2,
        "method": "fedit",
    }
    apart = replace(runtime, config=RunConfig.parse(values))
    rounds, use = (
        replace(runtime, config=RunConfig.parse({"method": "fedit", "train.learning-rate": rate}))
        for rate in (1e-3, 1e-2)
    )
    start = runtime.model.initialise(seed=2)
    request = EvaluateRequest("full", 1, [0, 3], Start(start))
    losses = [evaluate_adapter(one, request, DictKeeper()).test_loss for one in (apart, rounds, use)]
    assert losses[0] == losses[2] != losses[1]
    ends = [trained_with(one, LocalPlan(), start).end for one in (apart, rounds)]
    assert all(torch.equal(value, ends[1].tensors()[name]) for name, value in ends[0].tensors().items())


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    confidences = torch.tensor([0.9, 0.9, 0.9, 0.9, 1.0])
    hits = torch.tensor([True, True, False, False, True])
    assert calibration_error(confidences, hits) == pytest.approx(4 / 5 * 0.4, abs=1e-6)
    assert calibration_error(torch.tensor([float("nan")]), torch.tensor([False])) == 0.0


def test_a_client_that_is_asked_for_its_validation_loss_alone_leaves_its_test_split_alone(
    runtime: ClientRuntime,
) -> None:
    request = EvaluateRequest("full", 1, [0], Start(runtime.model.initialise(seed=2)))
    whole, part = (
        evaluate_adapter(runtime, replace(request, validation_only=only), DictKeeper()) for only in (False, True)
    )
    assert part.validation_loss == whole.validation_loss
    assert (part.num_test, part.test_accuracy, part.test_loss) == (0, [0.0], [0.0])
    assert whole.num_test > 0


def test_hits_by_class_are_counted_as_received_and_only_where_nothing_has_noise(runtime: ClientRuntime) -> None:
    request = EvaluateRequest("full", 1, [0, 3], Start(runtime.model.initialise(seed=2)))
    reply = evaluate_adapter(runtime, request, DictKeeper())
    assert sum(reply.class_samples) == reply.num_test
    assert sum(reply.class_hits) / reply.num_test == pytest.approx(reply.test_accuracy[0])
    values = {"privacy.signature-noise": 2.0, "privacy.exact-figures": True}
    told = evaluate_adapter(replace(runtime, config=RunConfig.parse(values)), request, DictKeeper())
    assert (told.num_test, told.class_samples, told.class_hits) == (reply.num_test, (), ())


def test_a_client_tells_its_calibration_after_every_number_of_steps(runtime: ClientRuntime) -> None:
    request = EvaluateRequest("full", 1, [0, 3], Start(runtime.model.initialise(seed=2)))
    reply = evaluate_adapter(runtime, request, DictKeeper())
    assert len(reply.calibration_error) == 2
    assert reply.calibration_error[0] != reply.calibration_error[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_the_class_prior_in_what_is_used_and_never_in_what_is_sent(
    runtime: ClientRuntime, method: str
) -> None:
    heads = []
    for use in ("on", "off"):
        switched = of_method(runtime, method, **{"prior.use": use, "lora.rank": 3})
        start, kept = first_start(switched), DictKeeper()
        reply = train_start(switched, TrainRequest("full", 1, 0, start), kept)
        torch.testing.assert_close(chosen(reply.end, start.plan.up), chosen(start.adapter, start.plan.up))
        evaluate_adapter(switched, EvaluateRequest("full", 1, [0], start), kept)
        heads.append(runtime.model.extract().head)
    torch.testing.assert_close(heads[0][:, -1] - heads[1][:, -1], runtime.frequencies("full").log())
    torch.testing.assert_close(heads[0][:, :-1], heads[1][:, :-1])


def first_start(runtime: ClientRuntime) -> Start:
    """The start of the client ``full`` in round 1."""
    (card,), method = describe_clients(runtime, ["full"]).cards, build_method(runtime.config)
    state = method.init(runtime.model.fresh_adapter(runtime.config.seed))
    state = with_clients(method, state, {card.client_id: card})
    return Start(method.starts(state, [card])[0], method.plan(state, card))


def test_a_cut_product_is_its_first_components_and_so_is_the_gradient(model: AdaptedModel) -> None:
    start = model.initialise(seed=2)
    start = Adapter(start.map(lambda one: Factors(0.02 * torch.ones_like(one.B), one.A)).low_rank,
                    torch.randn(start.head.shape, generator=torch.Generator().manual_seed(3)))  # fmt: skip
    tokens, labels = torch.randn(4, 16, 64, generator=torch.Generator().manual_seed(4)), torch.arange(4)

    def gradient() -> Adapter:
        F.cross_entropy(model.logits(tokens), labels).backward()
        return model.take_gradient()

    model.load(resized(start, 2))
    lower, gradient_of_lower = model.logits(tokens).detach(), gradient()
    model.load(start)
    with model.cut(2):
        torch.testing.assert_close(model.logits(tokens).detach(), lower)
        F.cross_entropy(model.logits(tokens), labels).backward()
    cut = model.take_gradient()
    torch.testing.assert_close(model.extract().tensors(), start.tensors())
    for kind, factors in cut.low_rank.items():
        torch.testing.assert_close(factors.B[..., :2], gradient_of_lower.low_rank[kind].B[..., :2])
        torch.testing.assert_close(factors.A[:, :2], gradient_of_lower.low_rank[kind].A[:, :2])
        assert not factors.B[..., 2:].any()
        assert not factors.A[:, 2:].any()


def test_nested_steps_train_the_first_components_most(model: AdaptedModel) -> None:
    trainer(model, nested=True).run(12)
    nested = model.extract()
    trainer(model, nested=True).run(12)
    torch.testing.assert_close(model.extract().tensors(), nested.tensors(), rtol=0.0, atol=0.0)
    trainer(model).run(12)
    plain = model.extract()

    def shares(adapter: Adapter) -> torch.Tensor:
        columns = torch.stack([one.B.square().sum(dim=(0, 1)) for one in adapter.low_rank.values()]).sum(dim=0)
        return columns / columns.sum()

    assert shares(nested)[0] > shares(plain)[0] + 0.1
    assert shares(nested)[0] > shares(nested)[1] > shares(nested)[2]


def test_a_client_tells_sensitivities_where_it_is_asked_and_never_in_a_private_run(runtime: ClientRuntime) -> None:
    start = Start(runtime.model.fresh_adapter(0))
    request = TrainRequest("full", 1, 2, start, tells_sensitivity=True)
    told = train_start(runtime, request, DictKeeper()).sensitivity
    assert {kind: len(one) for kind, one in told.items()} == {k: len(f.B) for k, f in start.adapter.low_rank.items()}
    assert all(bool((one >= 0).all()) and bool(one.any()) for one in told.values())
    assert not train_start(runtime, replace(request, tells_sensitivity=False), DictKeeper()).sensitivity
    private = of_method(runtime, "hyperlora", **{"privacy.adapter-noise": 1.0})
    with pytest.raises(ProtocolError, match="sensitivities of the loss carry no noise"):
        train_start(private, request, DictKeeper())

"""What FedPer's relatives and Ditto train, keep and send, with real steps on a small model."""

from __future__ import annotations

import pytest
import torch

from client_app.runtime import ClientRuntime
from client_app.tasks import evaluate_adapter, train_start
from hyperlora.config.schema import RunConfig
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.plan import LocalPlan, Start
from hyperlora.messages.train import TrainReply, TrainRequest
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from strategies.methods.ditto.client import pull_towards, snapshot
from strategies.methods.fedper.server import with_random_head
from strategies.methods.registry import build_method
from tests.builders import make_adapter, make_card
from tests.unit.test_tasks import DictKeeper, model, nonzero, runtime

__all__ = ["model", "runtime"]
Settings = dict[str, str | float]


def of(runtime: ClientRuntime, values: Settings) -> tuple[ClientRuntime, LocalPlan]:
    config = RunConfig.parse(values)
    plan = build_method(config).plan(make_adapter(0), make_card("full"))
    return ClientRuntime(config, runtime.model, runtime.federation, runtime.cache, at_site=False), plan


def trained(
    runtime: ClientRuntime, values: Settings, start: Adapter, kept: DictKeeper | None = None, steps: int = 4
) -> TrainReply:
    client, plan = of(runtime, values)
    return train_start(client, TrainRequest("full", 1, steps, Start(start, plan)), kept or DictKeeper())


def used(runtime: ClientRuntime, values: Settings, start: Adapter, kept: DictKeeper) -> Adapter:
    """What the client has loaded when it uses the received ``start`` as it is."""
    client, plan = of(runtime, values)
    evaluate_adapter(client, EvaluateRequest("full", 1, [0], Start(start, plan)), kept)
    return runtime.model.extract()


def same_factors(left: Adapter, right: Adapter) -> bool:
    return all(
        torch.equal(one.A, right.low_rank[kind].A) and torch.equal(one.B, right.low_rank[kind].B)
        for kind, one in left.low_rank.items()
    )


def distance(left: Adapter, right: Adapter) -> float:
    return sum(float((one - right.tensors()[name]).square().sum()) for name, one in left.tensors().items()) ** 0.5


@pytest.mark.parametrize("form", ["fedper", "fedrep"])
def test_a_client_uses_the_received_factors_under_the_head_that_it_kept(runtime: ClientRuntime, form: str) -> None:
    values: Settings = {"method": "fedper", "fedper.form": form}
    start, kept = nonzero(runtime), DictKeeper()
    assert torch.equal(used(runtime, values, start, kept).head, start.head)
    end = trained(runtime, values, start, kept).end
    later = Adapter(start.scaled(2.0).low_rank, start.head + 1)
    now = used(runtime, values, later, kept)
    assert same_factors(now, later)
    assert torch.equal(now.head, end.head)
    assert not torch.equal(now.head, start.head)


def test_fedper_trains_head_and_factors_at_once(runtime: ClientRuntime) -> None:
    start = nonzero(runtime)
    assert distance(trained(runtime, {"method": "fedper"}, start).end, trained_all(runtime, start, 4)) == 0


def trained_all(runtime: ClientRuntime, start: Adapter, steps: int) -> Adapter:
    return trained(runtime, {"method": "fedit"}, start, steps=steps).end


def test_fedrep_trains_the_head_first_and_the_factors_under_that_head(runtime: ClientRuntime) -> None:
    values: Settings = {"method": "fedper", "fedper.form": "fedrep", "fedper.head-share": 0.75}
    start = nonzero(runtime)
    reply = trained(runtime, values, start)
    head_alone = trained(runtime, {"method": "probe"}, start, steps=3).end
    assert torch.equal(reply.end.head, head_alone.head)
    assert not same_factors(reply.end, start)
    assert reply.metrics.start_loss > reply.metrics.end_loss
    assert of(runtime, values)[1].trains == "head"


def test_fedbabu_trains_the_factors_under_a_random_head_that_stays(runtime: ClientRuntime) -> None:
    values: Settings = {"method": "fedper", "fedper.form": "fedbabu"}
    config = RunConfig.parse(values)
    start = build_method(config).init(runtime.model.fresh_adapter(0))
    assert float(start.head[:, :-1].std()) > 0.01
    assert not start.head[:, -1].any()
    end = trained(runtime, values, start).end
    assert torch.equal(end.head, start.head)
    assert not same_factors(end, start)
    assert of(runtime, values)[1].trains == "all"


def test_a_head_that_is_not_zero_is_left_as_it_is() -> None:
    given = make_adapter(1)
    assert with_random_head(given, 0) is given


def test_heads_stay_with_the_clients_where_newcomers_get_a_fresh_one() -> None:
    fresh = build_method(RunConfig.parse({"method": "fedper", "fedper.newcomer-head": "fresh"}))
    assert "head" not in fresh.plan(make_adapter(0), make_card("a")).up
    assert "head" in build_method(RunConfig.parse({"method": "fedper"})).plan(make_adapter(0), make_card("a")).up


def test_dittos_pull_has_the_distance_to_the_reference_as_its_gradient(model: AdaptedModel) -> None:
    model.load(model.initialise(seed=1))
    before = snapshot(model)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.5)
    penalty = pull_towards(model, before, 0.3)()
    torch.autograd.backward(penalty)
    count = sum(one.numel() for one in before)
    assert float(penalty.detach()) == pytest.approx(0.3 / 2 * 0.25 * count, rel=1e-4)
    for parameter in model.trainable_parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.3 * 0.5))
    model.clear_gradient()


def test_ditto_sends_what_fedit_sends_and_keeps_an_adapter_that_goes_on_from_its_own(runtime: ClientRuntime) -> None:
    start, kept = nonzero(runtime), DictKeeper()
    first = trained(runtime, {"method": "ditto", "ditto.pull": 0.0}, start, kept)
    assert distance(first.end, trained_all(runtime, start, 4)) == 0
    own = kept.kept["full"]
    other = runtime.model.initialise(seed=9)
    trained(runtime, {"method": "ditto", "ditto.pull": 0.0}, other, kept)
    assert distance(kept.kept["full"], trained_all(runtime, own, 4)) == 0
    assert distance(used(runtime, {"method": "ditto"}, other, kept), kept.kept["full"]) == 0


def test_a_strong_pull_brings_dittos_personal_adapter_to_the_received_one(runtime: ClientRuntime) -> None:
    start, ends = nonzero(runtime), {}
    for pull in (0.0, 1000.0):
        kept = DictKeeper()
        kept.kept["full"] = Adapter(start.low_rank, start.head + 0.01)
        trained(runtime, {"method": "ditto", "ditto.pull": pull}, start, kept)
        ends[pull] = distance(kept.kept["full"], start)
    assert ends[1000.0] < 0.5 * ends[0.0]

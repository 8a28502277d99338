"""AdaLoRA's sensitivities: PEFT's own figures, what a client tells, what the server makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.plan import Start
from hyperlora.messages.train import TrainReply, TrainRequest
from models.adapters.adapter import Adapter
from models.adapters.rank_budget import in_proportion, least_bytes, within_budget
from models.adapters.sensitivity import SensitivityMeter, agreed
from models.lowrank.factors import Factors
from tests.builders import BLOCKS, SHAPES, make_adapter, make_metrics

STEPS, RANK = 4, 3


def one_module(step: int, m: int = 7, n: int = 5) -> Factors:
    generator = torch.Generator().manual_seed(step)
    return Factors(B=torch.randn(1, m, RANK, generator=generator), A=torch.randn(1, RANK, n, generator=generator))


class Layer(nn.Module):
    """The parameters of a module of PEFT's AdaLoRA with all lambda at 1."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("lora_A", (RANK, 5)), ("lora_E", (RANK, 1)), ("lora_B", (7, RANK))):
            setattr(self, name, nn.ParameterDict({"default": nn.Parameter(torch.ones(shape))}))

    def take(self, now: Factors, slope: Factors) -> None:
        weight = (now.B * slope.B).sum(dim=-2).mT
        for name, value, gradient in (
            ("lora_A", now.A[0], slope.A[0]),
            ("lora_B", now.B[0], slope.B[0]),
            ("lora_E", torch.ones(RANK, 1), weight),
        ):
            parameter = getattr(self, name)["default"]
            parameter.data, parameter.grad = value, gradient


def peft_scores(steps: list[tuple[Factors, Factors]]) -> Tensor:
    model = nn.ModuleDict({"layer": Layer()})
    config = AdaLoraConfig(target_r=1, init_r=RANK, total_step=10, tinit=1, tfinal=1, beta1=0.85, beta2=0.85)
    allocator = RankAllocator(model, config, "default")
    for now, slope in steps:
        model["layer"].take(now, slope)
        allocator.update_ipt(model)
    score = {part: allocator._element_score(f"layer.lora_{part}.default") for part in "ABE"}
    vectors = torch.cat([score["A"].mean(dim=1, keepdim=True), score["B"].mean(dim=0).view(-1, 1)], dim=1)
    return allocator._combine_ipt(score["E"], vectors)


def test_scores_are_those_of_pefts_adalora() -> None:
    steps = [(one_module(step), one_module(100 + step)) for step in range(STEPS)]
    meter = SensitivityMeter()
    for now, slope in steps:
        meter.see(Adapter({"fc": now}, torch.zeros(1, 1)), Adapter({"fc": slope}, torch.zeros(1, 1)))
    torch.testing.assert_close(meter.scores()["fc"][0], peft_scores(steps))
    torch.testing.assert_close(meter.by_module()["fc"], peft_scores(steps).sum()[None])


def told(*shares: float) -> dict[str, Tensor]:
    return {"fc": torch.tensor(shares)}


def test_a_cohort_agrees_on_the_median_share_and_one_liar_does_not_move_it() -> None:
    honest = [told(3.0, 1.0), told(30.0, 10.0), told(0.6, 0.2)]
    assert agreed(honest, {}) == pytest.approx({"fc 0": 0.75, "fc 1": 0.25})
    assert agreed([*honest, told(0.0, 1e30)], {}) == pytest.approx({"fc 0": 0.75, "fc 1": 0.25})
    later = agreed([told(1.0, 3.0)], {"fc 0": 0.75, "fc 1": 0.25})
    assert later == pytest.approx({"fc 0": 0.85 * 0.75 + 0.15 * 0.25, "fc 1": 0.85 * 0.25 + 0.15 * 0.75})


def test_one_that_tells_nothing_costs_its_own_part() -> None:
    assert agreed([{}, told(3.0, 1.0)], {}) == pytest.approx({"fc 0": 0.75, "fc 1": 0.25})


def test_nothing_told_changes_nothing() -> None:
    assert agreed([{}], {"fc 0": 1.0}) == {"fc 0": 1.0}
    assert agreed([told(0.0, 0.0)], {}) == {}


def test_a_module_that_the_loss_depends_on_gets_more_ranks() -> None:
    adapter = make_adapter(0, rank=RANK)
    most = 2 * least_bytes(adapter, "float32")
    names = [f"{kind} {block}" for kind in SHAPES for block in range(BLOCKS)]
    even, loud = (
        within_budget(adapter, most, "float32", in_proportion(dict.fromkeys(names, 1.0) | more, RANK))[1]
        for more in ({}, {"mlp.fc1 2": 1e6})
    )
    assert loud["mlp.fc1"][2] == RANK
    assert sum(map(sum, loud.values())) <= sum(map(sum, even.values())) + 1


def test_sensitivities_travel_where_they_are_asked_for_and_none_is_negative() -> None:
    request = TrainRequest("a", 3, 10, Start(make_adapter(0)), tells_sensitivity=True)
    found = {kind: torch.arange(BLOCKS).float() for kind in SHAPES}
    reply = TrainReply("a", 3, make_adapter(0), make_metrics(), sensitivity=found)
    read = TrainReply.decode(reply.encode(request), request)
    torch.testing.assert_close(dict(read.sensitivity), found)
    assert not TrainReply.decode(reply.encode(request), replace(request, tells_sensitivity=False)).sensitivity
    lie = replace(reply, sensitivity={kind: -one for kind, one in found.items()})
    with pytest.raises(ProtocolError, match="less than nothing"):
        TrainReply.decode(lie.encode(request), request)


def test_sensitivity_needs_a_budget_training_and_no_privacy() -> None:
    with pytest.raises(ConfigError, match=r"set lora\.budget as well"):
        RunConfig.parse({"lora.importance": "sensitivity"})
    with pytest.raises(ConfigError, match=r"train\.local-steps is 0"):
        RunConfig.parse({"lora.importance": "sensitivity", "lora.budget": "20k", "train.local-steps": 0})
    with pytest.raises(ConfigError, match="which no noise bounds"):
        RunConfig.parse({"lora.importance": "sensitivity", "lora.budget": "20k", "privacy.adapter-noise": 1.0})

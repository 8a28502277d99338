"""The start from data: EVA over clients is EVA over all their inputs, and what travels for it is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from flwr.app import RecordDict
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora import initialize_lora_eva_weights
from torch import Tensor, nn

from hyperlora.config.methods import METHODS
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.inputs import InputsReply, InputsRequest
from models.adapters.adapter import Adapter
from models.adapters.input_moments import InputMoments, common_start, input_moments
from models.adapters.rank_budget import within_budget
from models.lowrank.factors import ROW_NORM, Factors
from strategies.methods.registry import build_method
from tests.builders import make_adapter, make_card

WIDTHS, RANK = (6, 9, 5), 2


class TwoLayers(nn.Module):
    """A network of two linear layers, which is what an AdaptedModel is to the moments as well."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Linear(WIDTHS[i], WIDTHS[i + 1]) for i in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))

    def frozen_features(self, x: Tensor) -> Tensor:
        return self(x)

    @contextmanager
    def watching_inputs(self, see: Callable[[str, int, Tensor], None]) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(lambda _, given, kind=kind: see(kind, 0, given[0]))
            for kind, layer in (("first", self.first), ("second", self.second))
        ]
        yield
        for handle in handles:
            handle.remove()


def fresh(rank: int = RANK) -> Adapter:
    shapes = {"first": (9, 6), "second": (5, 9)}
    low_rank = {k: Factors(B=torch.zeros(1, m, rank), A=torch.ones(1, rank, n)) for k, (m, n) in shapes.items()}
    return Adapter(low_rank, torch.ones(3, 6))


def inputs(count: int, seed: int) -> Tensor:
    """Client ``seed``'s samples, of a mean and of directions of its own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator) * torch.arange(1.0, 7.0) + 3 * torch.randn(6, generator=generator)


def told(samples: Tensor, rank: int = 9) -> InputMoments:
    return input_moments(TwoLayers(), torch.split(samples, 7), rank)  # type: ignore[arg-type]


def angle(one: Tensor, other: Tensor) -> float:
    """Smallest cosine between the row spaces of two matrices with orthonormal rows."""
    return float(torch.linalg.svdvals(one @ other.mT).min())


def test_the_start_of_several_clients_is_that_of_their_inputs_in_one_place() -> None:
    parts = [inputs(20, 1), inputs(35, 2), inputs(11, 3)]
    start, _ = common_start(fresh(), [told(part) for part in parts])
    whole = torch.cat(parts)
    for kind, x in (("first", whole), ("second", torch.tanh(TwoLayers().first(whole)))):
        expected = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False).Vh[:RANK]
        A = start.low_rank[kind].A[0]
        torch.testing.assert_close((A @ expected.mT).abs() / ROW_NORM, torch.eye(RANK), atol=1e-4, rtol=0.0)
        assert not start.low_rank[kind].B.any()
    torch.testing.assert_close(start.head, fresh().head)


def test_rows_explain_their_share_of_the_variance_and_modules_get_ranks_by_it() -> None:
    parts = [inputs(20, 1), inputs(35, 2)]
    start, explained = common_start(fresh(), [told(part) for part in parts])
    whole = torch.cat(parts)
    for kind, x in (("first", whole), ("second", torch.tanh(TwoLayers().first(whole)))):
        variances = torch.linalg.svdvals(x - x.mean(dim=0)).square()
        torch.testing.assert_close(
            torch.tensor(explained[f"{kind} 0"]), variances[:RANK] / variances.sum(), rtol=1e-4, atol=1e-5
        )
    cut, ranks = within_budget(start, 4 * (15 + 14 + 15), "float32", explained)
    first_gains = explained["first 0"][1] / 15 > explained["second 0"][1] / 14
    assert ranks == {"first": [2 if first_gains else 1], "second": [1 if first_gains else 2]}
    kept, row = cut.low_rank["first"].A[0, 0], start.low_rank["first"].A[0, 0]
    assert float(torch.cosine_similarity(kept, row, dim=0).abs()) > 0.999


def test_it_is_pefts_eva_but_for_the_length_of_the_rows() -> None:
    whole = torch.cat([inputs(40, 1), inputs(24, 2)])
    config = LoraConfig(
        r=RANK, target_modules=["first", "second"], init_lora_weights="eva", eva_config=EvaConfig(rho=1.0)
    )
    model = get_peft_model(TwoLayers(), config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(
        model, [whole, whole], forward_fn=lambda network, x: network(x), prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None, show_progress_bar=False,
    )  # fmt: skip
    start, _ = common_start(fresh(), [told(whole[:40]), told(whole[40:])])
    for kind in ("first", "second"):
        theirs = model.get_submodule(f"base_model.model.{kind}").lora_A["default"].weight.detach()
        assert angle(theirs, start.low_rank[kind].A[0] / ROW_NORM) > 0.999


def test_a_few_rows_hold_what_a_low_rank_of_the_inputs_needs() -> None:
    parts = [inputs(60, 1) * torch.tensor([0.0, 0, 0, 0, 1, 1]), inputs(60, 2) * torch.tensor([0.0, 0, 0, 1, 0, 1])]
    start, _ = common_start(fresh(), [told(part, rank=2) for part in parts])
    exact, _ = common_start(fresh(), [told(part) for part in parts])
    assert angle(start.low_rank["first"].A[0] / ROW_NORM, exact.low_rank["first"].A[0] / ROW_NORM) > 0.999


def test_a_reply_comes_back_and_a_broken_one_is_refused() -> None:
    request, moments = InputsRequest("a", 1, 3), told(inputs(20, 1), rank=3)
    again = InputsReply.decode(InputsReply("a", moments).encode(), request, like=fresh())
    torch.testing.assert_close(again.moments.rows, moments.rows)
    assert InputsRequest.decode(request.encode(), fresh()) == request
    halved = InputMoments({kind: one / 8 for kind, one in moments.counts.items()}, moments.rows)
    for reply, sentence in (
        (InputsReply("b", moments), "of another client"),
        (InputsReply("a", halved), "count whole inputs"),
        (InputsReply("a", told(inputs(20, 1), rank=4)), "expected float"),
    ):
        with pytest.raises(ProtocolError, match=sentence):
            InputsReply.decode(RecordDict(reply.encode()), request, like=fresh())
    with pytest.raises(ProtocolError, match="10 rows of a covariance were asked for"):
        InputsRequest.decode(InputsRequest("a", 1, 10).encode(), fresh())


@pytest.mark.parametrize("name", METHODS)
def test_a_common_start_reaches_the_clients_of_every_method_but_those_that_make_their_own(name: str) -> None:
    method, card, common = build_method(RunConfig.parse({"method": name})), make_card("a"), make_adapter(5, fresh=True)
    state = method.init(common)
    (start,) = method.starts(method.register(state, {"a": card}) if hasattr(method, "register") else state, [card])
    same = all(torch.equal(start.low_rank[kind].A, one.A) for kind, one in common.low_rank.items())
    plan = method.plan(state, card)
    assert (same and "A" in plan.down and plan.trains != "head") is not METHODS[name].own_start


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "ffa-lora"}, "does nothing for method 'ffa-lora', which makes lora_A itself"),
        ({"lora.ranks": "2,4"}, "gives all clients one lora_A"),
        ({"privacy.signature-noise": 1.0}, "which no noise bounds"),
    ],
)
def test_where_there_can_be_no_common_start_one_sentence_says_so(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.parse({"lora.start": "eva", **values})

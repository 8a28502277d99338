"""Ranks under a budget of bytes: which singular values are kept, what travels, and what training leaves alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from flwr.app import RecordDict

from benchmarks.local_grid import LocalGrid
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.config.settings import WIRE_DTYPES
from hyperlora.messages.codec import ProtocolError, arrays_of
from hyperlora.messages.plan import Start
from hyperlora.messages.ragged import ranks_from_list
from hyperlora.messages.train import TrainReply, TrainRequest
from models.adapters.adapter import Adapter
from models.adapters.rank_budget import in_proportion, least_bytes, share_out, within_budget
from strategies.engine.records import RoundRecord
from strategies.methods.flexlora import FlexLoRA
from tests.builders import BLOCKS, SHAPES, assert_same_products, fake_client_app, make_adapter, make_metrics, products
from tests.unit.test_lora_strategy import CARDS, SETTINGS, make_strategy

RANK = 3
FRESH = make_adapter(5, rank=RANK)
BUDGETS = {wire: 2 * least_bytes(FRESH, wire) for wire in WIRE_DTYPES}


def factor_bytes(content: RecordDict) -> int:
    return sum(one.numpy().nbytes for name, one in arrays_of(content).items() if ".lora_" in name)


def request_of(wire: str) -> TrainRequest:
    start = Start(make_adapter(0, rank=RANK), wire=wire).fitted(0, BUDGETS[wire])
    return TrainRequest("a", 3, 10, start)


def test_no_other_ranks_of_as_many_bytes_have_a_smaller_error_where_all_cost_the_same() -> None:
    drawn = torch.rand(4, 3, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    values = dict(zip("abcd", drawn, strict=True))

    def lost(ranks: dict[str, int]) -> float:
        return sum(float(values[name][rank:].square().sum()) for name, rank in ranks.items())

    ranks = share_out(values, dict.fromkeys(values, 10), 80)
    rivals = [dict(zip(values, some, strict=True)) for some in product((1, 2, 3), repeat=4) if sum(some) == 8]
    assert ranks in rivals
    assert lost(ranks) == pytest.approx(min(map(lost, rivals)))


def test_a_product_that_is_still_zero_shares_ranks_out_evenly_and_keeps_rows_to_train() -> None:
    fresh = make_adapter(0, rank=RANK, fresh=True)
    cut, ranks = within_budget(fresh, BUDGETS["float32"], "float32")
    assert {rank for ones in ranks.values() for rank in ones} == {2}
    for factors in cut.low_rank.values():
        assert bool((factors.A[:, :2].norm(dim=-1) > 0).all())
        assert not factors.A[:, 2:].any()


def test_a_cut_keeps_each_modules_leading_singular_values() -> None:
    adapter = make_adapter(0, rank=RANK)
    cut, ranks = within_budget(adapter, BUDGETS["float32"], "float32")
    assert len({rank for ones in ranks.values() for rank in ones}) > 1
    for kind, whole in products(adapter).items():
        if kind == "head":
            assert torch.equal(cut.head, whole)
            continue
        U, S, Vh = torch.linalg.svd(whole, full_matrices=False)
        for block, rank in enumerate(ranks[kind]):
            best = U[block, :, :rank] * S[block, :rank] @ Vh[block, :rank]
            torch.testing.assert_close(cut.low_rank[kind].product()[block], best, rtol=1e-4, atol=1e-4)


def test_ranks_come_out_in_proportion_to_the_sensitivity_of_modules_that_cost_the_same() -> None:
    adapter = make_adapter(0, rank=5, fresh=True)
    kind = "mlp.fc1"
    names = {f"{name} {block}": 0.0 for name in SHAPES for block in range(BLOCKS)}
    told = in_proportion(names | {f"{kind} 0": 4.0, f"{kind} 1": 2.0, f"{kind} 2": 2.0, f"{kind} 3": 2.0}, 5)
    least = least_bytes(adapter, "float32")
    _, ranks = within_budget(adapter, least + 6 * 4 * (9 + 8), "float32", told)
    assert ranks == {kind: [4, 2, 2, 2], "attn.qkv": [1, 1, 1, 1]}


@pytest.mark.parametrize("wire", WIRE_DTYPES)
def test_both_messages_stay_within_the_budget_and_say_the_same_on_both_sides(wire: str) -> None:
    request = request_of(wire)
    sent = request.encode()
    assert 0.8 * BUDGETS[wire] < factor_bytes(sent) <= BUDGETS[wire]
    read = TrainRequest.decode(sent, FRESH)
    assert read.start.ranks == request.start.ranks
    for name, value in read.start.adapter.tensors().items():
        torch.testing.assert_close(value, request.start.adapter.tensors()[name], rtol=1e-6, atol=0)
    moved = {name: 1.01 * value for name, value in read.start.adapter.tensors().items()}
    reply = TrainReply("a", 3, Adapter.from_tensors(moved), make_metrics()).encode(read)
    assert factor_bytes(reply) <= BUDGETS[wire]
    assert_same_products(TrainReply.decode(reply, request).end, Adapter.from_tensors(moved), 0.02)


def test_ranks_that_do_not_fit_the_model_are_refused() -> None:
    blocks = dict.fromkeys(SHAPES, BLOCKS)
    with pytest.raises(ProtocolError, match="a rank for each of 8 modules, got 3"):
        ranks_from_list([1, 2, 3], blocks, RANK)
    with pytest.raises(ProtocolError, match="must lie between 1 and 3"):
        ranks_from_list([4] * 8, blocks, RANK)


def test_clients_with_budgets_and_without_meet_in_product_space() -> None:
    least = least_bytes(make_adapter(0), SETTINGS.wire)
    cards = [replace(card, most_bytes=least if index < 3 else 0) for index, card in enumerate(CARDS)]
    strategy = make_strategy(FlexLoRA(), replace(SETTINGS, clients_per_round=6))
    records: list[RoundRecord] = []
    strategy.start(LocalGrid(fake_client_app(cards), {}, 3), num_rounds=2, timeout=5.0, on_round=records.append)
    assert not any(record.failures for record in records)
    starts = strategy._requests.starts(strategy.state, {card.client_id: card for card in cards})
    assert [len(start.ranks) > 0 for start in starts.values()] == [True] * 3 + [False] * 5
    assert {factors.rank for factors in strategy.state.low_rank.values()} == {2}


def test_a_budget_below_rank_1_leaves_the_client_out_with_both_numbers() -> None:
    cards = [replace(card, most_bytes=100) if card.client_id == "client-1" else card for card in CARDS]
    strategy = make_strategy(FlexLoRA(), replace(SETTINGS, min_clients=7))
    strategy.registrar.least_bytes = 464
    strategy.start(LocalGrid(fake_client_app(cards), {}, 3), num_rounds=1, timeout=5.0)
    reason = "its budget is 100 bytes a message, and an adapter of rank 1 takes 464"
    assert strategy.roster.left_out == {"client 'client-1'": reason}


def test_budgets_are_read_as_sizes_and_refused_where_a_method_needs_one_rank() -> None:
    assert RunConfig.parse({"lora.budget": "1.5k,20k"}).lora.client_budgets == (1500, 20000)
    with pytest.raises(ConfigError, match=r"lora\.budget.*sizes as 50000, 50k or 1\.5M"):
        RunConfig.parse({"lora.budget": "much"})
    for method in ("fedit", "flora"):
        with pytest.raises(ConfigError, match=f"it works with hyperlora, .*not '{method}'"):
            RunConfig.parse({"method": method, "lora.budget": "20k"})

"""What personalised rivals' clients make of an adapter with what they kept."""

from __future__ import annotations

import pytest
import torch

from models.adapters.adapter import Adapter, combine
from strategies.methods.feddpa.client import mixed_with_private
from strategies.methods.fedsa_lora.client import with_kept_left
from strategies.methods.potara.client import deviations, merging_weight
from tests.builders import assert_same_products, make_adapter


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


@pytest.mark.parametrize(
    ("federated", "local", "expected"),
    [
        (column(1, -1, 1, -1), column(1, 1, -1, -1), 0.5),
        (column(1, -1, 1, -1), column(2, 2, -2, -2), 0.8),
        (column(1, -1), column(2, -2), 1.0),
        (column(1, -1), column(1, -1), 0.5),
    ],
)
def test_potaras_weight(federated: torch.Tensor, local: torch.Tensor, expected: float) -> None:
    assert merging_weight(federated, local) == pytest.approx(expected)


def test_a_certain_adapter_deviates_less() -> None:
    steep, flat = deviations(column(4, -4)), deviations(column(1, -1))
    assert float(steep.abs().max()) < float(flat.abs().max())


def test_fedsas_client_uses_its_own_b_and_head_with_the_servers_a() -> None:
    server, own = make_adapter(1), make_adapter(2)
    used = with_kept_left(server, own)
    for kind in server.low_rank:
        assert torch.equal(used.low_rank[kind].A, server.low_rank[kind].A)
        assert torch.equal(used.low_rank[kind].B, own.low_rank[kind].B)
    assert torch.equal(used.head, own.head)


def loaded(composition: object) -> Adapter:
    return combine([composition.adapter, composition.base], [1.0, 1.0])


def test_feddpas_client_that_kept_nothing_uses_what_it_received() -> None:
    received = make_adapter(1)
    assert_same_products(loaded(mixed_with_private(received, None, 0.3)), received)


def test_feddpas_client_adds_its_own_part_to_a_share_of_the_received_adapter() -> None:
    received, own = make_adapter(1), make_adapter(2)
    composition = mixed_with_private(received, own, 0.3)
    assert_same_products(loaded(composition), combine([received, own], [0.7, 1.0]))
    assert_same_products(composition.private(composition.adapter), own)

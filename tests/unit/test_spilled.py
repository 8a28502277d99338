from __future__ import annotations

import torch

from hyperlora.storage.spilled import Spill
from tests.builders import make_adapter

SIZE = sum(one.nbytes for one in make_adapter(0).tensors().values())


def test_adapters_beyond_the_limit_come_back_from_disk_bit_by_bit() -> None:
    spill, originals = Spill(ram_limit=2 * SIZE), [make_adapter(seed).tensors() for seed in range(5)]
    kept = [spill.keep(one) for one in originals]
    assert [one is other for one, other in zip(kept, originals, strict=True)] == [True, True, False, False, False]
    assert (spill.ram_bytes, spill.disk_bytes) == (2 * SIZE, 3 * SIZE)
    for one, other in zip(kept, originals, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_was_kept_outlives_the_store() -> None:
    kept = [Spill(ram_limit=0).keep(make_adapter(seed).tensors()) for seed in range(2)]
    assert torch.equal(kept[1]["head"], make_adapter(1).head)
    assert torch.equal(kept[1]["mlp.fc1.lora_B"], make_adapter(1).low_rank["mlp.fc1"].B)

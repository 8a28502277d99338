"""Texts laid end to end: nothing but the time differs from a padded batch, and no text reads another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from models.backbones import ragged_texts
from models.backbones.loading import build_backbone
from models.lowrank.factors import Factors
from tests.tiny_models import write_model

TEXTS = ["good film", "a very very dull book", "bad", "", "good good bad bad film book a cat", "dull"]
ENCODERS = ("bert", "roberta", "electra", "distilbert")


def pass_of(model: AdaptedModel, adapter: Adapter, texts: list[str]) -> tuple[Tensor, Adapter]:
    model.load(adapter)
    logits = model.logits(model.embed(model.backbone.prepare(texts)))
    F.cross_entropy(logits, torch.arange(len(texts)) % 5).backward()
    return logits.detach(), model.take_gradient()


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("longest_row", [1, 12, 256])
def test_rows_are_padded_batches_without_the_padding(
    kind: str, longest_row: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = build_backbone(name=write_model(kind, tmp_path), weights="", image_size=24, num_classes=5)
    model = AdaptedModel(backbone, rank=2, alpha=4.0, last_blocks=2)
    adapter = model.initialise(seed=0).map(lambda one: Factors(B=one.B + 0.2, A=one.A))
    monkeypatch.setattr(ragged_texts, "worth_it", lambda mask: False)
    logits, gradient = pass_of(model, adapter, TEXTS)

    monkeypatch.undo()
    monkeypatch.setattr(ragged_texts, "LONGEST_ROW", longest_row)
    sizes: list[int] = []
    rows = ragged_texts.run_in_rows

    def counted(run: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, mask: Tensor) -> Tensor:
        def one_row(tokens: Tensor, apart: Tensor) -> Tensor:
            sizes.append(tokens.shape[1])
            return run(tokens, apart)

        return rows(one_row, hidden, mask)

    monkeypatch.setattr(ragged_texts, "run_in_rows", counted)
    own_logits, own_gradient = pass_of(model, adapter, TEXTS)
    assert sum(sizes) == 2 * sum((4, 7, 3, 2, 10, 3))
    assert len(sizes) == 2 * {1: 6, 12: 4, 256: 1}[longest_row]
    torch.testing.assert_close(own_logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own_gradient.head, gradient.head, rtol=1e-4, atol=1e-5)
    for name, factors in gradient.low_rank.items():
        torch.testing.assert_close(own_gradient.low_rank[name].A, factors.A, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(own_gradient.low_rank[name].B, factors.B, rtol=1e-3, atol=1e-6)


def test_a_text_of_no_token_gets_zeros() -> None:
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]])
    made = ragged_texts.run_in_rows(lambda tokens, apart: tokens + 1, torch.zeros(3, 2, 4), mask)
    torch.testing.assert_close(made, mask[:, :, None].expand(3, 2, 4))
    nobody = ragged_texts.run_in_rows(lambda tokens, apart: tokens + 1, torch.ones(2, 3, 4), torch.zeros(2, 3))
    torch.testing.assert_close(nobody, torch.zeros(2, 3, 4))


def test_little_padding_is_left_as_it_is() -> None:
    assert not ragged_texts.worth_it(torch.ones(4, 8))
    assert not ragged_texts.worth_it(torch.ones(4, 8, device="meta"))
    assert ragged_texts.worth_it(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]))

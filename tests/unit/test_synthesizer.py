from __future__ import annotations

from dataclasses import replace

import torch

from models.personalization.synthesizer import Keys, Synthesizer

GROUPS = torch.tensor([0, 0, 1])
SYNTHESIZER = Synthesizer(temperature=0.5, self_logit=2.0, metric=(1.0, 0.25))
QUERY = torch.tensor([1.0, 0.0, 2.0])
KEYS = Keys(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), torch.tensor([3.0, 6.0, 1.0]))
OWN = torch.tensor([True, False, False])
DISTANCE = torch.tensor([0.0, 1.0 * (1 + 1) / 2, 0.25 * 4])


def test_weights_match_the_formula() -> None:
    logits = -DISTANCE / 0.5 + KEYS.num_examples.log() + torch.tensor([2.0, 0.0, 0.0])
    torch.testing.assert_close(SYNTHESIZER.attention(QUERY, KEYS, OWN, GROUPS), logits.softmax(0))


def test_a_newcomers_weights_are_those_without_its_own_entry() -> None:
    found = SYNTHESIZER.attention_to_others(QUERY, KEYS, OWN, GROUPS)
    others = (-DISTANCE / 0.5 + KEYS.num_examples.log())[1:].softmax(0)
    torch.testing.assert_close(found, torch.cat([torch.zeros(1), others]))
    alone = Keys(KEYS.embeddings[:1], KEYS.num_examples[:1])
    assert SYNTHESIZER.attention_to_others(QUERY, alone, OWN[:1], GROUPS).tolist() == [0.0]


def test_a_low_temperature_attends_to_the_nearest_alone() -> None:
    sharp = replace(SYNTHESIZER, temperature=3e-4)
    assert float(sharp.attention(QUERY, KEYS, OWN, GROUPS)[0]) > 0.999

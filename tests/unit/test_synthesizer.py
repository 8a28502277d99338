from __future__ import annotations

import torch

from models.personalization.synthesizer import Keys, attention, initial_psi

GROUPS = torch.tensor([0, 0, 1])
PSI = initial_psi(temperature=0.5, self_logit=2.0, strength=1.0, parts=("fc1", "head"), metric=(1.0, 0.25))
QUERY = torch.tensor([1.0, 0.0, 2.0])
KEYS = Keys(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), torch.tensor([3.0, 6.0, 1.0]))
OWN = torch.tensor([True, False, False])


def test_weights_match_the_formula() -> None:
    distance = torch.tensor([0.0, 1.0 * (1 + 1) / 2, 0.25 * 4])
    logits = -distance / 0.5 + KEYS.num_examples.log() + torch.tensor([2.0, 0.0, 0.0])
    torch.testing.assert_close(attention(PSI, QUERY, KEYS, OWN, GROUPS), logits.softmax(0))


def test_every_parameter_of_the_attention_has_a_gradient() -> None:
    psi = {name: value.clone().requires_grad_() for name, value in PSI.items()}
    (attention(psi, QUERY, KEYS, OWN, GROUPS) @ torch.tensor([1.0, -2.0, 3.0])).backward()
    assert all(float(psi[name].grad.abs().sum()) > 0 for name in ("log_temperature", "self_logit", "log_metric"))


def test_a_low_temperature_attends_to_the_nearest_alone() -> None:
    psi = {**PSI, "log_temperature": torch.tensor(-8.0)}
    assert float(attention(psi, QUERY, KEYS, OWN, GROUPS)[0]) > 0.999

"""Signatures from descriptions: weights, the temperatures that are chosen, class frequencies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyperlora.from_words import Description, by_domain, name_of, readable, understand
from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.run_files import RunFilesError
from models.personalization.described import (
    TEMPERATURES,
    attention,
    class_shares,
    fitted_temperatures,
    mean_signature,
    overlap,
    told_frequencies,
)
from models.personalization.signature import Signature, class_frequencies

WIDTH, CLASSES = 5, 3
DIRECTIONS = {"red": (1.0, 0.0), "rose": (0.8, 0.6), "blue": (0.0, 1.0), "navy": (-0.6, 0.8)}


def read_texts(texts: list[str]) -> Tensor:
    return torch.tensor([DIRECTIONS[text] for text in texts])


def card(name: str, domain: str, counts: tuple[int, ...], centre: float) -> ClientCard:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(counts))
    signature = Signature(
        centre + 0.05 * torch.randn(WIDTH, generator=generator),
        torch.ones(WIDTH),
        class_frequencies(labels, CLASSES, 1.0),
        math.log(len(labels)),
    )
    return ClientCard(name, domain, True, len(labels), signature)


CARDS = {
    one.client_id: one
    for one in (
        card("a", "red", (6, 0, 0), 1.0),
        card("b", "red", (5, 2, 0), 1.0),
        card("c", "rose", (4, 2, 0), 0.8),
        card("d", "blue", (0, 1, 6), -1.0),
        card("e", "blue", (0, 2, 5), -1.0),
    )
}


def understood(
    words: str = "", classes: dict[str, float] | None = None, cards: dict[str, ClientCard] = CARDS
) -> Signature:
    return understand(Description(words, classes or {}), cards, ("x", "y", "z"), read_texts, 1.0).signature


def test_weights_are_the_softmax_of_similarities_over_temperatures() -> None:
    words, classes = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.2, 0.2, 0.9])
    weights = attention([words, classes], [0.5, 0.25])
    expected = [math.exp(w / 0.5 + c / 0.25) for w, c in zip(words.tolist(), classes.tolist(), strict=True)]
    assert weights.tolist() == pytest.approx([one / sum(expected) for one in expected])
    assert attention([words], [math.inf]).tolist() == pytest.approx([1 / 3] * 3)
    allowed = torch.tensor([False, True, True])
    assert attention([words], [math.inf], allowed).tolist() == pytest.approx([0.0, 0.5, 0.5])


def test_a_known_description_at_a_low_temperature_gives_the_mean_signature_of_those_who_said_it() -> None:
    similarities = torch.tensor([1.0, 1.0, 0.8, 0.0, 0.0])
    weights = attention([similarities], [0.003])
    made = mean_signature(weights, [one.signature for one in CARDS.values()])
    pair = [CARDS[name].signature for name in "ab"]
    torch.testing.assert_close(made.feature_mean, (pair[0].feature_mean + pair[1].feature_mean) / 2)
    torch.testing.assert_close(made.class_frequencies, (pair[0].class_frequencies + pair[1].class_frequencies) / 2)
    assert made.log_num_examples == pytest.approx((math.log(6) + math.log(7)) / 2)


def test_the_temperature_is_low_where_the_cue_tells_and_infinite_where_it_misleads() -> None:
    places = torch.tensor([0.0, 0.1, 1.0, 1.1, 2.0, 2.1])
    told = 1 - (places[:, None] - places).abs() / 2
    misled = 1 - told
    descriptions = ["a", "a", "b", "b", "c", "c"]
    vectors = torch.stack([places, -places], dim=1)
    good, bad = fitted_temperatures([told, misled], vectors, descriptions)
    assert good < 1.0
    assert bad == math.inf
    assert fitted_temperatures([told], vectors, descriptions)[0] in TEMPERATURES


def test_newcomers_from_elsewhere_count_in_the_choice() -> None:
    """Equal descriptions predict each other perfectly; across descriptions the cue says the reverse of what is so."""
    vectors = torch.tensor([[0.0], [0.0], [1.0], [1.0], [4.0], [4.0]])
    cue = torch.block_diag(*[torch.ones(2, 2)] * 3)
    cue[0:2, 4:6] = cue[4:6, 0:2] = 0.9
    apart = fitted_temperatures([cue], vectors, ["a", "a", "b", "b", "c", "c"])
    alone = fitted_temperatures([cue], vectors, ["a"] * 6)
    assert alone[0] < apart[0]


def test_two_clients_that_cannot_be_compared_have_the_temperature_one() -> None:
    assert fitted_temperatures([torch.ones(1, 1)], torch.zeros(1, 2), ["a"]) == [1.0]


def test_told_shares_are_smoothed_like_counts() -> None:
    frequencies = told_frequencies(torch.tensor([1.0, 0.0, 3.0, 0.0]), 10.0, 0.5)
    assert frequencies.tolist() == pytest.approx([3.0 / 12, 0.5 / 12, 8.0 / 12, 0.5 / 12])


def test_the_smoothing_of_class_frequencies_is_taken_off() -> None:
    shares = class_shares([CARDS[name].signature for name in "bd"], 1.0)
    torch.testing.assert_close(shares, torch.tensor([[5 / 7, 2 / 7, 0.0], [0.0, 1 / 7, 6 / 7]]))
    both = overlap(shares, shares)
    assert both.diagonal().tolist() == pytest.approx([1.0, 1.0])
    assert float(both[0, 1]) == pytest.approx(math.sqrt(2 / 7 * 1 / 7))


def test_words_lead_to_the_clients_that_say_alike() -> None:
    red, blue = understood("red"), understood("blue")
    assert float(red.feature_mean.mean()) > 0.7
    assert float(blue.feature_mean.mean()) < -0.7
    assert red.class_frequencies.tolist() == pytest.approx([1 / 3] * 3)


def test_class_names_alone_lead_to_the_clients_that_have_them() -> None:
    found = understand(Description(classes={"z": 1.0}), CARDS, ("x", "y", "z"), read_texts, 1.0)
    weights = by_domain(found.weights, CARDS)
    assert next(iter(weights)) == "blue"
    assert sum(weights.values()) == pytest.approx(1.0)
    assert float(found.signature.class_frequencies[2]) > 0.5


@pytest.mark.parametrize(
    ("words", "classes", "cards", "says"),
    [
        ("", {}, CARDS, "this one is empty"),
        ("  ", {}, CARDS, "this one is empty"),
        ("red", {"w": 1.0}, CARDS, "no class of the run: w; its classes are x, y, z"),
        ("red", {}, {"a": CARDS["a"], "b": CARDS["b"]}, "all describe themselves as 'red'"),
    ],
)
def test_a_description_that_cannot_be_used_is_one_sentence(
    words: str, classes: dict[str, float], cards: dict[str, ClientCard], says: str
) -> None:
    with pytest.raises(RunFilesError, match=says):
        understood(words, classes, cards)


def test_names_and_domains_are_made_readable() -> None:
    assert readable("kitchen_house-wares") == "kitchen house wares"
    assert name_of(Description("Kitchen & home!", {"pos": 1.0})) == "kitchen-home-pos"
    assert name_of(Description("Küche")) == "k-che"
    assert name_of(Description("日本")) == "described"

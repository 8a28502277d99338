"""The signature of a client that describes itself in words and class names, from those of the clients known.

SG-LoRA (arXiv 2509.10535) embeds a task's description with a frozen text encoder and weighs known tasks by the softmax
of the cosine similarities over a temperature. Here it is signatures that are weighed: s = sum_j w_j s_j,

    w = softmax( sum_k a_k / T_k ),   a_k (N,) the similarity to the N clients known by cue k (words, class names),

so that everything that is made for a signature is made for a description too. A temperature is not trained: it is the
one of a grid by which the clients known predict each other best, in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from models.personalization.class_means import evenly
from models.personalization.signature import Signature

TEMPERATURES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, math.inf)
"""Tried for every cue; at an infinite one the cue counts for nothing."""
MOST_COMPARED = 500
"""Clients that predict each other, at most."""


def attention(similarities: Sequence[Tensor], temperatures: Sequence[float], allowed: Tensor | None = None) -> Tensor:
    """Return w = softmax(sum_k a_k / T_k), (..., N); with no cue all clients count alike.

    Args:
        similarities: of each cue, (..., N), at least one.
        temperatures: of each cue, positive, or infinite.
        allowed: which clients may count, boolean (..., N), at least one in a row; None for all.
    """
    logits = torch.stack([one / T for one, T in zip(similarities, temperatures, strict=True)]).sum(dim=0)
    return (logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)).softmax(dim=-1)


def fitted_temperatures(similarities: Sequence[Tensor], vectors: Tensor, descriptions: Sequence[str]) -> list[float]:
    """Return the temperatures by which the clients known predict each other's vectors with the least squared error.

    A newcomer may come from where others came from or from elsewhere. Both are tried and count alike: every client is
    predicted from all others, and from those that describe themselves otherwise.

    Args:
        similarities: of each cue, (N, N).
        vectors: (N, k) what is predicted, on a common scale.
        descriptions: of the N clients.

    Returns:
        One temperature for each cue, of ``TEMPERATURES``; where clients cannot be compared, 1 for each.
    """
    asked = evenly(len(vectors), MOST_COMPARED)
    similarities = [one[asked] for one in similarities]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(descriptions))}
    place = torch.tensor([numbers[text] for text in descriptions])
    others = asked[:, None] != torch.arange(len(place))
    masks = [mask for mask in (others, place[asked][:, None] != place) if bool(mask.any(dim=1).all())]
    if not masks:
        return [1.0] * len(similarities)

    def error(temperatures: Sequence[float]) -> float:
        guesses = [attention(similarities, temperatures, mask) @ vectors for mask in masks]
        return sum(float((guess - vectors[asked]).square().mean()) for guess in guesses)

    return min(map(list, product(TEMPERATURES, repeat=len(similarities))), key=error)


def told_frequencies(shares: Tensor, num_examples: float, smoothing: float) -> Tensor:
    """Return the smoothed class frequencies (C,) of ``num_examples`` samples, of which class c has ``shares[c]``."""
    counts = num_examples * shares / shares.sum() + smoothing
    return counts / counts.sum()


def class_shares(signatures: Sequence[Signature], smoothing: float) -> Tensor:
    """Return what share of the samples of clients is of each class, (N, C), with the smoothing taken off again."""
    frequencies = torch.stack([one.class_frequencies for one in signatures])
    counts = torch.tensor([one.log_num_examples for one in signatures]).exp()[:, None]
    shares = (frequencies * (counts + smoothing * frequencies.shape[1]) - smoothing).clamp_min(0.0)
    return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-12)


def overlap(left: Tensor, right: Tensor) -> Tensor:
    """Return the Bhattacharyya coefficients sum_c sqrt(p_c q_c) of class shares (n, C) and (m, C), (n, m) in [0, 1]."""
    return left.sqrt() @ right.sqrt().mT


def mean_signature(weights: Tensor, signatures: Sequence[Signature]) -> Signature:
    """Return the mean of N signatures with ``weights`` (N,) of sum 1; of its number of samples, the geometric mean."""

    def mean(parts: Sequence[Tensor]) -> Tensor:
        return weights @ torch.stack(list(parts))

    return Signature(
        feature_mean=mean([one.feature_mean for one in signatures]),
        feature_std=mean([one.feature_std for one in signatures]),
        class_frequencies=mean([one.class_frequencies for one in signatures]),
        log_num_examples=float(mean([torch.tensor(one.log_num_examples) for one in signatures])),
    )

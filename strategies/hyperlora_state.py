"""The state of HyperLoRA's server, and how clients are described in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.adapter import Adapter
from models.signature import Projection, Signature, Standardizer
from models.synthesizer import Keys, attention
from protocol.signature_messages import ClientCard

MOST_ATTENDED = 64
NEGLIGIBLE_WEIGHT = 1e-3
INITIAL_METRIC = (1.0, 0.02, 0.02)
DESCRIPTION_GROUPS = ("feature_mean", "feature_std", "class_frequencies")


@dataclass(frozen=True)
class HyperLoraState:
    """Everything that HyperLoRA's server learned.

    Attributes:
        anchor: the global adapter of this round.
        memory: client-id -> D_i, the client's last deviation; may lie on disk.
        num_examples: client-id -> n_i, for the clients of the memory.
        standardizer: scale of the descriptions, fitted to all clients known; None before the first is.
        descriptions: client-id -> description (k,) of every client known.
        groups: (k,) group of each coordinate of a description.
        psi: parameters of the synthesizer.
        gates: logits by which the corrector's carried part ("carried") and the generator ("generator") enter, per part.
        optimizer: state of the optimiser of psi and the gates.
        carried: what truncation cut off the anchor, or None.
        projection: reduces descriptions to the generator's inputs; fitted anew only when the clients known doubled.
        generator: parameters of the generator; empty before it was first trained.
        generator_optimizer: state of its optimiser.
        distilled: relative errors of the generator's last distillation.
    """

    anchor: Adapter
    memory: Mapping[str, Adapter]
    num_examples: Mapping[str, int]
    standardizer: Standardizer | None
    descriptions: Mapping[str, Tensor]
    groups: Tensor
    psi: Mapping[str, Tensor]
    gates: Mapping[str, Tensor]
    optimizer: Mapping[str, Any] | None = None
    carried: Adapter | None = None
    projection: Projection | None = None
    generator: Mapping[str, Tensor] | None = None
    generator_optimizer: Mapping[str, Any] | None = None
    distilled: Mapping[str, float] | None = None

    def names(self) -> list[str]:
        """Return the client-ids of the memory, sorted."""
        return sorted(self.memory)

    def keys(self) -> Keys:
        """Return the memory as the attention sees it, in the order of :meth:`names`; no deviation is read for it."""
        names = self.names()
        return Keys(
            self.standardize(torch.stack([self.descriptions[name] for name in names])),
            torch.tensor([float(self.num_examples[name]) for name in names]),
        )

    def own(self, client_id: str) -> Tensor:
        """Return which entry of the memory is the client's own, boolean (N,)."""
        return torch.tensor([name == client_id for name in self.names()])

    def description_of(self, card: ClientCard) -> Tensor:
        """Return how the client is described, shape (k,)."""
        return self.descriptions[card.client_id]

    def standardize(self, descriptions: Tensor) -> Tensor:
        """Return descriptions (..., k) at the scale of the clients known."""
        return descriptions if self.standardizer is None else self.standardizer(descriptions)

    def unstandardize(self, descriptions: Tensor) -> Tensor:
        """Inverse of :meth:`standardize`."""
        scale = self.standardizer
        return descriptions if scale is None else descriptions * scale.std + scale.mean


def describe(signature: Signature) -> Tensor:
    """Return what clients are compared by, shape (k,): feature means, feature deviations, log class frequencies."""
    return torch.cat([signature.feature_mean, signature.feature_std, signature.class_frequencies.log()])


def description_groups(signature: Signature) -> Tensor:
    """Return the group (index in ``DESCRIPTION_GROUPS``) of each coordinate of a description, shape (k,)."""
    width, classes = signature.feature_mean.numel(), signature.class_frequencies.numel()
    return torch.tensor([0] * width + [1] * width + [2] * classes)


def attended(state: HyperLoraState, card: ClientCard, *, own: bool = True) -> tuple[list[str], Tensor]:
    """Return which clients of the memory a client's start attends to, most first, and by how much.

    At most ``MOST_ATTENDED`` of them, each with a weight of at least ``NEGLIGIBLE_WEIGHT``. Without ``own`` as if the
    client had no entry itself; then there may be none.
    """
    query = state.standardize(state.description_of(card))
    mine = state.own(card.client_id)
    if own or not bool(mine.any()):
        alpha = attention(state.psi, query, state.keys(), mine, state.groups)
    else:
        alpha = torch.zeros(len(mine))
        if not bool(mine.all()):
            alpha[~mine] = attention(state.psi, query, state.keys().without(mine), mine[~mine], state.groups)
    order = torch.argsort(alpha, descending=True, stable=True)[:MOST_ATTENDED]
    order = order[alpha[order] >= NEGLIGIBLE_WEIGHT]
    names = state.names()
    return [names[index] for index in order.tolist()], alpha[order]

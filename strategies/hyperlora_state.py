"""The state of HyperLoRA's server, and how clients are described in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.adapter import Adapter
from models.signature import Projection, Signature, Standardizer
from models.synthesizer import Keys
from protocol.signature_messages import ClientCard

DESCRIPTION_GROUPS = ("feature_mean", "feature_std", "class_frequencies")


@dataclass(frozen=True)
class Remembered:
    """What the server keeps of a client that trained: D_i, how the client describes its data, n_i, and the round."""

    deviation: Adapter
    description: Tensor
    num_examples: int


@dataclass(frozen=True)
class HyperLoraState:
    """Everything that HyperLoRA's server learned.

    Attributes:
        anchor: the global adapter of this round.
        memory: client-id -> the client's last deviation.
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
    memory: Mapping[str, Remembered]
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

    def deviations(self) -> list[Adapter]:
        """Return the remembered deviations in the order of :meth:`names`."""
        return [self.memory[name].deviation for name in self.names()]

    def keys(self) -> Keys:
        """Return the memory as the attention sees it, in the order of :meth:`names`."""
        entries = [self.memory[name] for name in self.names()]
        return Keys(
            self.standardize(torch.stack([entry.description for entry in entries])),
            torch.tensor([float(entry.num_examples) for entry in entries]),
        )

    def description_of(self, card: ClientCard) -> Tensor:
        """Return how the client is described, shape (k,)."""
        return self.descriptions[card.client_id]

    def standardize(self, descriptions: Tensor) -> Tensor:
        """Return descriptions (..., k) at the scale of the clients known."""
        return descriptions if self.standardizer is None else self.standardizer(descriptions)


def describe(signature: Signature) -> Tensor:
    """Return what clients are compared by, shape (k,): feature means, feature deviations, log class frequencies."""
    return torch.cat([signature.feature_mean, signature.feature_std, signature.class_frequencies.log()])


def description_groups(signature: Signature) -> Tensor:
    """Return the group (index in ``DESCRIPTION_GROUPS``) of each coordinate of a description, shape (k,)."""
    width, classes = signature.feature_mean.numel(), signature.class_frequencies.numel()
    return torch.tensor([0] * width + [1] * width + [2] * classes)

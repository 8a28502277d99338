"""The state of HyperLoRA's server, and how clients are compared in it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hyperlora.messages.signature import ClientCard
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics
from models.personalization.head_generator import HeadGenerator
from models.personalization.signature import Projection, Standardizer
from models.personalization.similarity import fit_projection, signature_vector, vector_groups
from models.personalization.synthesizer import Keys, Synthesizer
from strategies.methods.base.server import without

MOST_ATTENDED = 64
NEGLIGIBLE_WEIGHT = 1e-3
NUMBERS_AT_A_TIME = 2**22


@dataclass(frozen=True)
class HyperLoraState:
    """Everything that HyperLoRA's server learned.

    Attributes:
        anchor: the global adapter of this round.
        memory: client-id -> D_i, the client's last deviation; may lie on disk.
        num_examples: client-id -> n_i, for the clients of the memory.
        standardizer: scale of the signature vectors, fitted to all clients known; None before the first is.
        signature_vectors: client-id -> signature vector (k,) of every client known.
        groups: (k,) group of each coordinate of a signature vector.
        residual: what truncation cut off the anchor, or None.
        projection: from signature vectors to the generator's embeddings; fitted anew when the clients known doubled.
        generator: parameters of the generator; empty before it was first trained.
        generator_optimizer: state of its optimiser.
        distilled: relative errors of the generator's last distillation.
        newcomer_strength: how much of what it is attended or generated a client without an entry gets.
        training: client-ids of the clients known that train.
        class_statistics: client-id -> what its classes look like in the anchor's feature space; empty until clients
            were asked, and again as soon as the anchor moved.
        told_before: client-id -> what it told of its classes in the feature space of an earlier anchor; stands in for
            a client that does not tell anew.
        average: running average of the anchors over rounds; None where clients are served the last one.
        head_share: how much of a served head is generated from class statistics, the rest is the anchor's.
        head_scale: factor on a served head, the class prior of the client left as it is.
        published: in a run of sums, what clients made their heads of in the last evaluation, by name; empty as soon as
            the anchor moved.
    """

    anchor: Adapter
    memory: Mapping[str, Adapter]
    num_examples: Mapping[str, int]
    standardizer: Standardizer | None
    signature_vectors: Mapping[str, Tensor]
    groups: Tensor
    residual: Adapter | None = None
    projection: Projection | None = None
    generator: Mapping[str, Tensor] | None = None
    generator_optimizer: Mapping[str, Any] | None = None
    distilled: Mapping[str, float] | None = None
    newcomer_strength: float = 1.0
    training: Sequence[str] = ()
    class_statistics: Mapping[str, ClassStatistics] = field(default_factory=dict)
    head_share: float = 0.0
    head_scale: float = 1.0
    average: Adapter | None = None
    told_before: Mapping[str, ClassStatistics] = field(default_factory=dict)
    published: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def served_anchor(self) -> Adapter:
        """The anchor that clients use and describe their classes with."""
        return self.anchor if self.average is None else self.average

    @functools.cached_property
    def names(self) -> Sequence[str]:
        """The client-ids of the memory, sorted."""
        return sorted(self.memory)

    @functools.cached_property
    def keys(self) -> Keys:
        """The memory as the attention sees it, in the order of ``names``; no deviation is read for it."""
        return Keys(
            self.standardize(torch.stack([self.signature_vectors[name] for name in self.names])),
            torch.tensor([float(self.num_examples[name]) for name in self.names]),
        )

    @functools.cached_property
    def head_generator(self) -> HeadGenerator | None:
        """Heads from the class statistics of the clients that train; None where nothing is known of any class."""
        described = {name: self.class_statistics[name] for name in self.training if name in self.class_statistics}
        try:
            return HeadGenerator.fit(described, self.distances(list(described), list(described))) if described else None
        except (ValueError, RuntimeError):
            return None

    def with_service(self, *, strength: float, share: float, scale: float) -> HyperLoraState:
        """Return the state with clients served in another way; what was fitted to class statistics is kept."""
        changed = replace(self, newcomer_strength=strength, head_share=share, head_scale=scale)
        if "head_generator" in vars(self):
            vars(changed)["head_generator"] = self.head_generator
        return changed

    def distances(self, clients: Sequence[str], others: Sequence[str]) -> Tensor:
        """Return the mean squared differences of the standardised feature means of clients, (clients, others)."""
        left, right = (
            self.standardize(torch.stack([self.signature_vectors[name] for name in names]))[:, self.groups == 0]
            for names in (clients, others)
        )
        squared: Tensor = torch.cdist(left, right).square() / left.shape[1]
        return squared

    def registered(self, cards: Mapping[str, ClientCard], generator_inputs: int) -> HyperLoraState:
        """Return the state with the scale of the signature vectors fitted to the clients known.

        What a vector is reduced to for the generator, at most ``generator_inputs`` numbers, is fitted anew when the
        clients known have doubled; the generator then begins again.
        """
        names = sorted(cards)
        vectors = {name: signature_vector(cards[name].signature) for name in names}
        table, groups = torch.stack(list(vectors.values())), vector_groups(cards[names[0]].signature)
        training = tuple(name for name in names if cards[name].trains)
        scale = Standardizer.fit(table)
        state = replace(self, standardizer=scale, signature_vectors=vectors, groups=groups, training=training)
        if state.projection is not None and len(cards) < 2 * state.projection.fitted:
            return state
        projection = fit_projection(table, groups, generator_inputs)
        return replace(state, projection=projection, generator=None, generator_optimizer=None)

    def without_client(self, client_id: str) -> HyperLoraState:
        """Return the state without a client's entry and signature and what was fitted to them.

        Scales, projection and generator are made again from the other clients. The anchor moved with the client too and
        stays: its share cannot be told from the others'.
        """
        return replace(
            self,
            memory=without(self.memory, client_id),
            num_examples=without(self.num_examples, client_id),
            signature_vectors=without(self.signature_vectors, client_id),
            class_statistics=without(self.class_statistics, client_id),
            told_before=without(self.told_before, client_id),
            training=[name for name in self.training if name != client_id],
            standardizer=None,
            projection=None,
            generator=None,
            generator_optimizer=None,
            distilled=None,
            residual=None,
        )

    def own(self, client_ids: Sequence[str]) -> Tensor:
        """Return which entry of the memory is the client's own, boolean (clients, N)."""
        place = {name: index for index, name in enumerate(self.names)}
        own = torch.zeros(len(client_ids), len(place), dtype=torch.bool)
        for row, client_id in enumerate(client_ids):
            if client_id in place:
                own[row, place[client_id]] = True
        return own

    def vector_of(self, card: ClientCard) -> Tensor:
        """Return the signature vector of a client, shape (k,)."""
        return self.signature_vectors[card.client_id]

    def standardize(self, vectors: Tensor) -> Tensor:
        """Return signature vectors (..., k) at the scale of the clients known."""
        return vectors if self.standardizer is None else self.standardizer(vectors)

    def unstandardize(self, vectors: Tensor) -> Tensor:
        """Inverse of :meth:`standardize`."""
        scale = self.standardizer
        return vectors if scale is None else vectors * scale.scale + scale.center


def attended(
    state: HyperLoraState, cards: Sequence[ClientCard], synthesizer: Synthesizer, *, own: bool = True
) -> Tensor:
    """Return how much each client's start takes of every entry of the memory, (clients, N), mostly zeros.

    Args:
        state: holds the memory of N entries.
        cards: the clients.
        synthesizer: weighs the entries.
        own: whether a client's own entry counts; without it the attention is as if the client had none.

    Returns:
        Weights of at most ``MOST_ATTENDED`` entries a client, each at least ``NEGLIGIBLE_WEIGHT``.
    """
    embeddings = state.standardize(torch.stack([state.vector_of(card) for card in cards]))
    mine = state.own([card.client_id for card in cards])
    weigh = synthesizer.attention if own else synthesizer.attention_to_others
    rows = max(1, NUMBERS_AT_A_TIME // max(1, state.keys.embeddings.numel()))
    pairs = zip(torch.split(embeddings, rows), torch.split(mine, rows), strict=True)
    alpha = torch.cat([weigh(some, state.keys, flags, state.groups) for some, flags in pairs])
    order = torch.argsort(alpha, dim=1, descending=True, stable=True)[:, :MOST_ATTENDED]
    kept = torch.zeros_like(alpha).scatter_(1, order, alpha.gather(1, order))
    return kept.masked_fill(kept < NEGLIGIBLE_WEIGHT, 0.0)

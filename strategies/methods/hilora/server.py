"""HiLoRA: dW_i = B_root A_root + B_cluster A_cluster + B_leaf A_leaf, one tier after the other (arXiv 2603.02785).

Root: all clients train one adapter, averaged in product space and cut to rank r. Cluster: over the frozen root each
cluster trains an adapter of its own in the same way. Leaf: over both, each client goes on by itself. Clusters follow
from the subspaces of the clients' lora_B in the root tier (:mod:`strategies.methods.hilora.clustering`). The paper ends
a tier when it stops moving; here each has a share of the rounds. A client that did not train in the root tier joins
the cluster whose members' mean signature is nearest to its own. Leaves are kept at the server, as in ``local``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import Factors
from strategies.methods.base.server import BaseMethod, ClientUpdate, without
from strategies.methods.clustered.division import projected_signatures
from strategies.methods.flexlora import averaged
from strategies.methods.hilora.clustering import clusters_of, smoothed, subspace_distances
from strategies.methods.hilora.config import HiLoraSettings
from strategies.methods.merging import without_head


@dataclass(frozen=True)
class HiLoraState:
    """The tiers so far. Heads are whole: that of a tier begins as the one below it.

    Attributes:
        initial: the fresh adapter, which every tier begins from.
        root: the adapter of all.
        clusters: those of the clusters; none before the root is made.
        leaves: client-id -> its own.
        members: client-id -> cluster, for the clients that trained the root.
        bases: client-id -> smoothed lora_B, until the clusters are made.
        signatures: client-id -> (p,) projected signature of every client known.
        rounds: rounds made.
    """

    initial: Adapter
    root: Adapter
    clusters: Sequence[Adapter] = ()
    leaves: Mapping[str, Adapter] = field(default_factory=dict)
    members: Mapping[str, int] = field(default_factory=dict)
    bases: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    signatures: Mapping[str, Tensor] = field(default_factory=dict)
    rounds: int = 0

    def cluster(self, name: str) -> int:
        """Return the cluster of a client, by its signature where it did not train the root."""
        if name in self.members:
            return self.members[name]
        centers = {cluster: self._center(cluster) for cluster in sorted(set(self.members.values()))}
        distances = {
            cluster: float((center - self.signatures[name]).square().sum()) for cluster, center in centers.items()
        }
        return min(distances, key=lambda cluster: distances[cluster], default=0)

    def _center(self, cluster: int) -> Tensor:
        inside = [self.signatures[name] for name, place in self.members.items() if place == cluster]
        return torch.stack(inside).mean(dim=0)


@dataclass(frozen=True)
class HiLora(BaseMethod):
    """Settings: rounds of the root and of the cluster tier, most clusters, smoothing of lora_B, seed."""

    root_rounds: int
    cluster_rounds: int
    max_clusters: int
    smoothing: float
    seed: int
    state_classes = (HiLoraState, Adapter, Factors)

    def init(self, initial: Adapter) -> HiLoraState:
        """Start the root tier."""
        return HiLoraState(initial, initial)

    def register(self, state: HiLoraState, cards: Mapping[str, ClientCard]) -> HiLoraState:
        """Bring the signatures of the clients known to one scale."""
        return replace(state, signatures=projected_signatures(cards))

    def start(self, state: HiLoraState, card: ClientCard) -> Adapter:
        """Send the tier that is trained: the root, the client's cluster's, or its own."""
        if not state.clusters:
            return state.root
        shared = state.clusters[state.cluster(card.client_id)]
        if not self._at_leaves(state):
            return shared
        return state.leaves.get(card.client_id, Adapter(state.initial.low_rank, shared.head))

    def plan(self, state: HiLoraState, card: ClientCard) -> LocalPlan:
        """Have the tiers below added to the frozen weights."""
        if not state.clusters:
            return PLAIN_PLAN
        below = [state.root]
        if self._at_leaves(state):
            below.append(state.clusters[state.cluster(card.client_id)])
        tiers = [without_head(one.map(orthonormal)) for one in below]
        return LocalPlan(base=combine(tiers, [1.0] * len(tiers)))

    def aggregate(self, state: HiLoraState, updates: Sequence[ClientUpdate]) -> HiLoraState:
        """Average the tier that is trained; the leaves are kept as they come."""
        state = replace(state, rounds=state.rounds + 1)
        if not state.clusters:
            return self._with_root(state, updates)
        if state.rounds > self.root_rounds + self.cluster_rounds:
            return replace(state, leaves={**state.leaves, **{one.card.client_id: one.end for one in updates}})
        members: dict[int, list[ClientUpdate]] = {}
        for update in updates:
            members.setdefault(state.cluster(update.card.client_id), []).append(update)
        clusters = list(state.clusters)
        for index, some in members.items():
            clusters[index] = averaged(some, clusters[index])
        return replace(state, clusters=clusters)

    def forget(self, state: HiLoraState, client_id: str) -> HiLoraState:
        """Drop the client's leaf, its place in a cluster, its subspace and its signature; its share in tiers stays."""
        return replace(
            state,
            leaves=without(state.leaves, client_id),
            members=without(state.members, client_id),
            bases=without(state.bases, client_id),
            signatures=without(state.signatures, client_id),
        )

    def anchor(self, state: HiLoraState) -> Adapter:
        """Return the root."""
        return state.root

    def _with_root(self, state: HiLoraState, updates: Sequence[ClientUpdate]) -> HiLoraState:
        bases = {
            one.card.client_id: smoothed(
                state.bases.get(one.card.client_id),
                {kind: factors.B for kind, factors in one.end.low_rank.items()},
                self.smoothing,
            )
            for one in updates
        }
        state = replace(state, root=averaged(updates, state.root), bases={**state.bases, **bases})
        return self._divided(state) if state.rounds >= self.root_rounds else state

    def _divided(self, state: HiLoraState) -> HiLoraState:
        names = sorted(state.bases)
        distances = subspace_distances([state.bases[name] for name in names])
        found = clusters_of(distances, self.max_clusters, derive_seed(self.seed, "hilora"))
        fresh = Adapter(state.initial.low_rank, state.root.head)
        members = dict(zip(names, found, strict=True))
        return replace(state, clusters=[fresh] * (max(found) + 1), members=members, bases={})

    def _at_leaves(self, state: HiLoraState) -> bool:
        return state.rounds >= self.root_rounds + self.cluster_rounds


def orthonormal(factors: Factors) -> Factors:
    """Return the same product with orthonormal columns of B."""
    Q, R = torch.linalg.qr(factors.B)
    return Factors(B=Q, A=R @ factors.A)


def build(config: RunConfig) -> HiLora:
    """Return the method with the settings under ``hilora``."""
    settings = config.of(HiLoraSettings)
    return HiLora(*settings.rounds(config.federation.rounds), settings.max_clusters, settings.smoothing, config.seed)

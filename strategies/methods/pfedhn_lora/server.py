"""pFedHN on LoRA: a hypernetwork alone makes every adapter, taught by pFedHN's rule (arXiv 2103.04628, eq. 4).

theta_i = G_phi(s_i); phi <- phi - eta sum_i w_i J_i^T (theta_i - theta_i'), J_i the Jacobian of factors and head at
client i and theta_i' what its local steps made of them. The network reads signatures in place of pFedHN's learned
embeddings of clients, so that it makes adapters for newcomers too, and the server's optimiser is Adam. HyperFLoRA
(SDM 2024) makes LoRA by the same rule, but pretrains by FedAvg and teaches on pseudo-clients first; neither is done
here, so it is not that method.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from hyperlora.config.schema import RunConfig
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from models.lowrank.factors import Factors
from models.personalization.generators.build import Generator, build_generator
from models.personalization.signature import Projection, Standardizer
from models.personalization.similarity import fit_projection, signature_vector, vector_groups
from strategies.methods.base.server import BaseMethod, ClientUpdate, example_weights
from strategies.methods.pfedhn_lora.config import PFedHNSettings


@dataclass(frozen=True)
class PFedHNState:
    """The fresh adapter, the network's parameters and optimiser, and what a signature is reduced by."""

    initial: Adapter
    parameters: Mapping[str, Tensor]
    projection: Projection | None = None
    optimizer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PFedHNLora(BaseMethod):
    """Settings: the network's hidden width, the numbers a signature is reduced to, the server's rate, the seed."""

    hidden: int
    inputs: int
    learning_rate: float
    seed: int
    state_classes = (PFedHNState, Standardizer, Projection, Adapter, Factors)

    def init(self, initial: Adapter) -> PFedHNState:
        """Start with no network: its size depends on the signatures."""
        return PFedHNState(initial, {})

    def register(self, state: PFedHNState, cards: Mapping[str, ClientCard]) -> PFedHNState:
        """Fit the inputs to the clients known and make the network, once."""
        if state.projection is not None:
            return state
        table = torch.stack([signature_vector(cards[name].signature) for name in sorted(cards)])
        groups = vector_groups(next(iter(cards.values())).signature)
        state = replace(state, projection=fit_projection(table, groups, self.inputs))
        return replace(state, parameters=dict(self._network(state).state_dict()))

    def start(self, state: PFedHNState, card: ClientCard) -> Adapter:
        """Return what the network makes for the client's signature."""
        with torch.no_grad():
            return self._made(state, [card], state.parameters)[0]

    def aggregate(self, state: PFedHNState, updates: Sequence[ClientUpdate]) -> PFedHNState:
        """Take one step of Adam along pFedHN's rule."""
        network = self._network(state)
        network.load_state_dict(dict(state.parameters))
        parameters = dict(network.named_parameters())
        optimizer = torch.optim.Adam(parameters.values(), lr=self.learning_rate)
        if state.optimizer is not None:
            optimizer.load_state_dict(copy.deepcopy(dict(state.optimizer)))  # it would step on the state's own
        made = self._made(state, [one.card for one in updates], parameters)
        terms = [
            weight * pull(adapter, update)
            for adapter, update, weight in zip(made, updates, example_weights(updates), strict=True)
        ]
        torch.autograd.backward(torch.stack(terms).sum(), inputs=list(parameters.values()))
        optimizer.step()
        learned = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return replace(state, parameters=learned, optimizer=optimizer.state_dict())

    def anchor(self, state: PFedHNState) -> None:
        """Return None: there is no global adapter."""
        return

    def _made(self, state: PFedHNState, cards: Sequence[ClientCard], parameters: Mapping[str, Tensor]) -> AdapterBatch:
        vectors = torch.stack([signature_vector(card.signature) for card in cards])
        inputs = vectors if state.projection is None else state.projection(vectors)
        buffers = {name: value for name, value in state.parameters.items() if name not in parameters}
        made: AdapterBatch = functional_call(self._network(state), {**buffers, **parameters}, (inputs,))
        return made

    def _network(self, state: PFedHNState) -> Generator:
        if state.projection is None:
            raise RuntimeError("the hypernetwork was asked before any client was registered")
        return build_generator(
            "mlp",
            template=state.initial,
            embedding_size=state.projection.basis.shape[1],
            rank=state.initial.rank,
            hidden=self.hidden,
            seed=derive_seed(self.seed, "generator"),
        )


def pull(made: Adapter, update: ClientUpdate) -> Tensor:
    """Return <theta_i, theta_i - theta_i'>, whose gradient is the rule's, the difference held fixed."""
    start, end = update.start.tensors(), update.end.tensors()
    return torch.stack([(tensor * (start[name] - end[name])).sum() for name, tensor in made.tensors().items()]).sum()


def build(config: RunConfig) -> PFedHNLora:
    """Return the method with the settings under ``pfedhn-lora``."""
    settings = config.of(PFedHNSettings)
    return PFedHNLora(settings.hidden, settings.inputs, settings.learning_rate, config.seed)

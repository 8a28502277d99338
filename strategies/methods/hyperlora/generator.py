"""The generator in service: what it makes for a signature, and how the synthesizer teaches it every round.

For real, mixed and noised signature vectors it learns to make what the synthesizer makes of the memory, so that it can
serve without any memory (:mod:`models.personalization.distillation`).
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter
from models.adapters.batch import AdapterBatch
from models.personalization.distillation import DistillationReport, distill, virtual_embeddings
from models.personalization.generators.build import Generator, build_generator
from models.personalization.synthesizer import Keys, Synthesizer
from strategies.methods.hyperlora.state import HyperLoraState

LEAST_MEMORY = 4
MOST_LESSONS = 64
HELD_OUT_EVERY = 5
LESSONS_AT_A_TIME = 16


@dataclass(frozen=True)
class Teaching:
    """How a distillation is made; ``virtual`` mixed signature vectors get noise of standard deviation ``noise``."""

    steps: int
    learning_rate: float
    virtual: int
    noise: float
    patience: int = 12


@dataclass(frozen=True)
class ServedGenerator:
    """A generator and its teaching; its parameters are in the state, never here.

    Attributes:
        kind, rank, hidden: which network, see :mod:`models.personalization.generators.build`.
        share: of it in the deviation of a start that attends to the memory too.
        teaching: how it is taught.
        seed: of its initial parameters and of virtual signature vectors.
    """

    kind: str
    rank: int
    hidden: int
    share: float
    teaching: Teaching
    seed: int

    def deviations(self, state: HyperLoraState, vectors: Tensor) -> AdapterBatch:
        """Return as one batch the deviations that it makes for clients, by their signature vectors (n, k) alone."""
        shapes = tuple((name, tuple(value.shape)) for name, value in state.anchor.tensors().items())
        module, inputs = _skeleton(self, shapes, embedding_size(state)), project(state, vectors)
        with torch.no_grad():
            made: AdapterBatch = functional_call(module, dict(state.generator or {}), (inputs,))
        return made

    def taught(self, state: HyperLoraState, synthesizer: Synthesizer) -> HyperLoraState:
        """Return ``state`` with a generator that was distilled from its memory, if that has enough clients."""
        if len(state.memory) < LEAST_MEMORY or not self.teaching.steps or state.projection is None:
            return state
        names = self._lesson_names(state)
        memory, module = AdapterBatch.stack([state.memory[name] for name in names]), self._module(state)
        born = state.generator is None
        if born:
            module.seed(memory)
        else:
            module.load_state_dict(dict(state.generator or {}))
        optimizer = torch.optim.Adam(module.parameters(), lr=self.teaching.learning_rate)
        if state.generator_optimizer is not None:
            optimizer.load_state_dict(
                copy.deepcopy(dict(state.generator_optimizer))
            )  # it would step on the state's own
        report = self._distill(state, self._lessons(state, names, synthesizer), module, memory, optimizer)
        return replace(
            state,
            generator={name: value.detach().clone() for name, value in module.state_dict().items()},
            generator_optimizer=optimizer.state_dict(),
            distilled={"error": report.train_error, "held-out error": report.held_out_error},
        )

    def _distill(
        self,
        state: HyperLoraState,
        lessons: tuple[Tensor, Tensor, Tensor],
        module: Generator,
        memory: AdapterBatch,
        optimizer: torch.optim.Adam,
    ) -> DistillationReport:
        vectors, coefficients, held_out = lessons
        return distill(
            module,
            embeddings=project(state, vectors),
            coefficients=coefficients,
            memory=memory,
            held_out=held_out,
            steps=self.teaching.steps,
            learning_rate=self.teaching.learning_rate,
            patience=self.teaching.patience,
            optimizer=optimizer,
        )

    def _lesson_names(self, state: HyperLoraState) -> list[str]:
        """Return the clients of the memory that it is taught from: all, or ``MOST_LESSONS``, drawn anew every round."""
        names = state.names
        chooser = random.Random(derive_seed(self.seed, "lessons", _mark_of_round(state)))
        return sorted(chooser.sample(names, min(MOST_LESSONS, len(names))))

    def _lessons(
        self, state: HyperLoraState, names: Sequence[str], synthesizer: Synthesizer
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return signature vectors (S, k), the synthesizer's coefficients (S, N), and which are held out.

        The first N are those of the clients themselves, the others are mixed and noised.
        """
        real = state.standardize(torch.stack([state.signature_vectors[name] for name in names]))
        counts = torch.tensor([float(state.num_examples[name]) for name in names])
        chance = torch.Generator().manual_seed(derive_seed(self.seed, "virtual", _mark_of_round(state)))
        virtual = virtual_embeddings(real, self.teaching.virtual, self.teaching.noise, chance)
        lessons = torch.cat([real, virtual])
        own = torch.cat([torch.eye(len(real)), torch.zeros(len(virtual), len(real))]).bool()
        keys = Keys(real, counts)
        pairs = zip(torch.split(lessons, LESSONS_AT_A_TIME), torch.split(own, LESSONS_AT_A_TIME), strict=True)
        alpha = torch.cat([synthesizer.attention(some, keys, flags, state.groups) for some, flags in pairs])
        held_out = torch.zeros(len(lessons), dtype=torch.bool)
        held_out[::HELD_OUT_EVERY] = True
        return state.unstandardize(lessons), synthesizer.strength * alpha, held_out

    def _module(self, state: HyperLoraState) -> Generator:
        return self.network(state.anchor, embedding_size(state))

    def network(self, template: Adapter, input_size: int) -> Generator:
        """Return the network as it is before round 1, for adapters like ``template`` and inputs of a size."""
        return build_generator(
            self.kind,
            template=template,
            embedding_size=input_size,
            rank=self.rank,
            hidden=self.hidden,
            seed=derive_seed(self.seed, "generator"),
        )


@functools.lru_cache(maxsize=2)
def _skeleton(served: ServedGenerator, shapes: tuple[tuple[str, tuple[int, ...]], ...], input_size: int) -> Generator:
    """Return a network whose parameters are always replaced, made once because drawing them takes milliseconds."""
    return served.network(Adapter.from_tensors({name: torch.empty(shape) for name, shape in shapes}), input_size)


def embedding_size(state: HyperLoraState) -> int:
    """Return the number of inputs that the generator has.

    Raises:
        RuntimeError: no client is registered yet.
    """
    if state.projection is None:
        raise RuntimeError("the generator was asked before any client was registered")
    return state.projection.basis.shape[1]


def project(state: HyperLoraState, vectors: Tensor) -> Tensor:
    """Return the generator's embeddings (S, p) for signature vectors (S, k)."""
    return vectors if state.projection is None else state.projection(vectors)


def _mark_of_round(state: HyperLoraState) -> str:
    """Return what no two rounds share and a resumed run makes again: the anchor's head, summed up."""
    return float(state.anchor.head.double().sum()).hex()

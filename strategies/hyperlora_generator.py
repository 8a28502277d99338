"""The generator in service: what it makes for a signature, and how the synthesizer teaches it every round.

It learns to make, for real, mixed and noised descriptions, what the synthesizer makes of the memory for them, so that
it can serve without any memory (:mod:`models.distillation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from models.adapter import Adapter
from models.distillation import DistillationReport, distill, virtual_inputs
from models.generator import Generator, build_generator
from models.low_rank import Factors
from models.synthesizer import attention
from protocol.build import derive_seed
from strategies.hyperlora_state import HyperLoraState

LEAST_MEMORY = 4
HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Teaching:
    """How a distillation is made: optimiser steps, learning rate, virtual descriptions and their noise, patience."""

    steps: int
    learning_rate: float
    virtual: int
    noise: float
    patience: int = 3


@dataclass(frozen=True)
class ServedGenerator:
    """A generator and its teaching; its parameters are in the state, never here.

    Attributes:
        kind, rank, hidden, num_heads: which network, see :func:`models.generator.build_generator`.
        teaching: how it is taught.
        seed: of its initial parameters and of virtual descriptions.
    """

    kind: str
    rank: int
    hidden: int
    num_heads: int
    teaching: Teaching
    seed: int

    def deviation(self, state: HyperLoraState, description: Tensor) -> Adapter:
        """Return the deviation that it makes for a client, by the client's description (k,) alone."""
        module, inputs = self._module(state), project(state, description[None])
        with torch.no_grad():
            made: Adapter = functional_call(module, dict(state.generator or {}), (inputs,))
        return one_of_batch(made, 0)

    def taught(self, state: HyperLoraState) -> HyperLoraState:
        """Return ``state`` with a generator that was distilled from its memory, if that has enough clients."""
        if len(state.memory) < LEAST_MEMORY or not self.teaching.steps or state.projection is None:
            return state
        memory, module = stack(state.deviations()), self._module(state)
        born = state.generator is None
        if born:
            module.seed(memory)
        else:
            module.load_state_dict(dict(state.generator or {}))
        optimizer = torch.optim.Adam(module.parameters(), lr=self.teaching.learning_rate)
        if state.generator_optimizer is not None:
            optimizer.load_state_dict(dict(state.generator_optimizer))
        report = self._distill(state, module, memory, optimizer)
        return replace(
            state,
            generator={name: value.detach().clone() for name, value in module.state_dict().items()},
            generator_optimizer=optimizer.state_dict(),
            distilled={"error": report.train_error, "held-out error": report.held_out_error},
        )

    def _distill(
        self, state: HyperLoraState, module: Generator, memory: Adapter, optimizer: torch.optim.Adam
    ) -> DistillationReport:
        descriptions, coefficients, held_out = self._lessons(state)
        return distill(
            module,
            inputs=project(state, descriptions),
            coefficients=coefficients,
            memory=memory,
            held_out=held_out,
            steps=self.teaching.steps,
            learning_rate=self.teaching.learning_rate,
            patience=self.teaching.patience,
            optimizer=optimizer,
        )

    def _lessons(self, state: HyperLoraState) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return descriptions (S, k), the synthesizer's coefficients by part (S, N), and which are held out."""
        names = state.names()
        real = torch.stack([state.memory[name].description for name in names])
        seed = derive_seed(self.seed, "virtual", len(names), float(real.sum()).hex())
        chance = torch.Generator().manual_seed(seed)
        teaching = self.teaching
        scale = state.standardizer.std if state.standardizer is not None else torch.ones(real.shape[1])
        virtual = virtual_inputs(real / scale, teaching.virtual, teaching.noise, chance) * scale
        descriptions = torch.cat([real, virtual])
        own = torch.cat(
            [torch.eye(len(names), dtype=torch.bool), torch.zeros(len(virtual), len(names), dtype=torch.bool)]
        )
        keys = state.keys()
        alpha = torch.stack(
            [
                attention(state.psi, query, keys, flags, state.groups)
                for query, flags in zip(state.standardize(descriptions), own, strict=True)
            ]
        )
        held_out = torch.zeros(len(descriptions), dtype=torch.bool)
        held_out[: len(names) : HELD_OUT_EVERY] = True
        parts = zip(state.anchor.parts, state.psi["strength"], strict=True)
        return descriptions, {part: strength * alpha for part, strength in parts}, held_out

    def _module(self, state: HyperLoraState) -> Generator:
        if state.projection is None:
            raise RuntimeError("the generator was asked before any client was registered")
        return build_generator(
            self.kind,
            template=state.anchor,
            input_size=state.projection.basis.shape[1],
            rank=self.rank,
            hidden=self.hidden,
            seed=derive_seed(self.seed, "generator"),
            num_heads=self.num_heads,
        )


def project(state: HyperLoraState, descriptions: Tensor) -> Tensor:
    """Return the generator's inputs (S, p) for descriptions (S, k)."""
    return descriptions if state.projection is None else state.projection(descriptions)


def stack(adapters: list[Adapter]) -> Adapter:
    """Return adapters of one rank as a batch with a leading dimension."""
    low_rank = {
        kind: Factors(
            B=torch.stack([one.low_rank[kind].B for one in adapters]),
            A=torch.stack([one.low_rank[kind].A for one in adapters]),
        )
        for kind in adapters[0].low_rank
    }
    return Adapter(low_rank, torch.stack([one.head for one in adapters]))


def one_of_batch(batch: Adapter, index: int) -> Adapter:
    """Return one adapter of a batch."""
    low_rank = {kind: Factors(B=one.B[index], A=one.A[index]) for kind, one in batch.low_rank.items()}
    return Adapter(low_rank, batch.head[index])

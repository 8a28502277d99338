"""HyperLoRA: every client is served an adapter made for its own data distribution (after arXiv 2606.06154).

The anchor moves by the clients' movements, averaged in product space:
dW_anchor <- T_r( dW_anchor + eta sum_i w_i (dW_i - dW_i^start) ), and clients are served its running average over
rounds. Before an evaluation clients tell what their classes look like in its feature space, and each is served a head
that follows from that in closed form (:mod:`models.personalization.head_generator`), mixed with the anchor's.

Where ``hyperlora.deviations`` is on, what a client learned beyond the anchor, D_i = dW_i - dW_anchor, is remembered,
and a start holds attended deviations (:mod:`models.personalization.synthesizer`) or generated ones
(:mod:`strategies.methods.hyperlora.generator`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import PLAIN_PLAN, LocalPlan
from hyperlora.messages.signature import ClientCard
from hyperlora.storage.tensor_store import DiskMemory
from models.adapters.adapter import Adapter, resized, subtract
from models.adapters.adapter_sum import taker_for
from models.lowrank.factors import Factors
from models.personalization.class_statistics import ClassStatistics
from models.personalization.signature import Projection, Standardizer
from models.personalization.synthesizer import Synthesizer
from strategies.methods.base.server import ClientUpdate
from strategies.methods.hyperlora.anchor import AnchorRule
from strategies.methods.hyperlora.config import CorrectorSettings, Deviations, GeneratorSettings, HyperLoraSettings
from strategies.methods.hyperlora.generator import ServedGenerator, Teaching
from strategies.methods.hyperlora.heads import with_heads
from strategies.methods.hyperlora.probes import Candidate, apply_probe_losses, candidates, probe_starts
from strategies.methods.hyperlora.starts import generated_start, make_starts
from strategies.methods.hyperlora.state import HyperLoraState


@dataclass(frozen=True)
class HyperLoraMethod:
    """Settings of the method.

    Attributes:
        anchor_rule: how the anchor moves.
        synthesizer: what clients attend to in the memory.
        generator: the hypernetwork and how it is trained; None where it is off.
        generator_inputs: numbers that a signature vector is reduced to for the generator.
        memory: the empty memory: in RAM, or one that keeps most of its entries on disk.
        probe_clients: clients that are asked how clients are to be served; 0 where that is left as it is set.
        deviations: where starts hold deviations: in ``rounds`` and at use, at use alone (``serving``), or ``off``.
        scatter_rank: rank of the scatter within classes that clients send; None where no class statistics are asked.
        head_share, head_scale: share of the head from class statistics in what clients are served, and factor on the
            mixture; 0 and 1 where probing clients are better off with the anchor's head.
        remembers_statistics: whether what a client told of its classes counts until it tells anew, although the anchor
            moved since; otherwise it is dropped as soon as the anchor moves.
        prior_strength: gamma of the class prior that clients add to their head; 0 where they add none.
    """

    anchor_rule: AnchorRule = field(default_factory=AnchorRule)
    synthesizer: Synthesizer = field(default_factory=Synthesizer)
    generator: ServedGenerator | None = None
    generator_inputs: int = 16
    memory: Mapping[str, Adapter] = field(default_factory=dict)
    probe_clients: int = 0
    deviations: Deviations = "rounds"
    scatter_rank: int | None = None
    head_share: float = 0.0
    head_scale: float = 1.0
    prior_strength: float = 0.0
    remembers_statistics: bool = True

    @property
    def state_classes(self) -> tuple[type, ...]:
        """The dataclasses that the state is made of."""
        return (HyperLoraState, Standardizer, Projection, ClassStatistics, Adapter, Factors)

    def init(self, initial: Adapter) -> HyperLoraState:
        """Start from the fresh adapter with an empty memory."""
        groups = torch.empty(0, dtype=torch.int64)
        state = HyperLoraState(initial, self.memory, {}, None, {}, groups)
        return replace(state, head_share=self.head_share, head_scale=self.head_scale)

    def register(self, state: HyperLoraState, cards: Mapping[str, ClientCard]) -> HyperLoraState:
        """Fit the scale of the signature vectors to the clients known."""
        if isinstance(self.memory, DiskMemory) and not isinstance(state.memory, DiskMemory):
            state = replace(state, memory=self.memory.with_entries(state.memory))
        return state.registered(cards, self.generator_inputs)

    def forget(self, state: HyperLoraState, client_id: str) -> HyperLoraState:
        """Drop a client's entry and signature, what was fitted to signatures, and the generator its entry taught."""
        return state.without_client(client_id)

    def start(self, state: HyperLoraState, card: ClientCard) -> Adapter:
        """Return what one client trains in a round."""
        return self.starts(state, [card])[0]

    def starts(self, state: HyperLoraState, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Return what clients train in a round: the anchor, with their deviations where those belong in rounds."""
        if self.deviations != "rounds":
            return [state.anchor] * len(cards)
        return self._with_deviations(state, cards, state.anchor)

    def served(self, state: HyperLoraState, cards: Sequence[ClientCard]) -> Sequence[Adapter]:
        """Return what clients use: anchor and deviations, with heads from class statistics mixed in."""
        return self._served(state, cards)

    def _served(
        self, state: HyperLoraState, cards: Sequence[ClientCard], *, as_newcomers: bool = False
    ) -> list[Adapter]:
        starts = self._with_deviations(state, cards, state.served_anchor, as_newcomers=as_newcomers)
        return with_heads(state, cards, starts, self.prior_strength)

    def _with_deviations(
        self, state: HyperLoraState, cards: Sequence[ClientCard], base: Adapter, *, as_newcomers: bool = False
    ) -> list[Adapter]:
        if self.deviations == "off":
            return [base] * len(cards)
        with_base = replace(state, anchor=base)
        return make_starts(with_base, cards, self.synthesizer, self.serving(state), as_newcomers=as_newcomers)

    def statistics_rank(self, state: HyperLoraState) -> int | None:
        """Return the rank of the scatter that clients send with their class statistics; None asks for none."""
        return self.scatter_rank

    def with_statistics(self, state: HyperLoraState, statistics: Mapping[str, ClassStatistics]) -> HyperLoraState:
        """Return the state that knows what the classes of these clients look like, and what others told before."""
        known = {**state.told_before, **state.class_statistics, **statistics}
        return replace(state, class_statistics=known, told_before={})

    def probe_starts(
        self, state: HyperLoraState, cards: Sequence[ClientCard], server_round: int
    ) -> dict[str, dict[str, Adapter]]:
        """Return what some clients would be served if they were new, in several ways."""
        make = functools.partial(self._served, as_newcomers=True)
        return probe_starts(state, cards, self._candidates(state), self.probe_clients, server_round, make)

    def apply_probe_losses(self, state: HyperLoraState, losses: Mapping[str, Mapping[str, float]]) -> HyperLoraState:
        """Return the state with the way that served the probing clients best."""
        return apply_probe_losses(state, self._candidates(state), losses)

    def _candidates(self, state: HyperLoraState) -> list[Candidate]:
        if not self.probe_clients:
            return []
        head = None if state.head_generator is None else (self.head_share, self.head_scale)
        return candidates(head, deviations=self.deviations != "off")

    def plan(self, state: HyperLoraState, card: ClientCard) -> LocalPlan:
        """Have all of the start sent, trained and sent back."""
        return PLAIN_PLAN

    def alternatives(self, state: HyperLoraState, card: ClientCard) -> dict[str, Adapter]:
        """Return what the client would start from with less: the anchor alone, the generator without any memory."""
        generator = self.serving(state)
        served = {} if generator is None else {"generator": generated_start(state, card, generator)}
        return {"anchor": state.served_anchor} | served

    def serving(self, state: HyperLoraState) -> ServedGenerator | None:
        """Return the generator, or None where it is off or was not taught yet."""
        return None if state.generator is None else self.generator

    def aggregate(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> HyperLoraState:
        """Move the anchor, remember deviations, teach the generator."""
        state = self.anchor_rule.moved(state, updates)
        counts = {update.card.client_id: update.metrics.num_examples for update in updates}
        state = replace(
            state,
            memory=self._remembered(state, updates),
            num_examples={**state.num_examples, **counts},
            class_statistics={},
            published={},
            told_before={**state.told_before, **state.class_statistics} if self.remembers_statistics else {},
        )
        if self.generator is None or self.deviations == "off":
            return state
        return self.generator.taught(state, self.synthesizer)

    def taker(self, state: HyperLoraState, clients: int) -> Callable[[Adapter], None]:
        """Return what deals the adapters of a large round out as they arrive."""
        return taker_for(state.anchor, clients)

    def anchor(self, state: HyperLoraState) -> Adapter:
        """Return the anchor that clients are served."""
        return state.served_anchor

    def report(self, state: HyperLoraState) -> dict[str, float]:
        """Return by name how clients are served, for the metrics."""
        distilled = {f"distilled {name}": value for name, value in (state.distilled or {}).items()}
        return {"newcomer_strength": state.newcomer_strength} | _head_figures(state) | distilled

    def switched_off(self) -> list[str]:
        """Return which of head generator, synthesizer, LoRA generator and corrector are off."""
        deviates = self.deviations != "off"
        on = {
            "head generator": self.scatter_rank,
            "synthesizer": deviates and self.synthesizer.strength,
            "LoRA generator": deviates and self.generator,
            "corrector": self.anchor_rule.residual_rank,
        }
        return [name for name, setting in on.items() if not setting]

    def _remembered(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> Mapping[str, Adapter]:
        if self.deviations == "off":
            return state.memory
        rank = state.anchor.rank
        deviations = {update.card.client_id: subtract(resized(update.end, rank), state.anchor) for update in updates}
        return with_entries(state.memory, deviations)


def with_entries(memory: Mapping[str, Adapter], new: Mapping[str, Adapter]) -> Mapping[str, Adapter]:
    """Return ``memory`` with the entries of ``new`` added or replaced, on disk where the memory lies there."""
    return memory.with_entries(new) if isinstance(memory, DiskMemory) else {**memory, **new}


def build(config: RunConfig) -> HyperLoraMethod:
    """Return the method with the settings under ``hyperlora``, ``generator`` and ``corrector``."""
    own, net, corrector = config.of(HyperLoraSettings), config.of(GeneratorSettings), config.of(CorrectorSettings)
    teaching = Teaching(net.steps, net.learning_rate, net.virtual_samples, net.noise)
    generator = ServedGenerator(net.kind, net.rank, net.hidden, net.share, teaching, config.seed)
    return HyperLoraMethod(
        anchor_rule=AnchorRule(own.server_step, corrector.rank, corrector.share, own.averaging),
        synthesizer=Synthesizer(own.temperature, own.self_logit, own.strength),
        generator=None if net.kind == "off" else generator,
        generator_inputs=net.inputs,
        memory=_empty_memory(config),
        probe_clients=own.probe_clients,
        deviations=own.deviations,
        scatter_rank=own.statistics_rank if own.statistics and _asks_statistics(config) else None,
        head_share=own.head_share if own.statistics else 0.0,
        head_scale=own.head_scale,
        prior_strength=config.prior_strength,
        remembers_statistics=own.remember_statistics,
    )


def _asks_statistics(config: RunConfig) -> bool:
    """Tell whether class statistics may be asked: not in a private run, nor where a sample is no member of a class."""
    return not (config.privacy.noised or config.model.text_tower or config.data.name == "instructions")


def _head_figures(state: HyperLoraState) -> dict[str, float]:
    """Return by name how heads are generated: share, and what the clients' class means differ by."""
    if state.head_generator is None:
        return {}
    found = state.head_generator.variances
    return {
        "head share": state.head_share,
        "head scale": state.head_scale,
        "head variance of clients": found.client,
        "head variance of classes": found.single,
        "head length": found.length,
    }


def _empty_memory(config: RunConfig) -> Mapping[str, Adapter]:
    limit = config.of(HyperLoraSettings).memory_limit
    if not limit:
        return {}
    directory = Path(config.run.output_dir)
    return DiskMemory(directory, limit, Adapter.tensors, Adapter.from_tensors)

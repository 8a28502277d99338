"""HyperLoRA: every client is served an adapter made for its own data distribution (after arXiv 2606.06154).

The anchor moves by the clients' movements, averaged in product space:
dW_anchor <- T_r( dW_anchor + eta sum_i w_i (dW_i - dW_i^start) ), and clients are served its running average over
rounds. Before an evaluation clients tell what their classes look like in its feature space, and each is served a head
that follows from that in closed form (:mod:`models.personalization.head_generator`), mixed with the anchor's.

Where ``hyperlora.deviations`` is on, what a client learned beyond the anchor, D_i = dW_i - dW_anchor, is remembered,
and a start holds attended deviations (:mod:`models.personalization.synthesizer`) or generated ones
(:mod:`strategies.methods.hyperlora.generator`); how it is put together can be learned from the clients' validation loss
(:mod:`strategies.methods.hyperlora.learning`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import LocalPlan
from hyperlora.messages.signature import ClientCard
from hyperlora.seeds import derive_seed
from hyperlora.storage.tensor_store import DiskMemory
from models.adapters.adapter import Adapter, AdapterSum, combine, resized, subtract
from models.adapters.gradient import NO_GRADIENT, GradientSpec
from models.lowrank.factors import Factors
from models.personalization.class_statistics import ClassStatistics
from models.personalization.corrector import correct
from models.personalization.signature import Projection, Standardizer
from models.personalization.synthesizer import initial_psi
from strategies.methods.base.server import ClientUpdate, example_weights, without
from strategies.methods.hyperlora.config import CorrectorSettings, Deviations, GeneratorSettings, HyperLoraSettings
from strategies.methods.hyperlora.generator import ServedGenerator, Teaching
from strategies.methods.hyperlora.heads import with_heads
from strategies.methods.hyperlora.learning import learn
from strategies.methods.hyperlora.probes import Candidate, apply_probe_losses, candidates, probe_starts
from strategies.methods.hyperlora.starts import generated_start, make_starts
from strategies.methods.hyperlora.state import INITIAL_METRIC, HyperLoraState, signature_vector, vector_groups

INITIAL_GENERATOR_LOGIT, INITIAL_RESIDUAL_LOGIT = -2.0, 0.0


@dataclass(frozen=True)
class HyperLoraMethod:
    """Settings of the method.

    Attributes:
        temperature, self_logit, strength: of the synthesizer, before anything is learned.
        learned: which of attention, trust, strength and gates are learned.
        learning_rate: of what is learned; 0 keeps everything as it is.
        wants: what the replies tell of the validation gradient.
        generator: the hypernetwork and how it is trained; None where it is off.
        residual_rank: rank of what the corrector carries; 0 where it is off.
        server_step: eta, step of the anchor along the averaged movements.
        shuffled: whether clients go by each other's signatures, drawn by their names (an ablation).
        memory: the empty memory: in RAM, or one that keeps most of its entries on disk.
        newcomer_share: least share of the generator in the start of a client without an entry in the memory.
        probe_clients: clients that are asked for the strength that newcomers get; 0 where that is left at 1.
        merges_own: whether clients merge their start with their own last adapter at use (Potara's gate).
        generator_inputs: numbers that a signature vector is reduced to for the generator.
        deviations: where starts hold deviations: in ``rounds`` and at use, at use alone (``serving``), or ``off``.
        scatter_rank: rank of the scatter within classes that clients send; None where no class statistics are asked.
        head_share, head_scale: share of the head from class statistics in what clients are served, and factor on the
            mixture, before they are probed.
        prior_strength: gamma of the class prior that clients add to their head; 0 where they add none.
        averaging: weight of a round's anchor in the running average that clients are served.
    """

    temperature: float = 0.3
    self_logit: float = 0.0
    strength: float = 1.0
    learning_rate: float = 0.0
    learned: Sequence[str] = ()
    gradient_spec: GradientSpec = NO_GRADIENT
    generator: ServedGenerator | None = None
    residual_rank: int = 0
    server_step: float = 1.0
    generator_inputs: int = 16
    shuffled: bool = False
    memory: Mapping[str, Adapter] = field(default_factory=dict)
    merges_own: bool = False
    newcomer_share: float = 0.0
    probe_clients: int = 0
    deviations: Deviations = "rounds"
    scatter_rank: int | None = None
    head_share: float = 0.0
    head_scale: float = 1.0
    prior_strength: float = 0.0
    averaging: float = 1.0

    @property
    def state_classes(self) -> tuple[type, ...]:
        """The dataclasses that the state is made of."""
        return (HyperLoraState, Standardizer, Projection, ClassStatistics, Adapter, Factors)

    def for_heads(self, num_heads: int) -> HyperLoraMethod:
        """Return the method whose generator serves blocks with ``num_heads`` attention heads."""
        return self if self.generator is None else replace(self, generator=replace(self.generator, num_heads=num_heads))

    def init(self, initial: Adapter) -> HyperLoraState:
        """Start from the fresh adapter with an empty memory."""
        parts = initial.parts
        psi = initial_psi(
            temperature=self.temperature,
            self_logit=self.self_logit,
            strength=self.strength,
            parts=parts,
            metric=INITIAL_METRIC,
        )
        gates = {
            "residual": torch.full((len(parts),), INITIAL_RESIDUAL_LOGIT),
            "generator": torch.full((len(parts),), INITIAL_GENERATOR_LOGIT),
        }
        groups = torch.empty(0, dtype=torch.int64)
        state = HyperLoraState(initial, self.memory, {}, None, {}, groups, psi, gates)
        return replace(state, head_share=self.head_share, head_scale=self.head_scale)

    def register(self, state: HyperLoraState, cards: Mapping[str, ClientCard]) -> HyperLoraState:
        """Fit the scale of the signature vectors to the clients known."""
        if isinstance(self.memory, DiskMemory) and not isinstance(state.memory, DiskMemory):
            state = replace(state, memory=self.memory.with_entries(state.memory))
        names = sorted(cards)
        others = sorted(names, key=lambda name: derive_seed("shuffled", name)) if self.shuffled else names
        vectors = {name: signature_vector(cards[other].signature) for name, other in zip(names, others, strict=True)}
        table, groups = torch.stack([vectors[name] for name in names]), vector_groups(cards[names[0]].signature)
        training = tuple(name for name in names if cards[name].trains)
        state = replace(
            state, standardizer=Standardizer.fit(table), signature_vectors=vectors, groups=groups, training=training
        )
        if state.projection is not None and len(cards) < 2 * state.projection.fitted:
            return state
        weights = torch.tensor(INITIAL_METRIC)[groups] / torch.bincount(groups)[groups]
        fitted = Projection.fit(table, weights.sqrt(), self.generator_inputs)
        return replace(state, projection=fitted, generator=None, generator_optimizer=None)

    def forget(self, state: HyperLoraState, client_id: str) -> HyperLoraState:
        """Drop a client's entry and signature, all that was fitted to signatures, and the generator its entry taught.

        Scales, projection and generator are made again from the other clients. The anchor, psi and the gates were
        learned with the client too and stay: its share cannot be told from the others'.
        """
        return replace(
            state,
            memory=without(state.memory, client_id),
            num_examples=without(state.num_examples, client_id),
            signature_vectors=without(state.signature_vectors, client_id),
            class_statistics=without(state.class_statistics, client_id),
            training=[name for name in state.training if name != client_id],
            standardizer=None,
            projection=None,
            generator=None,
            generator_optimizer=None,
            distilled=None,
            residual=None,
        )

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
        return make_starts(
            replace(state, anchor=base),
            cards,
            generator=self.serving(state),
            attends=bool(self.strength),
            newcomer_share=self.newcomer_share,
            as_newcomers=as_newcomers,
        )

    def statistics_rank(self, state: HyperLoraState) -> int | None:
        """Return the rank of the scatter that clients send with their class statistics; None asks for none."""
        return self.scatter_rank

    def with_statistics(self, state: HyperLoraState, statistics: Mapping[str, ClassStatistics]) -> HyperLoraState:
        """Return the state that knows what the classes of these clients look like."""
        return replace(state, class_statistics={**state.class_statistics, **statistics})

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
        return candidates(deviations=self.deviations != "off", statistics=state.head_generator is not None)

    def plan(self, state: HyperLoraState, card: ClientCard) -> LocalPlan:
        """Have all of the start trained; merged with the client's own last adapter at use where that is switched on."""
        return LocalPlan(personal=self.merges_own, gradient=self.gradient_spec)

    def alternatives(self, state: HyperLoraState, card: ClientCard) -> dict[str, Adapter]:
        """Return what the client would start from with less: the anchor alone, the generator without any memory."""
        generator = self.serving(state)
        served = {} if generator is None else {"generator": generated_start(state, card, generator)}
        return {"anchor": state.served_anchor} | served

    def serving(self, state: HyperLoraState) -> ServedGenerator | None:
        """Return the generator, or None where it is off or was not taught yet."""
        return None if state.generator is None else self.generator

    def aggregate(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> HyperLoraState:
        """Learn how starts are put together, move the anchor, remember deviations, teach the generator."""
        state = learn(
            state,
            updates,
            self.serving(state),
            spec=self.gradient_spec,
            learning_rate=self.learning_rate,
            groups=self.learned,
        )
        state = self._moved(state, updates)
        counts = {update.card.client_id: update.metrics.num_examples for update in updates}
        state = replace(
            state,
            memory=self._remembered(state, updates),
            num_examples={**state.num_examples, **counts},
            class_statistics={},
        )
        return state if self.generator is None or self.deviations == "off" else self.generator.taught(state)

    def anchor(self, state: HyperLoraState) -> Adapter:
        """Return the anchor that clients are served."""
        return state.served_anchor

    def report(self, state: HyperLoraState) -> dict[str, float]:
        """Return the learned parameters by name, for the metrics."""
        psi, parts = state.psi, state.anchor.parts
        figures = {
            "temperature": float(psi["log_temperature"].exp()),
            "self_logit": float(psi["self_logit"]),
            **{f"metric {index}": float(one.exp()) for index, one in enumerate(psi["log_metric"])},
            "newcomer_strength": state.newcomer_strength,
            **_head_figures(state),
            **{f"strength {part}": float(one) for part, one in zip(parts, psi["strength"], strict=True)},
        }
        for name, gate in state.gates.items():
            figures |= {f"{name} gate {part}": share for part, share in by_part(state, torch.sigmoid(gate)).items()}
        return figures | {f"distilled {name}": value for name, value in (state.distilled or {}).items()}

    def switched_off(self) -> list[str]:
        """Return which of head generator, synthesizer, LoRA generator, corrector and learning are off."""
        deviates = self.deviations != "off"
        on = {
            "head generator": self.scatter_rank,
            "synthesizer": deviates and self.strength,
            "LoRA generator": deviates and self.generator,
            "corrector": self.residual_rank,
            "learning": self.learning_rate,
        }
        return [name for name, setting in on.items() if not setting]

    def _remembered(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> Mapping[str, Adapter]:
        if self.deviations == "off":
            return state.memory
        rank = state.anchor.rank
        deviations = {update.card.client_id: subtract(resized(update.end, rank), state.anchor) for update in updates}
        return with_entries(state.memory, deviations)

    def _moved(self, state: HyperLoraState, updates: Sequence[ClientUpdate]) -> HyperLoraState:
        total = moved_anchor(state.anchor, updates, self.server_step)
        gates = by_part(state, torch.sigmoid(state.gates["residual"]))
        rank = state.anchor.rank
        kept, residual = correct(total, state.residual, gates, rank=rank, residual_rank=self.residual_rank)
        anchor = kept.aligned(state.anchor)
        return replace(state, anchor=anchor, average=self._average(state, anchor), residual=residual)

    def _average(self, state: HyperLoraState, anchor: Adapter) -> Adapter | None:
        """Return the running average of the anchors over rounds, in product space; None where it is the anchor."""
        if self.averaging == 1.0:
            return None
        before = state.served_anchor if state.average is not None else anchor
        mixed = combine([before, anchor], [1.0 - self.averaging, self.averaging])
        return mixed.truncated(anchor.rank).aligned(anchor)


def moved_anchor(anchor: Adapter, updates: Sequence[ClientUpdate], step: float) -> AdapterSum:
    """Return dW_anchor + step sum_i w_i (dW_i - dW_i^start), exactly: its rank is that of all terms together.

    Args:
        anchor: dW_anchor.
        updates: starts and ends of the cohort; w_i is the share of client i's samples.
        step: eta, length of the step along the averaged movement.
    """
    total = AdapterSum.of(anchor)
    for update, weight in zip(updates, example_weights(updates), strict=True):
        total.add(update.end, step * weight)
        total.add(update.start, -step * weight)
    return total


def with_entries(memory: Mapping[str, Adapter], new: Mapping[str, Adapter]) -> Mapping[str, Adapter]:
    """Return ``memory`` with the entries of ``new`` added or replaced, on disk where the memory lies there."""
    return memory.with_entries(new) if isinstance(memory, DiskMemory) else {**memory, **new}


def by_part(state: HyperLoraState, values: Tensor) -> dict[str, float]:
    """Return values (parts,) by the name of the part."""
    return dict(zip(state.anchor.parts, values.tolist(), strict=True))


def build(config: RunConfig) -> HyperLoraMethod:
    """Return the method with the settings under ``hyperlora``, ``generator`` and ``corrector``."""
    own, net = config.of(HyperLoraSettings), config.of(GeneratorSettings)
    teaching = Teaching(net.steps, net.learning_rate, net.virtual_samples, net.noise)
    generator = ServedGenerator(net.kind, net.rank, net.hidden, 1, teaching, config.seed)
    return HyperLoraMethod(
        temperature=own.temperature,
        self_logit=own.self_logit,
        strength=own.strength,
        learned=[part for part in own.learn.split(",") if part],
        learning_rate=own.learning_rate,
        gradient_spec=GradientSpec(own.gradient, own.sketch_size) if own.learning_rate else NO_GRADIENT,
        generator=None if net.kind == "off" else generator,
        residual_rank=config.of(CorrectorSettings).rank,
        server_step=own.server_step,
        generator_inputs=net.inputs,
        shuffled=own.shuffle_signatures,
        memory=_empty_memory(config),
        merges_own=own.merge_own,
        newcomer_share=net.newcomer_share,
        probe_clients=own.probe_clients,
        deviations=own.deviations,
        scatter_rank=own.statistics_rank if own.statistics and _asks_statistics(config) else None,
        head_share=own.head_share if own.statistics else 0.0,
        head_scale=own.head_scale,
        prior_strength=config.prior_strength,
        averaging=own.averaging,
    )


def _asks_statistics(config: RunConfig) -> bool:
    """Tell whether class statistics may be asked: not in a private run, and not where a text tower makes the head."""
    return not (config.privacy.signature_noise or config.privacy.adapter_noise or config.model.text_tower)


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

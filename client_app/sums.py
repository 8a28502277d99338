"""A client under secure aggregation (``privacy.mode = sums``): it finds its cluster, trains and evaluates locally.

Its answers are the terms of sums and leave the client only under masks. What it keeps between two steps stays in the
node's Flower context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from client_app.runtime import ClientRuntime
from client_app.tasks import HostedClient, Keeper, evaluate_adapter
from hyperlora.messages.evaluate import EvaluateReply, EvaluateRequest
from hyperlora.messages.movements import MOVEMENTS, moved_factor
from hyperlora.messages.plan import LocalPlan, Start
from hyperlora.messages.questions import MOST_SAMPLES, TRIED_FACTORS, Question, Sizes
from hyperlora.messages.sums import SumRequest
from models.adapters.adapter import Adapter, check_same_shapes
from models.personalization.class_statistics import ClassStatistics, at_most, compute_class_statistics
from models.personalization.head_generator import SCALES, at_scale
from models.sums.clusters import membership, moments, spread
from models.sums.group_statistics import Spread, contribution, deviations, placed
from models.sums.local_head import LocalHead, PublicHeads
from models.sums.own_head import own_head
from models.sums.shared_factor import movement

Answer = dict[str, Tensor]
Samples = tuple[Tensor, Tensor]
"""Features (n, d) and labels (n,)."""


@dataclass(frozen=True)
class SummedClient:
    """One client while it answers a step of a sum.

    Attributes:
        runtime: of this process.
        request: the step.
        keeper: of the client's adapters.
    """

    runtime: ClientRuntime
    request: SumRequest
    keeper: Keeper

    @property
    def _name(self) -> str:
        return self.request.client_id

    @property
    def _vector(self) -> Tensor:
        """What clusters are of: the mean pooled feature of the frozen backbone."""
        return self.runtime.signature(self._name).feature_mean.float()

    @property
    def _weight(self) -> float:
        """What the client counts for in an average: its samples, as a share of the most that count."""
        return min(len(self.runtime.client(self._name).train), MOST_SAMPLES) / MOST_SAMPLES

    def sizes(self) -> Sizes:
        """Return what the layout of answers follows from."""
        return sizes_of(self.runtime, self.request.clients)

    def answer(self, question: Question) -> Answer:
        """Return the client's own part of a sum; raises ProtocolError where the question is not a whole one."""
        return _ANSWERS[question.kind](self, question)

    def moments(self, question: Question) -> Answer:
        """Tell 1, the vector and its squares."""
        one, total, squares = torch.split(moments(self._vector), [1, len(self._vector), len(self._vector)])
        return {"count": one, "sum": total, "squares": squares}

    def spread(self, question: Question) -> Answer:
        """Tell how far the vector lies along the direction of its cluster."""
        return {"spread": spread(question.clusters, question.public["directions"], self._vector)}

    def members(self, question: Question) -> Answer:
        """Tell 1 and the vector at the place of its cluster."""
        one, total = torch.split(membership(question.clusters, self._vector), [1, len(self._vector)], dim=1)
        return {"counts": one, "sums": total}

    def movement(self, question: Question) -> Answer:
        """Tell how training changed the head and a factor, times what the client counts for."""
        parts, weight = self._moved(question), self._weight
        return {"weight": torch.tensor([weight]), **{name: weight * part for name, part in parts.items()}}

    def _moved(self, question: Question) -> Answer:
        """Train the head and the factor that the question names, and return how they changed."""
        start, side = self._anchor(question), moved_factor(question.kind)
        plan = LocalPlan(trains=side)
        client = HostedClient(self.runtime, self._name, self.request.server_round, plan, self.keeper)
        end = self.runtime.client_half.train(client, start, plan, self.runtime.config.train.local_steps).end
        return movement(start, end, side)

    def classes(self, question: Question) -> Answer:
        """Tell class statistics at the place of its cluster."""
        clusters = question.clusters
        own = self._statistics(question)
        return contribution(at_most(own, MOST_SAMPLES), clusters.nearest(self._vector), len(clusters.counts))

    def deviations(self, question: Question) -> Answer:
        """Tell how far its classes lie from what the clusters predict for them."""
        public, own = PublicHeads.of(question.clusters, question.groups), self._statistics(question)
        group = question.groups.groups[question.clusters.nearest(self._vector)]
        return {"deviations": deviations(public.generator, own, group, public.distances(self._vector))}

    def head_losses(self, question: Question) -> Answer:
        """Tell the validation losses with the anchor's head times every factor, for the head before round 1."""
        anchor = self._anchor(question)
        validation, heads = self._features(anchor, "validation"), [one * anchor.head for one in TRIED_FACTORS]
        used = [self.runtime.with_prior(self._name, replace(anchor, head=head)).head for head in heads]
        return {"count": torch.ones(1), "losses": torch.tensor([_loss(head, *validation) for head in used])}

    def losses(self, question: Question) -> Answer:
        """Tell the validation losses with the anchor's head and with the client's own at every scale, all fitted."""
        anchor = self._anchor(question)
        samples, validation = self._features(anchor, "train"), self._features(anchor, "validation")
        own = self._local_head(question, anchor, samples)
        heads = [anchor.head, *(own.mixed(*at_scale(*question.mixture, factor)) for factor in SCALES)]
        fitted = [self._fitted(Adapter(anchor.low_rank, head), samples) for head in heads]
        losses = [_loss(self.runtime.with_prior(self._name, one).head, *validation) for one in fitted]
        return {"count": torch.ones(1), "anchor": torch.tensor(losses[:1]), "own": torch.tensor(losses[1:])}

    def scores(self, question: Question) -> Answer:
        """Tell what the client's own start is worth on its test share, at the place of its cluster."""
        reply, clusters, group = self.served(question), question.clusters, question.scored_in
        told = {**figures_of(reply), "clients": torch.tensor(1.0), "tests": torch.tensor(float(reply.num_test))}
        return {
            name: placed(one, int(group[clusters.nearest(self._vector)]), int(group.max()) + 1)
            for name, one in told.items()
        }

    def own_start(self, question: Question) -> Adapter:
        """Return what the client starts from, made of what is public and of its own samples, before its class prior."""
        anchor, (share, scale) = self._anchor(question), question.mixture
        samples = self._features(anchor, "train")
        head = self._local_head(question, anchor, samples).mixed(share, scale) if share else anchor.head
        return self._fitted(Adapter(anchor.low_rank, head), samples)

    def _anchor(self, question: Question) -> Adapter:
        anchor = question.anchor
        check_same_shapes(anchor, self.runtime.model.fresh_adapter(self.runtime.config.seed))
        return anchor

    def _local_head(self, question: Question, anchor: Adapter, samples: Samples) -> LocalHead:
        """Return what the client makes its head of: what is public, and its class statistics."""
        spread = Spread(*map(float, question.public["between clients"]))
        public = replace(PublicHeads.of(question.clusters, question.groups), spread=spread)
        own, frequencies = _statistics(samples, len(anchor.head)), self.runtime.frequencies(self._name)
        return LocalHead.of(public, anchor.head, self._vector, own, frequencies, self.runtime.config.prior_strength)

    def _fitted(self, start: Adapter, samples: Samples) -> Adapter:
        """Return ``start`` with its head fitted to the client's samples, both before the class prior."""
        before = self.runtime.with_prior(self._name, start).head
        return Adapter(start.low_rank, start.head + own_head(before, *samples) - before)

    def _statistics(self, question: Question) -> ClassStatistics:
        anchor = self._anchor(question)
        return _statistics(self._features(anchor, "train"), len(anchor.head))

    def _features(self, anchor: Adapter, split: str) -> Samples:
        """Return features (n, d) of the samples of a split behind an adapter, and their labels (n,)."""
        found, model = self.runtime.tokens(self._name, split), self.runtime.model
        model.load(anchor)
        features = [model.features(found.tokens[batch].to(model.device)).cpu() for batch in found.batches()]
        return torch.cat([torch.zeros(0, anchor.head.shape[1] - 1), *features]), found.labels

    def served(self, question: Question) -> EvaluateReply:
        """Score the client's own start, and leave it on the site's disk."""
        start = self.own_start(question)
        self.runtime.keep_adapter(self.runtime.with_prior(self._name, start))
        return self._scored(start)

    def _scored(self, adapter: Adapter) -> EvaluateReply:
        steps = list(self.runtime.config.evaluation_steps)
        request = EvaluateRequest(self._name, self.request.server_round, steps, Start(adapter))
        return evaluate_adapter(self.runtime, request, self.keeper)


_ANSWERS: Mapping[str, Callable[[SummedClient, Question], Answer]] = {
    "moments": SummedClient.moments,
    "spread": SummedClient.spread,
    "members": SummedClient.members,
    **dict.fromkeys(MOVEMENTS.values(), SummedClient.movement),
    "classes": SummedClient.classes,
    "deviations": SummedClient.deviations,
    "losses": SummedClient.losses,
    "head losses": SummedClient.head_losses,
    "scores": SummedClient.scores,
}


def sizes_of(runtime: ClientRuntime, clients: int) -> Sizes:
    """Return what the shapes of answers follow from, for a sum over so many clients."""
    fresh, config = runtime.model.fresh_adapter(runtime.config.seed), runtime.config
    privacy = config.privacy
    return Sizes(
        runtime.model.backbone.embed_dim,
        fresh,
        len(config.evaluation_steps),
        clients,
        privacy.adapter_clip,
        privacy.least_share,
    )


def figures_of(reply: EvaluateReply) -> dict[str, Tensor]:
    """Return what an evaluation tells of a client's start, after each number of local steps."""
    figures = {
        "accuracy": reply.test_accuracy,
        "loss": reply.test_loss,
        "validation": reply.validation_loss,
        "calibration": reply.calibration_error,
    }
    return {name: torch.tensor(list(values)) for name, values in figures.items()}


def _statistics(samples: Samples, classes: int) -> ClassStatistics:
    features, labels = samples
    return compute_class_statistics(features, labels, num_classes=classes, rank=features.shape[1])


def _loss(head: Tensor, features: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy, nats; 0 where there is no sample."""
    logits = features @ head[:, :-1].mT + head[:, -1]
    return float(F.cross_entropy(logits, labels)) if len(labels) else 0.0

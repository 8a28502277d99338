"""What a client makes of the adapter it is sent with what it kept itself: the personalised rivals' client side.

``fedsa`` uses the server's A with its own B and head (FedSA-LoRA, arXiv 2410.01463). ``feddpa`` adds an adapter of its
own to the server's, (1 - lambda) dW_global + dW_own (FedDPA, arXiv 2403.19211, whose weight per instance is taken as
its mean over the client's samples). ``potara`` merges the server's adapter with its own last one (arXiv 2602.18658).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from client_app.fisher import merging_weight
from client_app.keeping import Keeper
from client_app.workplace import Workplace
from hyperlora.messages.plan import LocalPlan
from models.adapters.adapter import Adapter, combine
from models.lowrank.factors import Factors
from models.personalization.prior import add_prior

REFERENCE_SAMPLES = 5
FISHER_SAMPLES = 30


@dataclass(frozen=True)
class Composition:
    """What a client loads: an adapter to train, what is added to the frozen weights for it, and a fixed head part."""

    adapter: Adapter
    base: Adapter | None = None
    fixed_head: Tensor | None = None

    def own_part(self, end: Adapter) -> Adapter:
        """Return what is the client's own of an adapter that was trained from this composition."""
        return end if self.fixed_head is None else Adapter(end.low_rank, end.head - self.fixed_head)


def composed(workplace: Workplace, client_id: str, adapter: Adapter, plan: LocalPlan, kept: Keeper) -> Composition:
    """Return what the client loads for ``adapter``, to be scored or to be trained for itself.

    A client that kept nothing uses what it was sent.
    """
    own = kept.get(client_id)
    if plan.personal == "fedsa":
        return Composition(adapter if own is None else with_own_left(adapter, own), plan.base)
    if plan.personal == "feddpa":
        return with_own_part(adapter, own, affinity(workplace, client_id))
    if plan.personal == "potara" and own is not None:
        return Composition(merged(workplace, client_id, adapter, own), plan.base)
    return Composition(adapter, plan.base)


def with_own_left(adapter: Adapter, own: Adapter) -> Adapter:
    """Return the server's A with the client's own B and head."""
    low_rank = {kind: Factors(B=own.low_rank[kind].B, A=one.A) for kind, one in adapter.low_rank.items()}
    return Adapter(low_rank, own.head)


def with_own_part(received: Adapter, own: Adapter | None, share: float) -> Composition:
    """Return (1 - share) of the received adapter, fixed, plus the client's own part: at first ``share`` of it."""
    part = own if own is not None else received.scaled(share)
    fixed = received.scaled(1 - share)
    base = Adapter(fixed.low_rank, torch.zeros_like(fixed.head))
    return Composition(Adapter(part.low_rank, part.head + fixed.head), base, fixed.head)


def affinity(workplace: Workplace, client_id: str) -> float:
    """Return lambda in [0, 1]: the mean cosine of frozen features between validation and a few training samples.

    FedDPA weighs each test instance by its similarity to S = 5 local samples; this is the mean of that over samples of
    the client's own distribution.
    """
    train, validation = workplace.tokens(client_id, "train"), workplace.tokens(client_id, "validation")
    if not len(validation):
        return 1.0
    model = workplace.model
    near, asked = (
        torch.nn.functional.normalize(model.frozen_features(tokens.to(model.device)), dim=1)
        for tokens in (train.tokens[:REFERENCE_SAMPLES], validation.tokens)
    )
    return float((asked @ near.T).mean().clamp(0, 1))


def merged(workplace: Workplace, client_id: str, received: Adapter, own: Adapter) -> Adapter:
    """Return T_r( lambda dW_received + (1 - lambda) dW_own ) with Potara's lambda from the client's samples."""
    frequencies, gamma = workplace.frequencies(client_id), workplace.config.prior_strength
    pair = [add_prior(one, frequencies, gamma) for one in (received, own)]
    samples = workplace.tokens(client_id, "train")
    few = replace(samples, tokens=samples.tokens[:FISHER_SAMPLES], labels=samples.labels[:FISHER_SAMPLES])
    weight = merging_weight(workplace.model, few, *pair)
    return combine([received, own], [weight, 1 - weight]).truncated(received.rank).aligned(received)

"""How what a client trained leaves it: the movement is clipped, noise is added, its figures are kept back.

Client-level differential privacy by the Gaussian mechanism at the client itself (local model): replacing all of a
client's data moves a release by at most twice the clipping norm, so nobody, the server included, can tell which data it
came from. The reference of the movement is the start that this client received.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.plan import chosen
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.noise import Draw, noised
from models.adapters.adapter import Adapter


def private(
    reply: TrainReply,
    request: TrainRequest,
    *,
    clip: float,
    noise: float,
    draw: Draw,
    keeps_scores: bool = True,
) -> TrainReply:
    """Return ``reply`` as it may leave the client.

    Args:
        reply: what training made; what does not travel (``reply.up``) is left alone.
        request: holds the start.
        clip: L2 norm that the movement of all entries that travel is clipped to.
        noise: standard deviation of the noise in units of the sensitivity 2 ``clip`` (the noise multiplier).
        draw: makes the noise.
        keeps_scores: whether losses and accuracies stay at the client.

    Raises:
        ValueError: the reply tells of a gradient, which carries no noise.
        ProtocolError: training ended in numbers that are not finite; nothing of them may leave.
    """
    if reply.gradient or reply.sensitivity:
        raise ValueError("a client that adds noise to its adapter tells nothing of its gradient")
    before = {**chosen(request.start.adapter, reply.up), **_core_before(reply, request)}
    after = {**chosen(reply.end, reply.up), **reply.core}
    released = _released(before, after, clip, noise, draw)
    end = Adapter.from_tensors({name: released.get(name, value) for name, value in reply.end.tensors().items()})
    core = {kind: released[kind] for kind in reply.core}
    kept = TrainMetrics(reply.metrics.num_examples, 0.0, 0.0, 0.0, 0.0, 0.0, reply.metrics.seconds)
    return replace(reply, end=end, core=core, metrics=kept if keeps_scores else reply.metrics)


def _core_before(reply: TrainReply, request: TrainRequest) -> dict[str, Tensor]:
    return {kind: request.start.plan.core.get(kind, torch.zeros_like(core)) for kind, core in reply.core.items()}


def _released(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], clip: float, noise: float, draw: Draw
) -> dict[str, Tensor]:
    moved = {name: after[name].double() - before[name].double() for name in sorted(after)}
    length = math.sqrt(sum(float(part.square().sum()) for part in moved.values()))
    if not math.isfinite(length):
        raise ProtocolError("training ended in NaN or infinity, which cannot be clipped: the client releases nothing")
    share = min(1.0, clip / max(length, 1e-12))
    scale = 2.0 * clip * noise
    return {name: noised(before[name].double() + share * part, scale, draw) for name, part in moved.items()}

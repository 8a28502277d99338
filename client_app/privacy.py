"""How what a client trained leaves it: the movement is clipped, noise is added, its figures are kept back.

Client-level differential privacy by the Gaussian mechanism at the client itself (local model): replacing all of a
client's data moves a release by at most twice the clipping norm, so nobody, the server included, can tell which data it
came from. The reference of the movement is the start that this client received.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hyperlora.config.schema import RunConfig
from hyperlora.messages.plan import chosen
from hyperlora.messages.train import TrainMetrics, TrainReply, TrainRequest
from hyperlora.seeds import derive_seed
from models.adapters.adapter import Adapter


def noise_seed(config: RunConfig, *, secret: bool, purpose: tuple[str | int, ...]) -> int:
    """Return a seed for noise: from the operating system at a site; from the run's seed in a simulation.

    A seed that the server knows would let it take the noise off again; a simulation has nobody to hide from.
    """
    return secrets.randbits(63) if secret else derive_seed(config.seed, "noise", *purpose)


def private(reply: TrainReply, request: TrainRequest, *, clip: float, noise: float, seed: int) -> TrainReply:
    """Return ``reply`` as it may leave the client.

    Args:
        reply: what training made; what does not travel (``reply.up``) is left alone.
        request: holds the start.
        clip: L2 norm that the movement of all entries that travel is clipped to.
        noise: standard deviation of the noise in units of the sensitivity 2 ``clip`` (the noise multiplier).
        seed: of the noise.

    Raises:
        ValueError: the reply tells of the validation gradient, which carries no noise.
    """
    if reply.gradient:
        raise ValueError("a client that adds noise to its adapter tells nothing of its gradient")
    before = {**chosen(request.start.adapter, reply.up), **_core_before(reply, request)}
    after = {**chosen(reply.end, reply.up), **reply.core}
    noised = _noised(before, after, clip, noise, torch.Generator().manual_seed(seed))
    end = Adapter.from_tensors({name: noised.get(name, value) for name, value in reply.end.tensors().items()})
    core = {kind: noised[kind] for kind in reply.core}
    metrics = TrainMetrics(reply.metrics.num_examples, 0.0, 0.0, 0.0, 0.0, 0.0, reply.metrics.seconds)
    return replace(reply, end=end, core=core, metrics=metrics)


def _core_before(reply: TrainReply, request: TrainRequest) -> dict[str, Tensor]:
    return {kind: request.start.plan.core.get(kind, torch.zeros_like(core)) for kind, core in reply.core.items()}


def _noised(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], clip: float, noise: float, chance: torch.Generator
) -> dict[str, Tensor]:
    moved = {name: after[name] - before[name] for name in sorted(after)}
    length = float(torch.stack([one.double().square().sum() for one in moved.values()]).sum().sqrt())
    share = min(1.0, clip / max(length, 1e-12))
    scale = 2.0 * clip * noise
    return {
        name: before[name] + share * one + scale * torch.randn(one.shape, generator=chance)
        for name, one in moved.items()
    }

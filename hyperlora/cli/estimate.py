"""What a run will cost, measured on one batch: seconds on one core, bytes in messages, memory of what is kept."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from hyperlora.cli.processes import usable_cores

if TYPE_CHECKING:
    from client_app.runtime import ClientRuntime

BATCH = 16
FLOWER_BYTES = 2**30
"""What SuperLink, SuperExec and Ray's own processes take together; they were seen with 0.9 GiB."""
T = TypeVar("T")


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run; times are seconds on one core, extrapolated from one measured batch.

    Attributes:
        kept_bytes: size of the cached prefix activations of all samples, in memory and on disk.
        embedding: seconds to compute those activations, once.
        round_seconds: local training of one cohort.
        evaluation_seconds: one evaluation of all clients, including their local steps.
        adapter_bytes: size of one adapter in a message, uncompressed.
        process_bytes: peak memory of this process: libraries, model, all clients' samples and one batch. A client
            process of a simulation takes about as much, and so does the server.
        processes: clients that a simulation runs in parallel.
    """

    kept_bytes: int
    embedding: float
    round_seconds: float
    evaluation_seconds: float
    adapter_bytes: int
    process_bytes: int = 0
    processes: int = 1

    @property
    def memory_bytes(self) -> int:
        """Memory of a simulation: its client processes, the server's, and Flower's."""
        return (self.processes + 1) * self.process_bytes + FLOWER_BYTES

    def total_seconds(self, rounds: int, evaluations: float) -> float:
        """Return the seconds of a whole run; an evaluation of some of the clients is a part of one."""
        return self.embedding + rounds * self.round_seconds + evaluations * self.evaluation_seconds


def estimate(runtime: ClientRuntime, client_ids: Sequence[str], samples: int, cohort: int) -> Estimate:
    """Measure one batch of the first client's samples.

    Args:
        runtime: model and data.
        client_ids: the clients that can take part.
        samples: of all of these clients.
        cohort: clients in a round.

    Raises:
        DataError, BackboneError: the data cannot be read, or are not what the backbone takes.
    """
    from models.adapters.optimizers import OptimizerSpec
    from models.adapters.training import LocalTrainer, TokenSet, evaluate

    model, config = runtime.model, runtime.config.train
    train = runtime.client(client_ids[0]).train
    inputs = model.backbone.prepare(train.inputs[:BATCH])
    count, clients, scorings = len(inputs), len(client_ids), len(runtime.config.evaluation_steps)
    tokens, embedding = _timed(lambda: model.embed(inputs))
    batch = TokenSet(tokens, model.backbone.targets(inputs, train.labels[:count]))
    adapter = model.fresh_adapter(runtime.config.seed)
    model.load(adapter)
    optimizer = OptimizerSpec(config.optimizer, config.learning_rate, config.weight_decay, config.lora_plus_ratio)
    trainer = LocalTrainer(model, batch, optimizer=optimizer, batch_size=count, seed=0)
    _, step = _timed(lambda: trainer.run(1))
    _, scoring = _timed(lambda: evaluate(model, batch))
    step *= config.batch_size / count
    held_out = runtime.config.data.test_fraction + runtime.config.data.validation_fraction
    scored = scorings * scoring / count * held_out * samples
    return Estimate(
        kept_bytes=tokens.nbytes // count * samples,
        embedding=embedding / count * samples,
        round_seconds=cohort * config.local_steps * step,
        evaluation_seconds=clients * config.steps_of_use * step + scored,
        adapter_bytes=sum(tensor.nbytes for tensor in adapter.tensors().values()),
        process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        processes=min(clients, usable_cores()),
    )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what ``work`` returns at its second call, and the seconds of that; the first one warms up."""
    work()
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began

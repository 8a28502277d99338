"""What is known after a round, with figures over clients: one JSON object per round, a line of metrics.jsonl."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hyperlora.messages.evaluate import START_TRACK, EvaluateReply, EvaluateRequest
from hyperlora.messages.signature import ClientCard
from strategies.federation.transport import Answers
from strategies.methods.base.server import ClientUpdate

log = logging.getLogger(__name__)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, standard deviation and the mean of the worst tenth (at least one client) of ``values``."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    tenth = max(1, round(len(ordered) / 10))
    return {
        "mean": float(ordered.mean()),
        "std": float(ordered.std()),
        "worst_tenth": float(ordered[:tenth].mean()),
    }


@dataclass(frozen=True)
class ClientScore:
    """One client's evaluation: test accuracies (shares) after 0, after K, and after each number of local steps.

    ``chosen`` is the accuracy of whichever of the two has the lower loss on the client's validation share; settings are
    to be compared by the validation losses, never by a test figure. ``loss_by_steps`` is the cross-entropy on the test
    split in nats, per sample or, of a language model, per token; ``calibration_by_steps`` the expected calibration
    error on it; ``class_samples`` and ``class_hits`` count its samples of each class and how many of them are right as
    received, where the client tells that.
    """

    client_id: str
    domain: str
    seen: bool
    track: str
    num_test: int
    zero_step: float
    k_step: float
    chosen: float
    zero_step_loss: float
    zero_step_validation_loss: float
    k_step_validation_loss: float
    by_steps: Mapping[str, float]
    loss_by_steps: Mapping[str, float] = field(default_factory=dict)
    calibration_by_steps: Mapping[str, float] = field(default_factory=dict)
    class_samples: Sequence[int] = ()
    class_hits: Sequence[int] = ()


@dataclass
class RoundRecord:
    """One round; seconds are under ``seconds`` and nowhere else, so that two runs can be compared without them.

    Attributes:
        training: figures over the cohort, from the clients' validation shares.
        evaluation: figures over seen and unseen clients, from their test splits; empty where not evaluated.
        bytes: content sent ("down") and received ("up"), measured on the messages, by kind of message.
        failures: why a contribution is missing, by ``<phase> <client-id>``; ``round`` where the round as a whole
            changes nothing.
        missing_sums: in a run of sums why there is no sum, by kind of question.
        clipped: client-id -> share that was kept of a movement far longer than the others'.
        late: client-id -> by how many rounds its reply was late.
        drift: client-id -> how far the signature of a client whose data changed moved, in standard deviations.
        method: what the method reports of its state.
        privacy: epsilon and delta of the client that told most so far; empty where no client adds noise.
        seconds: "training" summed over clients; "waiting" from first send to last reply; "aggregating" all server
            work on adapters; "inputs", "statistics", "probing" and "evaluating" wall time.
    """

    server_round: int
    cohort: list[str] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    missing_sums: dict[str, str] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)
    method: dict[str, float] = field(default_factory=dict)
    privacy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain lists, dicts, strings and numbers."""
        return asdict(self)

    def note_answers(self, phase: str, answers: Answers[Any, Any]) -> None:
        """Note the bytes of an exchange, and whose answer is missing or unusable."""
        for name, size in ((f"{phase}_down", answers.bytes_down), (f"{phase}_up", answers.bytes_up)):
            self.bytes[name] = self.bytes.get(name, 0) + size
        self.note_failures(phase, answers.failures)

    def note_failures(self, phase: str, failures: Mapping[str, str]) -> None:
        """Note whose contribution is left out and why, in the log too."""
        self.failures |= {f"{phase} {name}": reason for name, reason in failures.items()}
        for name, reason in failures.items():
            log.warning("round %d: %s of client '%s' is left out: %s", self.server_round, phase, name, reason)

    def note_missing_sum(self, kind: str, reason: str) -> None:
        """Note why there is no sum of a kind of question, in the log too."""
        self.missing_sums[kind] = reason
        log.warning("round %d: there is no sum of '%s': %s", self.server_round, kind, reason)

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Add wall or client seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


def training_figures(updates: Sequence[ClientUpdate], *, sends_metrics: bool = True) -> dict[str, Any]:
    """Return the cohort's losses and validation accuracies before and after training, where clients send them."""
    columns = ("train_loss", "start_loss", "start_accuracy", "end_loss", "end_accuracy") if sends_metrics else ()
    figures: dict[str, Any] = {"clients": len(updates)}
    return figures | {name: spread([getattr(update.metrics, name) for update in updates]) for name in columns}


def client_score(card: ClientCard, request: EvaluateRequest, reply: EvaluateReply) -> ClientScore:
    """Return the evaluation of one client; ``request.steps`` goes from 0 to K (or is 0 alone)."""
    best = min(range(len(request.steps)), key=lambda index: (reply.validation_loss[index], index))
    accuracy = reply.test_accuracy
    return ClientScore(
        client_id=card.client_id,
        domain=card.domain,
        seen=card.trains,
        track=request.track,
        num_test=reply.num_test,
        zero_step=accuracy[0],
        k_step=accuracy[-1],
        chosen=accuracy[best],
        zero_step_loss=reply.test_loss[0],
        zero_step_validation_loss=reply.validation_loss[0],
        k_step_validation_loss=reply.validation_loss[-1],
        by_steps=_by_steps(request, accuracy),
        loss_by_steps=_by_steps(request, reply.test_loss),
        calibration_by_steps=_by_steps(request, reply.calibration_error),
        class_samples=list(reply.class_samples),
        class_hits=list(reply.class_hits),
    )


def _by_steps(request: EvaluateRequest, values: Sequence[float]) -> dict[str, float]:
    return {str(steps): value for steps, value in zip(request.steps, values, strict=True)}


def evaluation_figures(scores: Sequence[ClientScore]) -> dict[str, Any]:
    """Return figures over seen and over unseen clients, each client counted once.

    Alternatives to the start stand beside them under ``seen <track>`` and ``unseen <track>``.
    """
    groups: dict[str, list[ClientScore]] = {}
    for score in scores:
        name = "seen" if score.seen else "unseen"
        groups.setdefault(name if score.track == START_TRACK else f"{name} {score.track}", []).append(score)
    return {name: _group_figures(groups[name]) for name in sorted(groups)}


def _group_figures(group: Sequence[ClientScore]) -> dict[str, Any]:
    losses = ("zero_step_loss", "zero_step_validation_loss", "k_step_validation_loss")
    columns = ("zero_step", "k_step", "chosen", *losses)
    figures: dict[str, Any] = {column: spread([getattr(score, column) for score in group]) for column in columns}
    steps = {one: spread([score.by_steps[one] for score in group])["mean"] for one in group[0].by_steps}
    return {"clients": len(group), **figures, "by_steps": steps}

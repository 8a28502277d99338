"""One part of an ``evaluate`` message: what an adapter is worth on a client's own test split after local steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import MetricRecord, RecordDict

from hyperlora.messages.codec import (
    ProtocolError,
    checked_config,
    config_record,
    metrics_of,
    require,
    require_list,
    require_measured,
    require_steps,
)
from hyperlora.messages.plan import Start
from models.adapters.adapter import Adapter

START_TRACK = "start"


@dataclass(frozen=True)
class EvaluateRequest:
    """Asks what an adapter is worth on the client's own test split after each number of local steps.

    Attributes:
        client_id: the client.
        server_round: the round, from 1.
        steps: numbers of local steps after which to score, ascending, 0 for the adapter as received.
        start: adapter and plan.
        track: which of several adapters for the client this is: its start, or the name of an alternative.
        validation_only: leave the test split alone: the reply is on no test samples.
    """

    client_id: str
    server_round: int
    steps: Sequence[int]
    start: Start
    track: str = START_TRACK
    validation_only: bool = False

    def encode(self) -> RecordDict:
        """Return the records of this part."""
        return self.start.message(
            client_id=self.client_id,
            server_round=self.server_round,
            steps=list(self.steps),
            track=self.track,
            validation_only=self.validation_only,
        )

    @classmethod
    def decode(cls, content: RecordDict, fresh: Adapter) -> EvaluateRequest:
        """Inverse of :meth:`encode`, ``fresh`` being the adapter before round 1; raises ProtocolError."""
        config = checked_config(content)
        steps = require_list(config, "steps", int)
        if not steps:
            raise ProtocolError("entry 'steps': expected numbers of local steps, got none")
        require_steps(steps)
        return cls(
            require(config, "client_id", str),
            require(config, "server_round", int),
            sorted(steps),
            Start.decode(content, config, fresh),
            require(config, "track", str),
            require(config, "validation_only", bool),
        )


@dataclass(frozen=True)
class EvaluateReply:
    """Test accuracy and loss, validation loss, and calibration error on the test split, by numbers of steps.

    Attributes:
        class_samples: test samples of each class; empty where the client keeps label frequencies to itself.
        class_hits: how many of them are right before any local step.
    """

    client_id: str
    num_test: int
    test_accuracy: Sequence[float]
    test_loss: Sequence[float]
    validation_loss: Sequence[float]
    calibration_error: Sequence[float]
    seconds: float
    class_samples: Sequence[int] = ()
    class_hits: Sequence[int] = ()

    @classmethod
    def without_scores(cls, request: EvaluateRequest) -> EvaluateReply:
        """Return the reply of a client that took its adapter and tells nothing of it: on no test samples, all zeros."""
        nothing = [0.0] * len(request.steps)
        return cls(request.client_id, 0, nothing, nothing, nothing, nothing, 0.0)

    def encode(self) -> RecordDict:
        """Return the records of this part."""
        by_class = {"class_samples": list(self.class_samples), "class_hits": list(self.class_hits)}
        metrics = MetricRecord(
            {
                "num_test": self.num_test,
                "test_accuracy": list(self.test_accuracy),
                "test_loss": list(self.test_loss),
                "validation_loss": list(self.validation_loss),
                "calibration_error": list(self.calibration_error),
                "seconds": self.seconds,
                **(by_class if self.class_samples else {}),
            }
        )
        return RecordDict({"config": config_record(client_id=self.client_id), "metrics": metrics})

    @classmethod
    def decode(cls, content: RecordDict, request: EvaluateRequest) -> EvaluateReply:
        """Inverse of :meth:`encode`, for the reply to ``request``; raises ProtocolError."""
        client_id = require(checked_config(content), "client_id", str)
        if client_id != request.client_id:
            raise ProtocolError(f"expected client '{request.client_id}', got '{client_id}'")
        record, count = metrics_of(content), len(request.steps)
        names = ("test_accuracy", "test_loss", "validation_loss", "calibration_error")
        accuracy, loss, validation, calibration = (require_list(record, name, float, count) for name in names)
        if any(not 0 <= one <= 1 for one in (*accuracy, *calibration)):
            raise ProtocolError(f"test accuracies {accuracy} or calibration errors {calibration} are not shares")
        num_test, seconds = require(record, "num_test", int), require(record, "seconds", float)
        if num_test < 0:
            raise ProtocolError(f"num_test {num_test} is negative")
        require_measured([*loss, *validation, seconds])
        by_class = _class_counts(record, num_test, len(request.start.adapter.head))
        return cls(client_id, num_test, accuracy, loss, validation, calibration, seconds, *by_class)


def _class_counts(record: MetricRecord, num_test: int, classes: int) -> tuple[Sequence[int], Sequence[int]]:
    """Return samples and hits of each class; raises ProtocolError where they do not count ``num_test`` samples."""
    if "class_samples" not in record:
        return (), ()
    samples, hits = (require_list(record, name, int, classes) for name in ("class_samples", "class_hits"))
    fits = all(0 <= hit <= count for hit, count in zip(hits, samples, strict=True))
    if not fits or sum(samples) != num_test:
        raise ProtocolError(f"hits {hits} among {samples} test samples by class are no counts of {num_test} samples")
    return samples, hits

"""Asks clients a question and gets the sum of their answers, in five exchanges (:mod:`hyperlora.secure_sum`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.questions import Question, Sizes, layout
from hyperlora.messages.sums import SumReply, SumRequest
from hyperlora.secure_sum.bounds import least_agreed
from hyperlora.secure_sum.collector import Collector, UnmaskableError
from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.noised_vector import needed
from hyperlora.secure_sum.public_keys import PublicKeys, SecureSumError
from strategies.engine.records import RoundRecord
from strategies.federation.registrar import Registrar
from strategies.federation.transport import Answers, Exchange

MOST_TRIES = 3
"""How often a question is asked, each time without a client whose part could not be unmasked."""


@dataclass(frozen=True)
class Summed:
    """The sum of the answers to one question: by name the sums of tensors, and who is in them."""

    sums: Mapping[str, Tensor]
    clients: Sequence[str]


@dataclass
class SumChannel:
    """The one way from clients to the server of a run of sums.

    Attributes:
        registrar: who can be reached, and where.
        sizes: what the layout of answers follows from.
        timeout: seconds for each of the five exchanges.
        least: fewest clients of a sum.
        agreed: digest of the run's settings, which clients sign beside what they were asked.
        distrusted: clients whose shares did not give what hides their parts.
    """

    registrar: Registrar
    sizes: Sizes
    timeout: float
    least: int
    agreed: str
    distrusted: set[str] = field(default_factory=set)
    _asked: int = 0

    def ask(self, grid: Grid, names: Sequence[str], question: Question, record: RoundRecord) -> Summed | None:
        """Ask clients; return None where too few of them answer for a sum, which the record then says.

        Args:
            grid: Flower's.
            names: client-ids; who has fallen silent since they were drawn is waited for no second time.
            question: what is asked.
            record: of the round; has bytes and failures afterwards.
        """
        for _ in range(MOST_TRIES):
            reachable = self.registrar.roster.reachable()
            trusted = [name for name in names if name in reachable and name not in self.distrusted]
            try:
                return self._tried(grid, trusted, question, record)
            except SecureSumError as error:
                if not (isinstance(error, UnmaskableError) and error.at_fault):
                    record.note_missing_sum(question.kind, str(error))
                    break
                self.distrusted.add(error.name)
                record.note_failures("sum", {error.name: f"{error}; it is asked for no further sum"})
                if question.noised:
                    break  # clients have counted the answer, and the noise was planned for one
        return None

    def _tried(self, grid: Grid, names: Sequence[str], question: Question, record: RoundRecord) -> Summed:
        self._asked += 1
        _require(len(names), self.least)
        form = layout(question, replace(self.sizes, clients=len(names)))
        steps = _Steps(self, grid, record, f"{record.server_round}.{self._asked}.{question.kind}")
        asked = question.digest(len(names), record.server_round, self.registrar.fingerprint, self.agreed)
        return _summed(steps, names, question, Collector(form.length, asked=asked), form.decode)


@dataclass(frozen=True)
class _Steps:
    """The exchanges of one sum."""

    channel: SumChannel
    grid: Grid
    record: RoundRecord
    name: str

    def send(self, requests: Sequence[SumRequest], use: Callable[[str, SumReply], None]) -> None:
        """Send a step to clients and use every reply; who does not answer is left out of what follows."""
        channel, exchange = self.channel, Exchange[SumRequest]()
        roster = channel.registrar.roster
        for one in requests:
            exchange.add(
                one,
                node_id=roster.nodes[one.client_id],
                recipient=one.client_id,
                ttl=channel.timeout,
                server_round=one.server_round,
                backbone=channel.registrar.shipped_fingerprint,
            )

        def decode(content: RecordDict, request: SumRequest) -> SumReply:
            reply = SumReply.decode(content, request)
            try:
                use(request.client_id, reply)
            except SecureSumError as error:
                raise ProtocolError(str(error)) from error
            return replace(reply, masked=None)  # nothing of it is kept but the running sum

        self._note(exchange.ask(self.grid, channel.timeout, decode))

    def _note(self, answers: Answers[SumRequest, SumReply]) -> None:
        record = self.record
        self.channel.registrar.roster.note(answers.asked, answers.heard)
        record.note_failures("sum", answers.failures)
        for way, size in (("sums_down", answers.bytes_down), ("sums_up", answers.bytes_up)):
            record.bytes[way] = record.bytes.get(way, 0) + size

    def request(self, client_id: str, step: str) -> SumRequest:
        """Return the plain request of a step."""
        return SumRequest(client_id, self.record.server_round, self.name, step)


def _summed(
    steps: _Steps,
    names: Sequence[str],
    question: Question,
    collector: Collector,
    read: Callable[[Vector], dict[str, Tensor]],
) -> Summed:
    asked = [steps.request(name, "keys") for name in names]
    steps.send(asked, lambda name, reply: collector.take_keys(name, PublicKeys(**reply.texts)))
    public = collector.public
    _require(len(public), steps.channel.least)
    sealed: dict[str, Mapping[str, bytes]] = {}
    asked = [replace(steps.request(name, "shares"), public=public) for name in sorted(public)]
    steps.send(asked, lambda name, reply: sealed.update({name: reply.texts}))
    collector.take_shares(sealed)
    least = max(steps.channel.least, least_agreed(len(public)))
    _require(len(sealed), least)
    masked = replace(steps.request("", "masked"), clients=len(names), question=question)
    asked = [replace(masked, client_id=name, sealed=collector.sealed_for(name)) for name in sorted(sealed)]
    steps.send(asked, lambda name, reply: collector.add(name, reply.vector))
    with_noise = needed(len(public), steps.channel.sizes.share) if question.noised else 0
    _require(len(collector.added), max(least, with_noise))
    collector.check()
    agree = replace(steps.request("", "agree"), answered=collector.added, dropped=collector.dropped)
    asked = [replace(agree, client_id=name) for name in sorted(collector.added)]
    steps.send(asked, lambda name, reply: collector.take_agreement(name, reply.texts.get(name, b"")))
    _require(len(collector.agreed), least)
    last = replace(agree, step="unmask", answered=collector.signatures)
    asked = [replace(last, client_id=name) for name in sorted(collector.agreed)]
    steps.send(asked, lambda name, reply: collector.take_unmasking(name, reply.texts))
    return Summed(read(collector.unmasked()), sorted(collector.added))


def _require(count: int, least: int) -> None:
    if count < least:
        raise SecureSumError(f"{count} clients are left, and {least} is the least for a sum")

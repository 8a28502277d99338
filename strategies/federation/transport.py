"""Requests to nodes and what came back: the one place that sends messages and matches replies to them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

from flwr.app import Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from hyperlora.messages.backbone import name_backbone
from hyperlora.messages.codec import ProtocolError, count_bytes, printable
from hyperlora.storage.files import StorageError

TIMED_OUT = "no reply within the time limit"
EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Errors by which Flower says that the time for a message or its reply is over."""
SILENT = (
    *EXPIRED,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
)
"""Errors that Flower reports in place of a node that did not answer; one may answer the next time: an app does not load
while another node of the same Flower home is unpacking it."""
WRAPPING = re.compile(r"^<class '[^']*'>:<'|'>$")
"""What Flower puts around the text of an exception."""
AT_A_TIME = 8
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, DecodeError)
"""What Flower raises for a reply whose objects are no messages, after it has taken it in."""
MOST_RECORDS, LEAST_QUOTA, QUOTA = 8, 2**26, 32
"""Records of a reply, at most twice those of its request where that is more; its bytes, at most ``QUOTA`` times those
of its request where that is more."""
MOST_SENTENCE = 400
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
log = logging.getLogger(__name__)


class Request(Protocol):
    """A request of :mod:`hyperlora.messages`."""

    TYPE: ClassVar[str]

    def encode(self) -> RecordDict:
        """Return the content of the message."""


R = TypeVar("R", bound=Request)
A = TypeVar("A")


@dataclass(frozen=True)
class Sent(Generic[R]):
    """A request, the node that it went to, and who it was for: a client-id, or the node itself."""

    request: R
    node_id: int
    recipient: str


@dataclass(frozen=True)
class Answers(Generic[R, A]):
    """What came back from one exchange.

    Attributes:
        answered: requests with their decoded answers, in the order of sending.
        failures: recipient -> reason, for every one whose answer is missing or unusable.
        bytes_down: bytes of all contents sent, measured on the messages.
        bytes_up: bytes of all contents received.
        asked: the nodes that messages went to.
        heard: those of them that answered themselves, be it with an error.
        working: what is still waited for, where the exchange is not over; it counts among nothing of the above.
    """

    answered: Sequence[tuple[Sent[R], A]]
    failures: dict[str, str]
    bytes_down: int
    bytes_up: int
    asked: frozenset[int]
    heard: frozenset[int]
    working: Exchange[R] | None = None

    @classmethod
    def of_all(cls, parts: Sequence[Answers[R, A]]) -> Answers[R, A]:
        """Return what came back from several exchanges together."""
        return cls(
            [one for part in parts for one in part.answered],
            {name: reason for part in parts for name, reason in part.failures.items()},
            sum(part.bytes_down for part in parts),
            sum(part.bytes_up for part in parts),
            frozenset().union(*(part.asked for part in parts)),
            frozenset().union(*(part.heard for part in parts)),
        )

    @property
    def silent(self) -> list[int]:
        """The nodes that did not answer, in order."""
        return sorted(self.asked - self.heard)


@dataclass
class Exchange(Generic[R]):
    """Requests that are sent together; of a message that was handed out only metadata, bytes and records are kept.

    Attributes:
        sent: metadata of each message, with what was asked of whom.
        bytes_down: bytes of all contents.
        usable: replies that were decoded so far.
        sizes: bytes and records of each message.
        unsent: messages that are not handed out yet.
    """

    sent: list[tuple[Metadata, Sent[R]]] = field(default_factory=list)
    bytes_down: int = 0
    usable: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    unsent: list[Message] = field(default_factory=list)

    def add(
        self, request: R, *, node_id: int, recipient: str, ttl: float, server_round: int = 0, backbone: str = ""
    ) -> None:
        """Pack ``request`` into a message of its own.

        Args:
            request: what is asked.
            node_id: where it goes.
            recipient: who it is for, as failures name it.
            ttl: seconds for which the message and its reply are valid.
            server_round: the round.
            backbone: fingerprint of the shipped backbone that the message needs; empty where none is shipped.
        """
        content = request.encode()
        if backbone:
            name_backbone(content, backbone)
        message = Message(
            content=content, dst_node_id=node_id, message_type=request.TYPE, ttl=ttl, group_id=str(server_round)
        )
        size = count_bytes(message.content)
        self.sizes.append((size, len(message.content)))
        self.bytes_down += size
        self.sent.append((message.metadata, Sent(request, node_id, recipient)))
        self.unsent.append(message)

    @property
    def recipients(self) -> set[str]:
        """Who was asked."""
        return {sent.recipient for _, sent in self.sent}

    def carry(self, earlier: Exchange[R]) -> None:
        """Wait for what was sent in an earlier exchange as well."""
        self.sent += earlier.sent
        self.sizes += earlier.sizes

    def messages(self) -> list[Message]:
        """Hand out the messages to send; Flower puts their ids into their metadata when it sends them."""
        messages, self.unsent = self.unsent, []
        return messages

    def ask(self, grid: Grid, timeout: float, decode: Callable[[RecordDict, R], A]) -> Answers[R, A]:
        """Send everything, wait up to ``timeout`` seconds, and return what came back."""
        return self.settle(replies_as_they_come(grid, self.messages(), timeout), decode)

    def settle(
        self, replies: Iterable[Message], decode: Callable[[RecordDict, R], A], *, goes_on: bool = False
    ) -> Answers[R, A]:
        """Match ``replies`` to what was sent and decode each; a broken one costs its own recipient only.

        Who did not answer has failed, or is at work until the time of its message is over where the exchange
        ``goes_on``.
        """
        waiting = {metadata.message_id: (place, sent) for place, (metadata, sent) in enumerate(self.sent)}
        heard: set[int] = set()
        answered: list[tuple[int, Sent[R], A]] = []
        failures: dict[str, str] = {}
        bytes_up = 0
        for reply in replies:
            place, sent = waiting.pop(reply.metadata.reply_to_message_id, (0, None))
            if sent is None:
                continue
            if not is_silence(reply):
                heard.add(sent.node_id)
            size = count_bytes(reply.content) if reply.has_content() else 0
            bytes_up += size
            try:
                _require_quota(reply, size, *self.sizes[place])
                answered.append((place, sent, _decoded(reply, sent.request, decode)))
                self.usable += 1
            except ProtocolError as error:
                failures[sent.recipient] = printable(str(error), MOST_SENTENCE)
        working = self._at_work([place for place, _ in waiting.values()]) if goes_on else Exchange[R]()
        failures |= {one.recipient: TIMED_OUT for _, one in waiting.values() if one.recipient not in working.recipients}
        in_order = [(sent, answer) for _, sent, answer in sorted(answered, key=lambda entry: entry[0])]
        asked = frozenset(sent.node_id for _, sent in self.sent if sent.recipient not in working.recipients)
        failures = dict(sorted(failures.items()))
        return Answers(in_order, failures, self.bytes_down, bytes_up, asked, frozenset(heard), working)

    def _at_work(self, places: Sequence[int]) -> Exchange[R]:
        """Return what can still be answered of what was sent."""
        now = time.time()
        alive = [one for one in places if (sent := self.sent[one][0]).created_at + sent.ttl > now]
        return Exchange([self.sent[one] for one in alive], sizes=[self.sizes[one] for one in alive])


def ask_in_turn(
    exchanges: Iterable[Exchange[R]], grid: Grid, timeout: float, decode: Callable[[RecordDict, R], A]
) -> Answers[R, A]:
    """Send one exchange after the other, each made when the one before it is answered, and return all answers.

    So the messages of one exchange alone are in memory, however many clients are asked; ``timeout`` is that of each.
    """
    return Answers.of_all([exchange.ask(grid, timeout, decode) for exchange in exchanges])


def _require_quota(reply: Message, size: int, request_size: int, request_records: int) -> None:
    """Raise ProtocolError for a reply that is far larger than any answer to its request, before it is decoded."""
    most = max(LEAST_QUOTA, QUOTA * request_size)
    if size > most:
        raise ProtocolError(f"the reply has {size} bytes, at most {most} are expected for this request")
    most = max(MOST_RECORDS, 2 * request_records)
    if reply.has_content() and len(reply.content) > most:
        raise ProtocolError(f"the reply has {len(reply.content)} records, at most {most} are expected")


def _decoded(reply: Message, request: R, decode: Callable[[RecordDict, R], A]) -> A:
    if reply.has_error() and reply.error.code in EXPIRED:
        raise ProtocolError(TIMED_OUT)
    if reply.has_error():
        raise ProtocolError(error_sentence(reply))
    return decode(reply.content, request)


def is_silence(reply: Message) -> bool:
    """Tell whether Flower reports by this reply that a node did not answer."""
    return reply.has_error() and reply.error.code in SILENT


def error_sentence(reply: Message) -> str:
    """Return one line for an error reply: what the client said last, without Flower's wrapping, and the code."""
    lines = [line.strip() for line in (reply.error.reason or "").splitlines() if line.strip()]
    said = WRAPPING.sub("", lines[-1].rpartition("Message: ")[2]) if lines else "the client failed"
    return f"{printable(said)} (error code {reply.error.code})"


def replies_as_they_come(
    grid: Grid,
    messages: list[Message],
    timeout: float,
    earlier: Iterable[str] = (),
    has_enough: Callable[[], bool] = lambda: False,
) -> Iterator[Message]:
    """Send ``messages`` at once and return their replies, as they come, until all have or the time is over.

    As ``Grid.send_and_receive``, but at most ``AT_A_TIME`` replies are fetched before the first of them is used, and
    the messages are let go: ``messages`` is empty after they were sent.

    Args:
        grid: Flower's.
        messages: to send; Flower puts their ids in.
        timeout: seconds from now.
        earlier: ids of messages that were sent before and are waited for as well.
        has_enough: tells whether what was used of the replies is enough, so that nothing more is waited for.
    """
    waiting = [*earlier, *(one for one in grid.push_messages(messages) if one)]
    messages.clear()
    return _replies(grid, waiting, time.monotonic() + timeout, has_enough)


def _replies(grid: Grid, waiting: list[str], deadline: float, has_enough: Callable[[], bool]) -> Iterator[Message]:
    pause = FIRST_PAUSE
    while waiting and time.monotonic() < deadline:
        answered: set[str] = set()
        for some in (waiting[start : start + AT_A_TIME] for start in range(0, len(waiting), AT_A_TIME)):
            for reply in _pulled(grid, some):
                answered.add(reply.metadata.reply_to_message_id)
                yield reply
            if has_enough():
                return
            if time.monotonic() >= deadline:
                break
        waiting = [one for one in waiting if one not in answered]
        if waiting:
            pause = FIRST_PAUSE if answered else min(2 * pause, LONGEST_PAUSE)
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))


def _pulled(grid: Grid, message_ids: Sequence[str]) -> list[Message]:
    """Return the replies that are there; one that Flower cannot read costs itself, and what came with it."""
    try:
        return list(grid.pull_messages(message_ids))
    except StorageError:
        raise  # of the audit log, which every reply goes into: the disk is full
    except UNREADABLE as error:
        log.warning("a reply cannot be read: %s", printable(str(error)))
    found: list[Message] = []
    for one in message_ids if len(message_ids) > 1 else ():
        found += _pulled(grid, [one])
    return found

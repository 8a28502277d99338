"""How far long work is, in a line now and then; short work says nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hyperlora.clock import clock

QUIET, EVERY = 2.0, 10.0
"""Seconds after which work is spoken of for the first time, and between two lines."""
log = logging.getLogger(__name__)
T = TypeVar("T")


def pace(done: int, total: int, seconds: float) -> str:
    """Return the time that ``done`` of ``total`` took and what is left by that pace: ``after 0:25, about 0:42 left``.

    Without anything done, or with a ``total`` of 0, which is one that is not known, nothing is said of what is left.
    """
    left = f", about {clock(seconds / done * (total - done))} left" if done and total else ""
    return f"after {clock(seconds)}{left}"


def counted(items: Iterable[T], what: str, total: int = 0, *, now: Callable[[], float] = time.monotonic) -> Iterator[T]:
    """Yield ``items`` and say how many there were, once they take longer than :data:`QUIET` seconds.

    Args:
        items: pieces of the work.
        what: names it, as ``reading images``.
        total: of the items; 0 where it is not known.
        now: a clock in seconds.
    """
    if not log.isEnabledFor(logging.INFO):
        yield from items
        return
    began = now()
    due = began + QUIET
    for done, item in enumerate(items):
        if (time_now := now()) >= due:
            due = time_now + EVERY
            log.info("%s: %d%s %s", what, done, f" of {total}" if total else "", pace(done, total, time_now - began))
        yield item


@contextmanager
def told_to(say: Callable[[str], None]) -> Iterator[None]:
    """Hand the lines of :func:`counted` to ``say`` inside the block; elsewhere nobody hears them."""
    listener, level = _Listener(say), log.level
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(listener)


class _Listener(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Say one line."""
        self._say(record.getMessage())

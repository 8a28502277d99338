"""Looks for what single clients know in bytes of a server: its files, its database, the memory of its processes.

A vector is looked for by a few stretches of consecutive numbers, as floats of 4 and 8 bytes, as integers of a secure
sum, and as decimal digits. Floats count as found where they agree to ``CLOSE``, so that no bit has to be the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_app.runtime import ClientRuntime
from client_app.sums import SummedClient
from client_app.tasks import NothingKept
from hyperlora.messages.movements import MOVEMENTS
from hyperlora.messages.questions import Question, layout, public_anchor
from hyperlora.messages.sums import SumRequest
from models.adapters.adapter import Adapter
from models.personalization.class_statistics import ClassStatistics
from models.sums.shared_factor import framed, moved

CLOSE, LONG, SMALLEST, APART, STRETCHES = 1e-4, 4, 2e-3, 1e-2, 3
NUMBER = re.compile(rb"-?\d+\.\d+(?:e-?\d+)?")
AT_ONCE = 2**26


@dataclass(frozen=True)
class Secret:
    """A vector that nobody but its client may have."""

    name: str
    numbers: NDArray[Any]

    def stretches(self) -> Iterator[NDArray[Any]]:
        """Yield stretches of numbers of distinct sizes, none of them nearly zero.

        Numbers that an optimiser made of signs alone are nearly the same at all clients.
        """
        whole = self.numbers.dtype == np.uint32
        sizes = np.abs((self.numbers.view(np.int32) if whole else self.numbers).astype(np.float64))
        least, apart = (200.0, 0.0) if whole else (SMALLEST * sizes.max(), APART)
        for start in range(0, len(sizes) - LONG + 1, LONG):
            ordered = np.sort(sizes[start : start + LONG])
            if ordered[0] > least and (np.diff(ordered) > apart * ordered[-1]).all():
                yield self.numbers[start : start + LONG]


def statistics_of(runtime: ClientRuntime, name: str, anchor: Adapter) -> ClassStatistics:
    """Return what a client knows of its classes under an anchor."""
    question = Question("classes", public_anchor(anchor))
    return SummedClient(runtime, SumRequest(name, 1, "", "masked"), NothingKept())._statistics(question)


def secrets_of(
    runtime: ClientRuntime, names: Sequence[str], asked: int, start: Adapter, served: Adapter
) -> list[Secret]:
    """Return the vectors of clients in round 1: features, what they trained, what they told, sums of their classes.

    Args:
        runtime: has the data of all clients.
        names: the clients.
        asked: how many clients the first sum was asked of.
        start: the anchor of round 1.
        served: the anchor of the evaluation after it.
    """
    statistics = {name: statistics_of(runtime, name, served) for name in names}
    having = torch.stack([one.counts > 0 for one in statistics.values()]).sum(dim=0)
    return [one for name in names for one in _secrets_of(runtime, name, asked, start, statistics[name], having)]


def _secrets_of(
    runtime: ClientRuntime, name: str, asked: int, start: Adapter, own: ClassStatistics, having: Tensor
) -> list[Secret]:
    client = SummedClient(runtime, SumRequest(name, 1, "", "masked", clients=asked), NothingKept())
    start = framed(start, start, "B")
    question = Question(MOVEMENTS["B"], public_anchor(start))
    told = client.answer(question)
    end = moved(start, {part: one / told["weight"] for part, one in told.items()}, "B")
    one = next(iter(end.low_rank.values()))
    common = int((having * (own.counts > 0)).argmax())  # a class that it alone has is told by the sum, as the docs say
    vectors = {
        "features": client._vector,
        "dW": (one.B[0] @ one.A[0])[:8],
        "head": end.head,
        "movement of the head": told["head"],
        "sum of a class": own.sums[common],
        "unmasked answer": layout(question, client.sizes()).encode(told),
    }
    return [Secret(f"{what} of {name}", np.asarray(one).ravel()) for what, one in vectors.items()]


def occurs(blob: bytes, secrets: Sequence[Secret], *, aligned: bool = False) -> set[str]:
    """Return the names of secrets that stand in bytes: at any offset and as digits, or as numbers in their place."""
    known = [(one.name, list(islice(one.stretches(), 1 if aligned else STRETCHES))) for one in secrets]
    assert all(stretches for _, stretches in known), [name for name, stretches in known if not stretches]
    found = set() if aligned else _within(np.array([float(one) for one in NUMBER.findall(blob)]), known)
    for kind in (np.float32, np.float64, np.uint32):
        size = np.dtype(kind).itemsize
        for offset in range(1 if aligned else size):
            for begin in range(offset, len(blob), AT_ONCE - LONG * size):
                piece = blob[begin : begin + AT_ONCE]
                found |= _within(np.frombuffer(piece[: len(piece) // size * size], kind), known)
    return found


def _within(numbers: NDArray[Any], known: Sequence[tuple[str, list[NDArray[Any]]]]) -> set[str]:
    whole = numbers.dtype == np.uint32
    return {
        name
        for name, stretches in known
        if (stretches[0].dtype == np.uint32) == whole and any(_stands_in(numbers, one) for one in stretches)
    }


def _stands_in(numbers: NDArray[Any], stretch: NDArray[Any]) -> bool:
    near = 0.0 if numbers.dtype == np.uint32 else CLOSE
    if len(numbers) < LONG:
        return False
    places = np.flatnonzero(_agree(numbers[: 1 - LONG], stretch[0], near))
    for place, number in enumerate(stretch[1:], start=1):
        places = places[_agree(numbers[places + place], number, near)]
    return len(places) > 0


def _agree(numbers: NDArray[Any], number: Any, near: float) -> NDArray[Any]:
    """Tell which numbers lie within a share of ``number``; bytes that are no floats agree with nothing."""
    if not near:
        return numbers == number
    with np.errstate(all="ignore"):
        agreeing: NDArray[Any] = np.abs(numbers - numbers.dtype.type(number)) <= near * abs(float(number))
    return agreeing


def in_files(folders: Iterable[Path], secrets: Sequence[Secret]) -> dict[str, set[str]]:
    """Return by file the secrets that stand in it; folders are looked through."""
    files = [path for folder in folders for path in ([folder] if folder.is_file() else sorted(folder.rglob("*")))]
    found = {str(path): occurs(path.read_bytes(), secrets) for path in files if path.is_file()}
    return {path: names for path, names in found.items() if names}


def copy_memory(process: int, copy: Path) -> None:
    """Write the memory that a process may write to into a file (Linux); what comes and goes meanwhile may be missing.

    A copy takes seconds where a search takes minutes, in which the process may have ended.
    """
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory, copy.open("wb") as kept:
        for begin, end in _writable(process):
            for start in range(begin, end, AT_ONCE):
                with suppress(OSError):
                    memory.seek(start)
                    kept.write(memory.read(min(AT_ONCE, end - start)))


def in_memory(copy: Path, secrets: Sequence[Secret]) -> set[str]:
    """Return the secrets that stand in a copy of a process's memory, as numbers in their place."""
    found: set[str] = set()
    with copy.open("rb") as kept:
        while piece := kept.read(AT_ONCE):
            found |= occurs(piece, secrets, aligned=True)
    return found


def _writable(process: int) -> list[tuple[int, int]]:
    regions = [line.split() for line in Path(f"/proc/{process}/maps").read_text().splitlines()]
    bounds = [region[0].split("-") for region in regions if region[1].startswith("rw")]
    return [(int(begin, 16), int(end, 16)) for begin, end in bounds]

"""Tensors of many clients in bounded memory: what is beyond a limit lies in a file and is mapped when it is needed.

The file has no name and is gone with the process, so nothing here survives a run; that is what checkpoints are for.
The pages of a mapped tensor are the file's: they are read when touched, and the system may take them back at any time.
"""

from __future__ import annotations

import copy
import mmap
import os
import tempfile
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Generic, TypeVar

import torch
from torch import Tensor

from hyperlora.storage.files import storage_errors

ALIGNMENT, MOST_MAPPED = 64, 4096
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies among those it was stored with."""

    name: str
    begin: int
    dtype: torch.dtype
    shape: torch.Size

    def tensor_on(self, pages: mmap.mmap) -> Tensor:
        count = self.shape.numel()
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(pages, dtype=self.dtype, count=count, offset=self.begin).view(self.shape)


@dataclass(frozen=True, eq=False)
class StoredTensors:
    """Named tensors in a :class:`TensorStore`: those in RAM, and where the others lie in the file."""

    in_ram: Mapping[str, Tensor]
    file: IO[bytes] | None = None
    places: Sequence[_Place] = ()
    offset: int = 0
    length: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name; those of the file lie on fresh pages, which are let go with them."""
        if self.file is None:
            return dict(self.in_ram)
        protection = mmap.PROT_READ | mmap.PROT_WRITE  # private: nothing is copied unless written, and nothing writes
        pages = _Pages(self.file.fileno(), self.length, mmap.MAP_PRIVATE, protection, offset=self.offset)
        pages.stored = self
        return {place.name: place.tensor_on(pages) for place in self.places}


class _Pages(mmap.mmap):
    """Pages of the file; while a tensor lies on them, their place is not used again."""

    stored: StoredTensors


class TensorStore:
    """Keeps tensors in RAM up to a limit, and those that come later in a file.

    The place of tensors in the file is used again once neither their :class:`StoredTensors` nor a tensor that it
    returned is left.

    Args:
        ram_limit: bytes of tensors that stay as they are.
        directory: where the file is made, which must exist; None takes the system's directory for temporary files.
    """

    def __init__(self, *, ram_limit: int = 0, directory: Path | None = None) -> None:
        self._ram_limit, self._directory = ram_limit, directory
        self._file: IO[bytes] | None = None
        self._free: dict[int, list[int]] = defaultdict(list)
        self.ram_bytes = self.file_bytes = 0

    def put(self, tensors: Mapping[str, Tensor]) -> StoredTensors:
        """Keep ``tensors``, which must not be changed afterwards, and may be dropped where they went to the file.

        Raises:
            StorageError: the file cannot be written, for example since the disk is full.
        """
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not size or self.ram_bytes + size <= self._ram_limit:
            self.ram_bytes += size
            return StoredTensors(dict(tensors))
        with storage_errors(self._directory or tempfile.gettempdir()):
            return self._written(tensors)

    def _written(self, tensors: Mapping[str, Tensor]) -> StoredTensors:
        if self._file is None:
            self._file = _nameless_file(self._directory)
        places, end = [], 0
        for name, tensor in tensors.items():
            places.append(_Place(name, end, tensor.dtype, tensor.shape))
            end += _rounded(tensor.nbytes, ALIGNMENT)
        length = _rounded(end, mmap.ALLOCATIONGRANULARITY)
        stored = StoredTensors({}, self._file, places, self._claimed(length), length)
        for place, tensor in zip(places, tensors.values(), strict=True):
            self._file.seek(stored.offset + place.begin)
            self._file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._file.flush()
        weakref.finalize(stored, self._free[length].append, stored.offset).atexit = False
        return stored

    def _claimed(self, length: int) -> int:
        """Return the offset of a free place of so many bytes, at the end of the file where there is none."""
        if self._free[length]:
            return self._free[length].pop()
        offset, self.file_bytes = self.file_bytes, self.file_bytes + length
        if self._file is not None:
            self._file.truncate(self.file_bytes)
        return offset


class DiskMemory(Mapping[str, Entry], Generic[Entry]):
    """Client-id -> entry, iterated by sorted client-id: the entries used last stay in RAM, all of them lie in a file.

    Entries are never changed. The pages of up to ``MOST_MAPPED`` further entries stay mapped once they were read: they
    cost no memory that the system could not take back. The memory is not safe for threads.

    Args:
        directory: where the file is made.
        limit: number of entries in RAM, at least 1.
        to_tensors: returns the tensors of an entry by name.
        from_tensors: its inverse.

    Raises:
        ValueError: ``limit`` is less than 1.
    """

    def __init__(
        self,
        directory: Path,
        limit: int,
        to_tensors: Callable[[Entry], Mapping[str, Tensor]],
        from_tensors: Callable[[Mapping[str, Tensor]], Entry],
    ) -> None:
        if limit < 1:
            raise ValueError(f"expected a limit of at least 1 entry in RAM, got {limit}")
        self._store, self._limit = TensorStore(directory=directory), limit
        self._to_tensors, self._from_tensors = to_tensors, from_tensors
        self._stored: dict[str, StoredTensors] = {}
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._mapped: OrderedDict[str, Entry] = OrderedDict()

    def __getitem__(self, client_id: str) -> Entry:
        """Return the client's entry; raises KeyError where it is not remembered."""
        if client_id in self._recent:
            self._recent.move_to_end(client_id)
            return self._recent[client_id]
        if client_id not in self._mapped:
            entry = self._from_tensors(self._stored[client_id].tensors())
            _hold(self._mapped, client_id, entry, MOST_MAPPED)
        return self._mapped[client_id]

    def __iter__(self) -> Iterator[str]:
        """Go through the client-ids in sorted order."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Return the number of clients remembered."""
        return len(self._stored)

    def __contains__(self, client_id: object) -> bool:
        """Tell whether the client is remembered, without reading its entry."""
        return client_id in self._stored

    def with_entries(self, new: Mapping[str, Entry]) -> DiskMemory[Entry]:
        """Return a memory with the entries of ``new`` added or replaced; this one stays what it is.

        Raises:
            StorageError: the file cannot be written.
        """
        memory = copy.copy(self)
        memory._recent, memory._mapped = self._recent.copy(), self._mapped.copy()
        stored = {client_id: self._store.put(self._to_tensors(entry)) for client_id, entry in new.items()}
        memory._stored = dict(sorted((self._stored | stored).items()))
        for client_id, entry in new.items():
            memory._mapped.pop(client_id, None)
            _hold(memory._recent, client_id, entry, self._limit)
        return memory


def _hold(cache: OrderedDict[str, Entry], client_id: str, entry: Entry, limit: int) -> None:
    cache[client_id] = entry
    cache.move_to_end(client_id)
    if len(cache) > limit:
        cache.popitem(last=False)


def _rounded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _nameless_file(directory: Path | None) -> IO[bytes]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    descriptor, path = tempfile.mkstemp(dir=directory)
    Path(path).unlink()
    return os.fdopen(descriptor, "w+b")

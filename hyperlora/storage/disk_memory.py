"""A memory of many clients: the entries used last stay in RAM, the others lie on disk."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from hyperlora.storage.mapped_state import map_state
from hyperlora.storage.state_file import read_state, write_state
from hyperlora.storage.state_tree import StateError

KIND = "memory entry"
Entry = TypeVar("Entry")


class DiskMemory(Mapping[str, Entry], Generic[Entry]):
    """Client-id -> entry, iterated by sorted client-id.

    Every entry is written to its file when it is entered, so leaving RAM and reading never write. A memory starts
    empty: files that lie in the directory already are not read, and are replaced as their clients come. The directory
    belongs to one run; the memory is not safe for threads. Going through all entries reads from disk what is not in
    RAM, and leaves in RAM the entries of the last client-ids. Entries are never changed once entered; one that comes
    from disk has its tensors on the CPU.

    Args:
        directory: where the files lie, one for each client; None keeps everything in RAM.
        limit: number of entries in RAM, at least 1; of no effect without a directory.
        classes: the dataclasses that entries are made of.
        mapped: number of further entries whose files, as this process wrote them, stay mapped (tensors of floats only):
            they are read page by page, unchecked, and cost no memory that the system could not take back.

    Raises:
        ValueError: ``limit`` is less than 1.
    """

    def __init__(self, directory: Path | None, limit: int, classes: Sequence[type], *, mapped: int = 0) -> None:
        if limit < 1:
            raise ValueError(f"expected a limit of at least 1 entry in RAM, got {limit}")
        self.directory, self.limit, self.classes, self.mapped = directory, limit, tuple(classes), mapped
        self._names: dict[str, None] = {}
        self._recent: OrderedDict[str, Entry] = OrderedDict()
        self._pages: OrderedDict[str, Entry] = OrderedDict()

    @property
    def num_in_ram(self) -> int:
        """The number of entries held in RAM, at most ``limit`` where there is a directory."""
        return len(self._recent)

    def __getitem__(self, client_id: str) -> Entry:
        """Return the client's entry, which counts as a use.

        Raises:
            KeyError: the client is not remembered.
            StateError: its file is missing or damaged.
        """
        if client_id not in self._names:
            raise KeyError(client_id)
        if client_id in self._recent:
            self._recent.move_to_end(client_id)
            return self._recent[client_id]
        if client_id in self._pages:
            return self._pages[client_id]
        entry = self._read(client_id)
        self._hold(client_id, entry)
        return entry

    def __iter__(self) -> Iterator[str]:
        """Go through the client-ids in sorted order."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of clients remembered."""
        return len(self._names)

    def __contains__(self, client_id: object) -> bool:
        """Tell whether the client is remembered, without reading its entry."""
        return client_id in self._names

    def with_entries(self, new: Mapping[str, Entry]) -> DiskMemory[Entry]:
        """Return a memory with the entries of ``new`` added or replaced; they count as used last.

        This memory keeps its own client-ids and its own entries in RAM, but both share the files: what this one has to
        read from disk from now on is the new entry of a client in ``new``. Without a directory nothing is shared.

        Raises:
            StateError: a file cannot be written; entries before it in ``new`` are then already replaced on disk.
        """
        memory: DiskMemory[Entry] = DiskMemory(self.directory, self.limit, self.classes, mapped=self.mapped)
        memory._recent, memory._pages = self._recent.copy(), self._pages.copy()
        for client_id, entry in new.items():
            self._write(client_id, entry)
            memory._hold(client_id, entry)
            memory._map(client_id)
        memory._names = dict.fromkeys(sorted(self._names | dict.fromkeys(new)))
        return memory

    def _hold(self, client_id: str, entry: Entry) -> None:
        self._recent[client_id] = entry
        self._recent.move_to_end(client_id)
        if self.directory is not None and len(self._recent) > self.limit:
            self._recent.popitem(last=False)

    def _map(self, client_id: str) -> None:
        if self.directory is not None and self.mapped:
            self._pages[client_id] = map_state(self._path(client_id), self.classes)["entry"]
            self._pages.move_to_end(client_id)
            if len(self._pages) > self.mapped:
                self._pages.popitem(last=False)

    def _write(self, client_id: str, entry: Entry) -> None:
        if self.directory is not None:
            saved = {"client_id": client_id, "entry": entry}
            write_state(self._path(client_id), saved, kind=KIND, classes=self.classes, durable=False)

    def _read(self, client_id: str) -> Entry:
        path = self._path(client_id)
        saved: dict[str, Any] = read_state(path, self.classes, kind=KIND)
        if saved["client_id"] != client_id:
            raise StateError(f"the state file '{path}' is of client '{saved['client_id']}', expected '{client_id}'")
        entry: Entry = saved["entry"]
        return entry

    def _path(self, client_id: str) -> Path:
        """Return a file whose name is safe whatever the client-id is, and differs from every other client's."""
        if self.directory is None:
            raise StateError(f"client '{client_id}' is not in RAM and there is no directory")
        digest = hashlib.sha256(client_id.encode(errors="surrogatepass")).hexdigest()
        return self.directory / f"client-{digest}.safetensors"

"""Writes that are torn: a process that ends when half of what it was writing is in the file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class TornWrites:
    """Counts what this process writes by :mod:`hyperlora.storage.files`; for a process that ends soon.

    Args:
        torn: number of the write that is torn, from 1; 0 tears none.
        ending: the signal that the process then sends itself.
    """

    def __init__(self, torn: int = 0, ending: int = 0) -> None:
        self.count, self._torn, self._ending = 0, torn, ending

    def begin(self) -> None:
        """Stand between the storage layer and its files from now on."""
        opened = os.fdopen

        def fdopen(descriptor: int, mode: str = "r", *given: Any, **options: Any) -> Any:
            file = opened(descriptor, mode, *given, **options)
            return _File(file, self) if mode in ("wb", "ab") else file

        os.fdopen = fdopen  # type: ignore[assignment]  # in this process alone

    def keep_count(self, path: Path) -> None:
        """Write down how many writes there were."""
        path.write_text(str(self.count))

    def write(self, file: Any, content: bytes) -> int:
        """Write ``content``, or half of it and end."""
        self.count += 1
        if self.count == self._torn:
            file.write(content[: len(content) // 2])
            file.flush()
            os.kill(os.getpid(), self._ending)
        return int(file.write(content))


class _File:
    def __init__(self, file: Any, writes: TornWrites) -> None:
        self._file, self._writes = file, writes

    def write(self, content: bytes) -> int:
        return self._writes.write(self._file, content)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

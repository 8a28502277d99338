"""Tensors in a temporary file without a name, mapped when they are needed: what is too much for RAM for a while."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor


def nameless_file(directory: Path | None = None) -> IO[bytes]:
    """Return a fresh file that is gone with the process; None takes the system's directory for such files."""
    descriptor, path = tempfile.mkstemp(dir=directory)
    Path(path).unlink()
    return os.fdopen(descriptor, "w+b")


@dataclass(frozen=True)
class SavedTensor:
    """A tensor in a file."""

    file: IO[bytes]
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def write(cls, file: IO[bytes], tensor: Tensor) -> SavedTensor:
        """Write a tensor at the file's end."""
        end = file.seek(0, 2)
        offset = file.seek(-(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY)
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return cls(file, offset, tuple(tensor.shape), tensor.dtype)

    def mapped(self) -> Tensor:
        """Return the tensor on pages of the file, which are let go with it."""
        self.file.flush()
        length = math.prod(self.shape) * self.dtype.itemsize
        writable = mmap.PROT_READ | mmap.PROT_WRITE  # private: nothing is copied unless written, and nothing writes
        pages = mmap.mmap(self.file.fileno(), length, mmap.MAP_PRIVATE, writable, offset=self.offset)
        return torch.frombuffer(pages, dtype=self.dtype).view(self.shape)


class Spill:
    """Keeps named tensors in RAM up to a limit and hands out mapped copies of those beyond it.

    The pages of a mapped tensor are the file's: they are read when touched and the system may take them back
    at any time.

    Args:
        ram_limit: bytes of tensors that stay as they are.
        directory: where the file is made; None takes the system's.
    """

    def __init__(self, *, ram_limit: int, directory: Path | None = None) -> None:
        self._ram_limit, self._directory = ram_limit, directory
        self._file: IO[bytes] | None = None
        self.ram_bytes = self.disk_bytes = 0

    def keep(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return ``tensors``, or their copies on disk; those that were handed in may be dropped then."""
        size = sum(one.nbytes for one in tensors.values())
        if self.ram_bytes + size <= self._ram_limit or len({one.dtype for one in tensors.values()}) > 1:
            self.ram_bytes += size
            return tensors
        if self._file is None:
            self._file = nameless_file(self._directory)
        self.disk_bytes += size
        flat = torch.cat([one.reshape(-1) for one in tensors.values()])
        mapped = SavedTensor.write(self._file, flat).mapped()
        pieces = torch.split(mapped, [one.numel() for one in tensors.values()])
        return {name: piece.view(one.shape) for (name, one), piece in zip(tensors.items(), pieces, strict=True)}

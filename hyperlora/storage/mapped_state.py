"""State files that this process wrote itself, on the pages of the file instead of in memory."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperlora.storage.state_file import KEY, LENGTH_BYTES
from hyperlora.storage.state_tree import StateError, unpack

NAMED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def map_state(path: Path, classes: Sequence[type]) -> Any:
    """Return what :func:`~hyperlora.storage.state_file.write_state` wrote, its float tensors on the file's pages.

    Nothing is checked, and nothing is read before it is touched. The value stays what it is when the file is replaced
    or removed; a file that is written to in place would change it.

    Raises:
        StateError: the file is missing, or holds another dtype or a class that is not among ``classes``.
    """
    try:
        with path.open("rb") as file:
            writable = mmap.PROT_READ | mmap.PROT_WRITE  # private: nothing is copied unless written, and nothing writes
            pages = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, writable)
    except OSError as error:
        raise StateError(f"the state file '{path}' cannot be mapped: {error.strerror or error}") from error
    begin = LENGTH_BYTES + int.from_bytes(pages[:LENGTH_BYTES], "little")
    header = json.loads(pages[LENGTH_BYTES:begin])
    description = json.loads(header.pop("__metadata__")[KEY])["description"]
    return unpack({name: _mapped(pages, entry, begin) for name, entry in header.items()}, description, classes)


def _mapped(pages: mmap.mmap, entry: Mapping[str, Any], begin: int) -> Tensor:
    dtype, (first, last) = NAMED_DTYPES.get(entry["dtype"]), entry["data_offsets"]
    if dtype is None:
        raise StateError(f"tensors of {entry['dtype']} cannot be mapped")
    if first == last:
        return torch.empty(entry["shape"], dtype=dtype)
    count = (last - first) // dtype.itemsize
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=begin + first).view(entry["shape"])

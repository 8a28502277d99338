"""What a site keeps on its own disk between messages: caches that cost time to make again, and its last adapter.

In deployment every message is served by a fresh process, so what is worth keeping lies under
``state-dir/client-id``, a folder that only its owner may enter. It may be deleted at any time: what is missing,
damaged, of another version or made from other data or another backbone is made again.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import torch
from safetensors import SafetensorError
from torch import Tensor

from client_app.training import TokenSet
from hyperlora.config.schema import ConfigError
from hyperlora.data.federation import Samples
from hyperlora.storage.state import StateError, read_state, write_state
from models.personalization.signature import Signature

VERSION = 2
"""Count up when a cached value would come out differently from the same key."""
PRIVATE = 0o700
ADAPTER = "adapter"
KEPT = (Signature, TokenSet)
Kept = TypeVar("Kept", Signature, TokenSet)
log = logging.getLogger(__name__)


class SiteState:
    """The folder of one client at its site.

    Args:
        state_dir: the site's folder for all its clients; made where it is missing.
        client_id: names the folder inside it.

    Raises:
        ConfigError: the folder cannot be made, or cannot be made private.
    """

    def __init__(self, state_dir: Path, client_id: str) -> None:
        self.folder = state_dir / client_id
        try:
            self.folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            self.folder.chmod(PRIVATE)
        except OSError as error:
            raise ConfigError(f"the state folder '{self.folder}' cannot be made private: {error.strerror}") from error

    def cached(self, name: str, key: str, make: Callable[[], Kept]) -> Kept:
        """Return what was kept under ``name`` for ``key``, else make and keep it, in place of what was there."""
        path = self.folder / f"{name}.state"
        try:
            known, value = read_state(path, KEPT, kind="site", version=VERSION)
            if known == key:
                kept: Kept = value
                return kept
        except StateError as error:
            if path.exists():
                log.warning("made again: %s", error)
        value = make()
        try:
            write_state(path, (key, value), KEPT, kind="site", version=VERSION, durable=False)
        except StateError as error:
            log.warning("not kept: %s", error)
        return value

    def keep_adapter(self, save: Callable[[Path], None]) -> None:
        """Let ``save`` write a PEFT directory and make ``adapter`` point to it; a reader finds the old one or the new.

        A disk that is full costs the copy, not the round.
        """
        fresh = self.folder / f"{ADAPTER}-{uuid4().hex}"
        link = self.folder / f"{fresh.name}.link"
        try:
            save(fresh)
            link.symlink_to(fresh.name)
            link.replace(self.folder / ADAPTER)
        except (OSError, SafetensorError) as error:
            log.warning("the adapter is not kept in '%s': %s", self.folder, error)
        current = (self.folder / ADAPTER).resolve()
        for old in self.folder.glob(f"{ADAPTER}-*"):
            if old.resolve() != current:
                _remove(old)


def digest_of(samples: Samples) -> str:
    """Return a hash of inputs and labels: shapes, types and every byte."""
    digest = hashlib.blake2b(digest_size=16)
    inputs = samples.inputs
    if not isinstance(inputs, Tensor):
        digest.update(repr(list(inputs)).encode())
    for tensor in (inputs, samples.labels) if isinstance(inputs, Tensor) else (samples.labels,):
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def cache_key(*parts: object) -> str:
    """Return a short hash of everything that a cached value depends on."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)

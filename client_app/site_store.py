"""What a site keeps on its own disk between messages, in a folder of the client under the site's ``state-dir``.

In deployment every message is served by a fresh process. Kept are caches that cost time to make again, the client's
last adapter, and backbones that the server shipped (``model.ship``). The folder is its owner's alone, and all but the
ledger of releases may be deleted at any time: what is missing, damaged, of another version or made from other data or
another backbone is made or fetched again.
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

from hyperlora.config.schema import ConfigError
from hyperlora.data.federation import Samples
from hyperlora.seeds import content_key
from hyperlora.storage.files import StorageError, private_directory
from hyperlora.storage.state import StateError, read_state, write_state
from models.adapters.training import TokenSet
from models.personalization.signature import Signature

VERSION = 2
"""Count up when a cached value would come out differently from the same key."""
CACHED = (Signature, TokenSet)
ADAPTER = "adapter"
Cached = TypeVar("Cached", Signature, TokenSet)
log = logging.getLogger(__name__)


class SiteStore:
    """The folder of one client at its site.

    Args:
        state_dir: the site's folder for all its clients; made where it is missing.
        client_id: names the folder inside it.

    Raises:
        ConfigError: the folder cannot be made, or cannot be made private.
    """

    def __init__(self, state_dir: Path, client_id: str) -> None:
        try:
            self.folder = private_directory(state_dir / client_id)
        except StorageError as error:
            raise ConfigError(f"the state folder {error}") from error

    def cached(self, name: str, key: str, make: Callable[[], Cached], *, release: bool = False) -> Cached:
        """Return what was kept under ``name`` for ``key``, else make and keep it, in place of what was there.

        Raises:
            StateError: a ``release``, which carries noise that must be drawn once only, cannot be kept.
        """
        path = self.folder / f"{name}.state"
        try:
            known, value = read_state(path, CACHED, kind="site", version=VERSION)
            if known == key:
                kept: Cached = value
                return kept
        except StateError as error:
            if path.exists():
                log.warning("made again: %s", error)
        value = make()
        try:
            write_state(path, (key, value), CACHED, kind="site", version=VERSION, durable=release)
        except StateError as error:
            if release:
                raise
            log.warning("not kept: %s", error)
        return value

    def keep_adapter(self, save: Callable[[Path], None]) -> None:
        """Let ``save`` write a PEFT directory and make ``adapter`` point to it; a reader finds the old one or the new.

        A disk that is full costs the copy, not the round.
        """
        fresh = self.folder / f"{ADAPTER}-{uuid4().hex}"
        link = fresh.with_suffix(".link")
        try:
            save(fresh)
            link.symlink_to(fresh.name)
            link.replace(self.folder / ADAPTER)
        except (OSError, SafetensorError) as error:
            log.warning("the adapter is not kept in '%s': %s", self.folder, error)
        current = (self.folder / ADAPTER).resolve()
        for old in (path for path in self.folder.glob(f"{ADAPTER}-*") if path.resolve() != current):
            if old.is_symlink():
                old.unlink()
            else:
                shutil.rmtree(old, ignore_errors=True)


def digest_of(samples: Samples) -> str:
    """Return a hash of inputs and labels: shapes, types and every byte."""
    digest = hashlib.blake2b(digest_size=16)
    tensors = [samples.labels]
    if isinstance(samples.inputs, Tensor):
        tensors.insert(0, samples.inputs)
    else:
        digest.update(repr(list(samples.inputs)).encode())
    for tensor in tensors:
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cache_key(*parts: object) -> str:
    """Return a short hash of everything that a cached value depends on."""
    return content_key(repr(parts).encode())

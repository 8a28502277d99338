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

from client_app.site import Site
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.data.federation import Samples
from hyperlora.messages.backbone import BackbonePart
from hyperlora.messages.codec import ProtocolError
from hyperlora.seeds import content_key
from hyperlora.storage.files import StorageError, append_bytes, private_directory
from hyperlora.storage.state import StateError, read_state, write_state
from models.adapters.training import TokenSet
from models.personalization.signature import Signature

VERSION = 2
"""Count up when a cached value would come out differently from the same key."""
CACHED = (Signature, TokenSet)
ADAPTER, BACKBONES = "adapter", "backbones"
Cached = TypeVar("Cached", Signature, TokenSet)
log = logging.getLogger(__name__)


class BackboneMissingError(ProtocolError):
    """The server's backbone is not on the disk of a site that keeps what it is shipped."""

    def __init__(self, client_id: str, fingerprint: str) -> None:
        super().__init__(f"the backbone {fingerprint[:12]} of the server is not on the disk of client '{client_id}'")
        self.client_id = client_id


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


class BackboneStore:
    """A folder of files ``<fingerprint>-<SHA-256 of the file>.safetensors``: a name says what must be in the file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, fingerprint: str) -> Path | None:
        """Return the backbone's file, or None where there is none; a damaged one is removed."""
        for path in sorted(self._folder.glob(f"{fingerprint}-*.safetensors")):
            if _checksum(path) == path.stem.rpartition("-")[2]:
                return path
            log.warning("the shipped backbone in '%s' is damaged and is fetched again", path)
            path.unlink()
        return None

    def add(self, part: BackbonePart) -> int:
        """Append a part and return how many bytes are there; after the last one the file is checked and in its place.

        Raises:
            ProtocolError: the part does not follow the one before, or the whole is not what its checksum says.
            ConfigError: it cannot be written.
        """
        growing = self._folder / f"{part.fingerprint}-{part.checksum}.part"
        try:
            private_directory(self._folder)
            there = growing.stat().st_size if part.offset and growing.exists() else 0
            if there != part.offset:
                raise ProtocolError(f"expected the backbone's bytes from {there} on, got those from {part.offset} on")
            if not part.offset:
                growing.unlink(missing_ok=True)
            append_bytes(growing, part.data)
            received = part.offset + len(part.data)
            if received == part.size:
                _finish(growing, part.checksum)
        except (OSError, StorageError) as error:
            raise ConfigError(f"the backbone cannot be kept in '{self._folder}': {error}") from error
        return received


def backbone_store(config: RunConfig, site: Site | None) -> BackboneStore | None:
    """Return where a node keeps shipped backbones; None where it has its own or has no place."""
    if not config.model.ship or site is None or site.weights or not site.state_dir:
        return None
    return BackboneStore(SiteStore(Path(site.state_dir), site.client_id).folder / BACKBONES)


def with_shipped(config: RunConfig, site: Site | None, fingerprint: str) -> Site | None:
    """Return the site with the shipped backbone for its weights, where it keeps one.

    Raises:
        BackboneMissingError: it keeps them, and has not got this one.
    """
    store = backbone_store(config, site)
    if store is None or site is None:
        return site
    path = store.find(fingerprint) if fingerprint else None
    if path is None:
        raise BackboneMissingError(site.client_id, fingerprint)
    return site.model_copy(update={"weights": str(path)})


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


def _finish(growing: Path, checksum: str) -> None:
    if _checksum(growing) != checksum:
        growing.unlink()
        raise ProtocolError("the backbone arrived damaged: its checksum does not match")
    growing.replace(growing.with_suffix(".safetensors"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

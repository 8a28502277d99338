"""The backbones that a server shipped (``model.ship``), kept on the disk of a site and checked before they are used."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from client_app.site import Site
from client_app.site_store import SiteStore
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.backbone import BackbonePart
from hyperlora.messages.codec import ProtocolError
from hyperlora.storage.files import StorageError, append_bytes, private_directory

BACKBONES = "backbones"
log = logging.getLogger(__name__)


class BackboneMissingError(ProtocolError):
    """The server's backbone is not on the disk of a site that keeps what it is shipped."""

    def __init__(self, client_id: str, fingerprint: str) -> None:
        super().__init__(f"the backbone {fingerprint[:12]} of the server is not on the disk of client '{client_id}'")
        self.client_id = client_id


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


def _finish(growing: Path, checksum: str) -> None:
    if _checksum(growing) != checksum:
        growing.unlink()
        raise ProtocolError("the backbone arrived damaged: its checksum does not match")
    growing.replace(growing.with_suffix(".safetensors"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

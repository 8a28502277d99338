"""What the frozen prefix makes of samples, kept on this machine between runs, resumes and `personalize`.

Files lie by content: a key is a hash of the samples and of everything that their embedding depends on, so nothing is
ever out of date. The folder is its owner's alone and may be deleted at any time. A site keeps its own
(:mod:`client_app.site_store`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hyperlora.storage.files import CACHE, OFF, StorageError, cache_directory, private_directory
from hyperlora.storage.state import StateError, read_state, write_state
from models.adapters.training import TokenSet

VERSION = 1
"""Count up when the same key would give other embeddings."""
log = logging.getLogger(__name__)


class EmbeddingCache:
    """Embeddings on disk, the ones used last up to a size.

    Args:
        folder: where they lie; it must exist.
        limit: bytes that all files may have together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    def cached(self, key: str, make: Callable[[], TokenSet]) -> TokenSet:
        """Return what was kept under ``key``, else make and keep it; a disk that is full costs the copy only."""
        path = self._folder / f"{key}.state"
        if path.exists():
            try:
                kept: TokenSet = read_state(path, (TokenSet,), kind="embedding", version=VERSION)
                path.touch()
            except (OSError, StateError) as error:
                log.warning("made again: %s", error)
            else:
                return kept
        value = make()
        self._keep(path, value)
        return value

    def _keep(self, path: Path, value: TokenSet) -> None:
        if value.tokens.nbytes + value.labels.nbytes > self._limit:
            return
        try:
            write_state(path, value, (TokenSet,), kind="embedding", version=VERSION, durable=False)
        except StateError as error:
            log.warning("not kept: %s", error)
        self._evict()

    def _evict(self) -> None:
        """Remove the files that were used longest ago until the others fit; another process may do so as well."""
        entries = []
        for path in self._folder.glob("*.state"):
            with suppress(OSError):
                entries.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        size = sum(entry[1] for entry in entries)
        for _, length, path in sorted(entries):
            if size <= self._limit:
                return
            with suppress(OSError):
                path.unlink()
            size -= length


def open_embedding_cache(megabytes: int) -> EmbeddingCache | None:
    """Return the cache of this machine with at most so many MiB; None where it is off or has no place."""
    if not megabytes or os.environ.get(CACHE) == OFF:
        return None
    try:
        return EmbeddingCache(private_directory(cache_directory() / "embeddings"), megabytes * 2**20)
    except StorageError as error:
        log.warning("embeddings are not kept: %s", error)
        return None

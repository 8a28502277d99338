"""What a client keeps of its own between messages and never sends: one adapter per client."""

from __future__ import annotations

from typing import Protocol

from models.adapters.adapter import Adapter


class Keeper(Protocol):
    """Where the clients of a node keep an adapter of their own."""

    def get(self, client_id: str) -> Adapter | None:
        """Return what the client kept, or None."""

    def put(self, client_id: str, adapter: Adapter) -> None:
        """Keep ``adapter`` in place of what the client kept before."""


class NothingKept:
    """A keeper that forgets: for clients of methods without anything of their own."""

    def get(self, client_id: str) -> None:
        """Return None."""
        return

    def put(self, client_id: str, adapter: Adapter) -> None:
        """Do nothing."""

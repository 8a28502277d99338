"""Which node key may speak for which client: the allow-list that the server's operator keeps.

A JSON file, ``{"version": 1, "clients": {client-id: {"key": "ecdsa-sha2-nistp384 ...", "valid-until": time}}}``,
written by ``hyperlora certs allow`` and named by ``federation.allowed-clients``. The SuperLink has every node prove
that it holds its key; this list says whose key it is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

VERSION = 1
log = logging.getLogger(__name__)


class AllowListError(ValueError):
    """An allow-list cannot be used; the message is one sentence."""


@dataclass(frozen=True)
class Permission:
    """A client's node key in OpenSSH's one-line form (without a comment), and when it ends (with a time zone)."""

    key: str
    valid_until: datetime


@dataclass(frozen=True)
class AllowList:
    """Client-id -> permission."""

    clients: Mapping[str, Permission]

    @classmethod
    def read(cls, path: Path) -> AllowList:
        """Read the file; raises AllowListError where it is missing or malformed."""
        try:
            content = json.loads(_content(path))
            if content["version"] != VERSION:
                raise AllowListError(f"the allow-list '{path}' is of version {content['version']}, expected {VERSION}")
            return cls({name: _permission(entry) for name, entry in content["clients"].items()})
        except AllowListError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise AllowListError(
                f"the allow-list '{path}' is malformed ({type(error).__name__}: {error}); "
                "write it with 'hyperlora certs allow'"
            ) from error

    def as_text(self) -> str:
        """Return the file's content, clients in order."""
        clients = {
            name: {"key": one.key, "valid-until": one.valid_until.isoformat()}
            for name, one in sorted(self.clients.items())
        }
        return json.dumps({"version": VERSION, "clients": clients}, indent=2) + "\n"

    def objection(self, client_id: str, public_key: bytes, now: datetime) -> str | None:
        """Return why the node that holds ``public_key`` (PEM, as Flower tells it) may not be ``client_id``, or None."""
        own, permission = node_key(public_key), self.clients.get(client_id)
        if permission is None:
            return f"it claims client '{client_id}', which is not on the allow-list"
        if own != permission.key:
            holder = next((name for name, one in self.clients.items() if one.key == own), None)
            whose = f"the key of client '{holder}'" if holder else "a key that is not on the allow-list"
            return f"it claims client '{client_id}', but it holds {whose}"
        if now >= permission.valid_until:
            return f"the permission of client '{client_id}' expired at {permission.valid_until.isoformat()}"
        return None


class AllowListFile:
    """An allow-list that follows its file while a run goes on; one that becomes unusable is logged and not taken over.

    Raises:
        AllowListError: the file cannot be used at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._text, self._list = path, _content(path), AllowList.read(path)

    def objection(self, client_id: str, public_key: bytes, now: datetime) -> str | None:
        """Return why the node may not be ``client_id`` by what the file says now, or None."""
        try:
            text = _content(self._path)
            if text != self._text:
                self._text = text
                self._list = AllowList.read(self._path)
        except AllowListError as error:
            log.warning("%s; the one before stays in force", error)
        return self._list.objection(client_id, public_key, now)


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise AllowListError(f"the allow-list '{path}' cannot be read: {error}") from error


def node_key(public_key: bytes) -> str | None:
    """Return a PEM key in OpenSSH's one-line form; None where it is none."""
    try:
        key: Any = load_pem_public_key(public_key)
        return one_line_key(key)
    except (ValueError, UnsupportedAlgorithm):
        return None


def one_line_key(key: Any) -> str:
    """Return a public key of the ``cryptography`` library in OpenSSH's one-line form, without a comment."""
    text: bytes = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return text.decode("ascii")


def _permission(entry: Mapping[str, str]) -> Permission:
    valid_until = datetime.fromisoformat(entry["valid-until"])
    if valid_until.tzinfo is None:
        raise ValueError(f"'{entry['valid-until']}' has no time zone")
    return Permission(one_line_key(load_ssh_public_key(entry["key"].encode("ascii"))), valid_until)

"""Whom a site takes part in a sum with: clients whose own sites signed their public keys.

The server passes the keys of all participants on, and one that does not keep to the protocol could add keys of its own.
Where the node config names ``peers``, an allow-list that did not come through the server, and ``peer-key``, this site
signs the keys of its client (ECDSA on P-384) and refuses every sum in which a participant's are not signed with the key
that the list has for its client-id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client_app.site import Site
from hyperlora.config.section import ConfigError
from hyperlora.secure_sum.public_keys import PublicKeys, SecureSumError, vouched_for
from hyperlora.storage.allow_list import AllowList, AllowListError, one_line_key

SCHEME = ECDSA(SHA384())


@dataclass(frozen=True)
class Peers:
    """The clients that a site takes part in sums with.

    Attributes:
        allowed: client-id -> its site's public key, of all of them.
        private: this site's key.
        run_id: Flower's id of the run; a signature is for one sum of one run.
    """

    allowed: AllowList
    private: EllipticCurvePrivateKey
    run_id: int

    def signed(self, client_id: str, sum_name: str, own: PublicKeys) -> PublicKeys:
        """Return the keys of this site's client in a sum, with the site's signature under them."""
        return replace(own, vouched=self.private.sign(vouched_for(self.run_id, sum_name, client_id, own), SCHEME))

    def check(self, sum_name: str, public: Mapping[str, PublicKeys]) -> None:
        """Check the keys of all participants of a sum.

        Raises:
            SecureSumError: a client is not on the list, its permission is over, or its site did not sign its keys.
        """
        now = datetime.now(UTC)
        for name, one in public.items():
            permission = self.allowed.clients.get(name)
            if permission is None or now >= permission.valid_until:
                raise SecureSumError(f"'{name}' is not, or no longer, on this site's list of peers")
            key = load_ssh_public_key(permission.key.encode("ascii"))
            if not _signed(key, one.vouched, vouched_for(self.run_id, sum_name, name, one)):
                raise SecureSumError(f"the keys of '{name}' are not signed by the site that this site knows it by")


def read_peers(site: Site | None, run_id: int) -> Peers | None:
    """Return the peers of a site; None in a simulation, and where the node config names none.

    Raises:
        ConfigError: the list or the key cannot be read, or the key is not the one that the list has for this client.
    """
    if site is None or not site.peers:
        return None
    try:
        allowed, private = AllowList.read(Path(site.peers)), _private_key(Path(site.peer_key))
    except (AllowListError, OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"'peers' and 'peer-key' of the node config cannot be used: {error}") from error
    own = allowed.clients.get(site.client_id)
    if own is None or own.key != one_line_key(private.public_key()):
        raise ConfigError(
            f"'{site.peer_key}' (peer-key) is not the key that '{site.peers}' (peers) has for '{site.client_id}'"
        )
    return Peers(allowed, private, run_id)


def _private_key(path: Path) -> EllipticCurvePrivateKey:
    found = load_ssh_private_key(path.read_bytes(), password=None)
    if not isinstance(found, EllipticCurvePrivateKey):
        raise ConfigError(f"'{path}' (peer-key) is no elliptic-curve key; make one with 'hyperlora certs node'")
    return found


def _signed(key: object, signature: bytes, text: bytes) -> bool:
    if not isinstance(key, EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, text, SCHEME)
    except InvalidSignature:
        return False
    return True

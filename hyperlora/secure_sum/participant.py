"""A client's half of a secure sum (Bonawitz et al. 2017, "Practical secure aggregation", figure 4).

The server leads through four steps: public keys, sealed shares, the masked vector, and shares that take the masks off.
A client hides its vector behind a mask of its own and one with every other client, which cancel in the sum. It refuses
whatever would let a server take the masks off a single vector: a sum over too few, both kinds of shares of one client,
a second question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from cryptography.fernet import InvalidToken

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.fixed_point import Vector


class SecureSumError(ValueError):
    """What a party will not do, in one sentence."""


@dataclass(frozen=True)
class PublicKeys:
    """What all may know of a client: public keys for masks and for what is sealed for it, and its seed's digest."""

    masks: bytes
    seals: bytes
    seed: bytes

    def as_hex(self) -> dict[str, str]:
        """Return all three in hexadecimal digits, by name."""
        return {name: value.hex() for name, value in asdict(self).items()}

    @classmethod
    def from_hex(cls, told: Mapping[str, str]) -> PublicKeys:
        """Inverse of :meth:`as_hex`; raises TypeError or ValueError."""
        return cls(**{name: bytes.fromhex(value) for name, value in told.items()})


def least_answers(participants: int) -> int:
    """Return how many shares give a secret: more than half, so that no two groups of clients are enough each."""
    return participants // 2 + 1


@dataclass
class Participant:
    """One client in one sum.

    Attributes:
        name: its client-id.
        least: fewest clients of a sum that it takes part in.
        step: of the protocol, so that none is made twice.
        private: its private keys, for masks and for seals.
        seed: of its own mask.
        public: public keys of all participants.
        shares: by participant the shares that it holds for it: of the seed and of the private key for masks.
    """

    name: str
    least: int
    step: str = "keys"
    private: tuple[bytes, bytes] = (b"", b"")
    seed: bytes = b""
    public: dict[str, PublicKeys] = field(default_factory=dict)
    shares: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)

    def keys(self) -> PublicKeys:
        """Step 1: return fresh public keys."""
        self._goes_on("keys", "shares")
        masks, seals, self.seed = keys.key_pair(), keys.key_pair(), keys.fresh_seed()
        self.private = (masks[0], seals[0])
        return PublicKeys(masks[1], seals[1], keys.digest(self.seed))

    def sealed_shares(self, public: Mapping[str, PublicKeys]) -> dict[str, bytes]:
        """Step 2: return, sealed for every other participant, its shares of this client's seed and private key.

        Raises:
            SecureSumError: there are too few participants, or the keys are not everybody's own.
        """
        self._goes_on("shares", "masked")
        self._checked(public)
        self.public = dict(sorted(public.items()))
        threshold, count = least_answers(len(public)), len(public)
        of_seed, of_key = (keys.split_secret(one, threshold, count) for one in (self.seed, self.private[0]))
        mine = dict(zip(self.public, zip(of_seed, of_key, strict=True), strict=True))
        self.shares = {self.name: mine.pop(self.name)}
        return {other: keys.seal(self._seal_key(other), _packed(self.name, *pair)) for other, pair in mine.items()}

    def _checked(self, public: Mapping[str, PublicKeys]) -> None:
        if len(public) < self.least:
            raise SecureSumError(f"a sum over {len(public)} clients tells too much of each: {self.least} is the least")
        if self.name not in public:
            raise SecureSumError("the sum is one that this client has no part in")
        every = [key for one in public.values() for key in (one.masks, one.seals)]
        if len(set(every)) != len(every):
            raise SecureSumError("two participants have the same public key")

    def masked(self, sealed: Mapping[str, bytes], vector: Vector) -> Vector:
        """Step 3: return the vector behind its own mask and one with every participant that sent shares.

        Args:
            sealed: by participant what it sealed for this client; what cannot be opened counts as no share.
            vector: what this client adds to the sum.

        Raises:
            SecureSumError: too few participants are left, or one is not of the sum.
        """
        self._goes_on("masked", "unmask")
        for other, text in sealed.items():
            self.shares[other] = self._opened(other, text)
        self._enough(len(self.shares))
        total = vector + keys.mask(self.seed, len(vector))
        for other in self.shares:
            if other != self.name:
                pair = keys.mask(keys.agreed_key(self.private[0], self.public[other].masks, "mask"), len(vector))
                total = total + pair if self.name < other else total - pair
        return total

    def _opened(self, other: str, text: bytes) -> tuple[bytes, bytes]:
        if other not in self.public or other == self.name:
            raise SecureSumError(f"'{other}' is no other participant of the sum")
        try:
            return _unpacked(other, keys.unseal(self._seal_key(other), text))
        except (InvalidToken, ValueError, KeyError, TypeError):
            return b"", b""

    def unmasking(self, answered: Sequence[str], dropped: Sequence[str]) -> dict[str, bytes]:
        """Step 4: return a share of the seed of who answered, and of the private key of who did not.

        Raises:
            SecureSumError: the two are not everybody once, this client is not among the first, or they are too few.
        """
        self._goes_on("unmask", "done")
        if sorted([*answered, *dropped]) != sorted(self.shares):
            raise SecureSumError("who answered and who did not must be every participant, and nobody twice")
        if self.name not in answered:
            raise SecureSumError("this client answered, and is said not to have")
        self._enough(len(answered))
        of_seeds = {other: self.shares[other][0] for other in answered}
        return of_seeds | {other: self.shares[other][1] for other in dropped}

    def _enough(self, count: int) -> None:
        least = max(self.least, least_answers(len(self.public)))
        if count < least:
            raise SecureSumError(f"{count} of {len(self.public)} clients are left, and {least} is the least for a sum")

    def _goes_on(self, now: str, then: str) -> None:
        if self.step != now:
            raise SecureSumError(f"this client was asked for '{now}' of a sum out of turn: '{self.step}' comes next")
        self.step = then

    def _seal_key(self, other: str) -> bytes:
        return keys.agreed_key(self.private[1], self.public[other].seals, "seal")

    def to_bytes(self) -> bytes:
        """Return everything, to be kept at the client between two steps."""
        return json.dumps(asdict(self), default=bytes.hex).encode()

    @classmethod
    def from_bytes(cls, kept: bytes) -> Participant:
        """Inverse of :meth:`to_bytes`."""
        told = json.loads(kept)
        told["private"] = tuple(map(bytes.fromhex, told["private"]))
        told["seed"] = bytes.fromhex(told["seed"])
        told["public"] = {name: PublicKeys.from_hex(own) for name, own in told["public"].items()}
        told["shares"] = {name: tuple(map(bytes.fromhex, pair)) for name, pair in told["shares"].items()}
        return cls(**told)


def _unpacked(name: str, text: bytes) -> tuple[bytes, bytes]:
    """Return the two shares; raises ValueError where they are of somebody else."""
    told = json.loads(text)
    if told["from"] != name:
        raise ValueError(f"a share that is said to be of '{name}' is not")
    return bytes.fromhex(told["seed"]), bytes.fromhex(told["key"])


def _packed(name: str, of_seed: bytes, of_key: bytes) -> bytes:
    return json.dumps({"from": name, "seed": of_seed.hex(), "key": of_key.hex()}).encode()

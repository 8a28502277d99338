"""A client's half of a secure sum (Bonawitz et al. 2017, figure 4, on a sparse graph as in Bell et al. 2020).

The server leads through five steps: public keys, sealed shares, the masked vector, a signature under who is in the sum,
and shares that take the masks off. A client hides its vector behind a mask of its own and one with every neighbour; the
latter cancel in the sum. It refuses whatever would let a server take the masks off a single vector: a sum over too few,
both kinds of shares of one client, another story for others than for itself, a second question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from cryptography.fernet import InvalidToken

from hyperlora.secure_sum import keys
from hyperlora.secure_sum.bounds import least_agreed
from hyperlora.secure_sum.fixed_point import Vector
from hyperlora.secure_sum.graph import Graph
from hyperlora.secure_sum.public_keys import PublicKeys, SecureSumError, masked_with, summed

__all__ = ["Participant", "PublicKeys", "SecureSumError"]


@dataclass
class Participant:
    """One client in one sum.

    Attributes:
        name: its client-id.
        least: fewest clients of a sum that it takes part in.
        step: of the protocol, so that none is made twice.
        private: its private keys, for masks, for seals and for signatures.
        seed: of its own mask.
        public: public keys of all participants.
        shares: by participant, neighbours and itself, the shares that it holds for it: of the seed and of the private
            key for masks.
        shared: who sent shares, itself among them.
        answered: whose vectors are in the sum, as it signed.
        asked: digest of the question that it answered.
    """

    name: str
    least: int
    step: str = "keys"
    private: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    seed: bytes = b""
    public: dict[str, PublicKeys] = field(default_factory=dict)
    shares: dict[str, tuple[bytes, bytes]] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    answered: list[str] = field(default_factory=list)
    asked: bytes = b""

    def keys(self) -> PublicKeys:
        """Step 1: return fresh public keys."""
        self._goes_on("keys", "shares")
        masks, seals, signs, self.seed = keys.key_pair(), keys.key_pair(), keys.signing_pair(), keys.fresh_seed()
        self.private = (masks[0], seals[0], signs[0])
        return PublicKeys(masks[1], seals[1], signs[1], keys.digest(self.seed))

    def sealed_shares(self, public: Mapping[str, PublicKeys]) -> dict[str, bytes]:
        """Step 2: return, sealed for every neighbour, its shares of this client's seed and private key.

        Raises:
            SecureSumError: there are too few participants, or the keys are not everybody's own.
        """
        self._goes_on("shares", "masked")
        self._checked(public)
        self.public = dict(sorted(public.items()))
        graph = Graph.of(self.public)
        holders, threshold = graph.holders(self.name), graph.least(self.name)
        of_seed, of_key = (keys.split_secret(one, threshold, len(holders)) for one in (self.seed, self.private[0]))
        mine = dict(zip(holders, zip(of_seed, of_key, strict=True), strict=True))
        self.shares = {self.name: mine.pop(self.name)}
        return {
            other: keys.seal(self._seal_key(graph, other), _packed(self.name, *pair)) for other, pair in mine.items()
        }

    def _checked(self, public: Mapping[str, PublicKeys]) -> None:
        if len(public) < self.least:
            raise SecureSumError(f"a sum over {len(public)} clients tells too much of each: {self.least} is the least")
        if self.name not in public:
            raise SecureSumError("the sum is one that this client has no part in")
        own, private = public[self.name], self.private
        mine = (keys.public_key_of(private[0]), keys.public_key_of(private[1]), keys.verifier_of(private[2]))
        if (own.masks, own.seals, own.signs, own.seed) != (*mine, keys.digest(self.seed)):
            raise SecureSumError("the keys that others are told to be this client's are not its own")
        every = [key for one in public.values() for key in (one.masks, one.seals, one.signs)]
        if len(set(every)) != len(every):
            raise SecureSumError("two participants have the same public key")

    def masked(self, sealed: Mapping[str, bytes], vector: Vector, asked: bytes = b"") -> Vector:
        """Step 3: return the vector behind its masks, and after it this client's signature under who sent shares.

        Args:
            sealed: by every other participant that sent shares what it sealed for this client; empty where it is no
                neighbour. What cannot be opened counts as no share.
            vector: what this client adds to the sum.
            asked: digest of the question that it answers by that.

        Raises:
            SecureSumError: too few participants or neighbours are left, or one is not of the sum.
        """
        self._goes_on("masked", "agree")
        graph = self._graph()
        self.shared, self.asked = sorted({self.name, *sealed}), asked
        for other, text in sealed.items():
            self._take(graph, other, text)
        self._enough(len(self.shared))
        if len(self.shares) < graph.least(self.name):
            raise SecureSumError(f"{len(self.shares)} of this client and its neighbours are left to hold its shares")
        total = vector + keys.mask(self.seed, len(vector))
        for other in self.shares:
            if other != self.name:
                pair = keys.mask(graph.mask_seed(self.private[0], self.name, other, self.public[other]), len(vector))
                total = total + pair if self.name < other else total - pair
        signature = keys.sign(self.private[2], masked_with(graph.digest, self.shared, asked))
        return np.concatenate([total, np.frombuffer(signature, "<u4").astype(np.uint32)])

    def _take(self, graph: Graph, other: str, text: bytes) -> None:
        if other not in self.public or other == self.name:
            raise SecureSumError(f"'{other}' is no other participant of the sum")
        if other in graph.neighbours[self.name]:
            self.shares[other] = self._opened(graph, other, text)
        elif text:
            raise SecureSumError(f"'{other}' is said to have sealed shares for this client, and is no neighbour of it")

    def _seal_key(self, graph: Graph, other: str) -> bytes:
        return graph.seal_key(self.private[1], self.name, other, self.public[other])

    def _opened(self, graph: Graph, other: str, text: bytes) -> tuple[bytes, bytes]:
        try:
            return _unpacked(other, keys.unseal(self._seal_key(graph, other), text))
        except (InvalidToken, ValueError, KeyError, TypeError):
            return b"", b""

    def agreement(self, answered: Mapping[str, bytes], dropped: Sequence[str]) -> dict[str, bytes]:
        """Step 4: return, by this client's name, its signature under who is in the sum.

        Args:
            answered: whose vectors are in the sum, with the signatures of step 3.
            dropped: who sent shares and no vector.

        Raises:
            SecureSumError: the two are not everybody once, this client is not among the first, they are too few or fall
                into parts, or others masked with other clients or were asked something else.
        """
        self._goes_on("agree", "unmask")
        if sorted([*answered, *dropped]) != self.shared:
            raise SecureSumError("who answered and who did not must be every participant, and nobody twice")
        if self.name not in answered:
            raise SecureSumError("this client answered, and is said not to have")
        self._enough(len(answered))
        graph = self._graph()
        if flaw := graph.flaw(answered, dropped):
            raise SecureSumError(flaw)
        others = masked_with(graph.digest, self.shared, self.asked)
        if wrong := sorted(answered.keys() - self._signers(answered, others)):
            raise SecureSumError(
                f"'{wrong[0]}' did not sign that it masked with the same clients and was asked the same as this client"
            )
        self.answered = sorted(answered)
        return {self.name: keys.sign(self.private[2], summed(graph.digest, answered, dropped))}

    def unmasking(self, answered: Mapping[str, bytes], dropped: Sequence[str]) -> dict[str, bytes]:
        """Step 5: return, by neighbour and itself, a share of the seed of who answered, of the key of who did not.

        Args:
            answered: whose vectors are in the sum, with the signatures of step 4, empty where there is none.
            dropped: who sent shares and no vector.

        Raises:
            SecureSumError: this client signed something else, or too few others signed the same.
        """
        self._goes_on("unmask", "done")
        if sorted(answered) != self.answered or sorted([*answered, *dropped]) != self.shared:
            raise SecureSumError("who answered and who did not are others than this client signed")
        graph, least = self._graph(), least_agreed(len(self.public))
        signers = self._signers(answered, summed(graph.digest, answered, dropped))
        if len(signers) < least:
            raise SecureSumError(f"{len(signers)} clients signed who is in the sum, and {least} is the least")
        return {other: of_seed if other in answered else of_key for other, (of_seed, of_key) in self.shares.items()}

    def _signers(self, signatures: Mapping[str, bytes], text: bytes) -> set[str]:
        return {name for name, one in signatures.items() if keys.signed(self.public[name].signs, one, text)}

    def _enough(self, count: int) -> None:
        least = max(self.least, least_agreed(len(self.public)))
        if count < least:
            raise SecureSumError(f"{count} of {len(self.public)} clients are left, and {least} is the least for a sum")

    def _goes_on(self, now: str, then: str) -> None:
        if self.step != now:
            raise SecureSumError(f"this client was asked for '{now}' of a sum out of turn: '{self.step}' comes next")
        self.step = then

    def _graph(self) -> Graph:
        return Graph.of(self.public)

    def to_bytes(self) -> bytes:
        """Return everything, to be kept at the client between two steps."""
        return json.dumps(asdict(self), default=bytes.hex).encode()

    @classmethod
    def from_bytes(cls, kept: bytes) -> Participant:
        """Inverse of :meth:`to_bytes`."""
        told = json.loads(kept)
        told["private"] = tuple(map(bytes.fromhex, told["private"]))
        told["seed"], told["asked"] = bytes.fromhex(told["seed"]), bytes.fromhex(told["asked"])
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

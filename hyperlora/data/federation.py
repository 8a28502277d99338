"""What a federated data set is: clients with an id, a domain and three parts of samples each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class DataError(ValueError):
    """Data is missing, wrong or cannot be divided as asked; the message is one sentence for a person."""


@dataclass(frozen=True)
class Samples:
    """What a site holds, and labels (n,) int64; n may be 0. Not to be written to.

    ``inputs`` are images (n, channels, height, width) uint8, or n texts.
    """

    inputs: Tensor | Sequence[str]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ClientData:
    """All that one client holds. An unseen client (``trains`` is false) has a train part for signature and use."""

    client_id: str
    domain: str
    trains: bool
    train: Samples
    validation: Samples
    test: Samples


class Federation(Protocol):
    """The clients of one data set, loaded one at a time."""

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Return all client ids, sorted."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the name of each label, in the order of the labels."""

    def load(self, client_id: str) -> ClientData:
        """Return the data of one client, the same at each call.

        Raises:
            DataError: for an id that is not among ``client_ids`` or data that cannot be read.
        """


@dataclass(frozen=True)
class SingleClient:
    """The data of one client alone, which know of no other client, under a client id of its choice."""

    client_id: str
    data: Callable[[], ClientData]
    class_names: tuple[str, ...]

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Return the one client id."""
        return (self.client_id,)

    def load(self, client_id: str) -> ClientData:
        """Return the data; raises DataError for another client."""
        if client_id != self.client_id:
            raise DataError(f"this site holds the data of client '{self.client_id}' only, not of '{client_id}'")
        return replace(self.data(), client_id=client_id)


@dataclass(frozen=True)
class Division:
    """How a data set is divided: over clients, then each client's samples into parts.

    Its values are those of the keys under ``data`` (:class:`hyperlora.config.settings.DataConfig`). Only the division
    over clients depends on ``seed``, the parts of a client do not.

    Attributes:
        partition: ``dirichlet``; ``iid`` (at random); ``pathological`` (few classes per client); or ``natural`` (a
            domain is a client, its id the domain's name, and ``unseen_fraction`` is of the domains).
        split: ``hash`` divides a client's samples into parts by their own keys; ``official`` tests on the test split
            that the data set comes with, and divides only its training split over clients, training and validation.
    """

    seed: int
    clients_per_domain: int
    dirichlet_alpha: float
    unseen_fraction: float
    validation_fraction: float
    test_fraction: float
    partition: str = "dirichlet"
    classes_per_client: int = 2
    max_samples: int = 0
    split: str = "hash"

    def __post_init__(self) -> None:
        if self.validation_fraction + self.test_fraction >= 1:
            raise DataError(
                f"validation fraction {self.validation_fraction} and test fraction {self.test_fraction} "
                "leave nothing to train on"
            )
        if self.num_unseen >= self.clients_per_domain and self.partition != "natural":
            raise DataError(
                f"an unseen fraction of {self.unseen_fraction} leaves none of {self.clients_per_domain} "
                "clients per domain to train"
            )

    @property
    def num_unseen(self) -> int:
        """How many clients of each domain never train."""
        return round(self.unseen_fraction * self.clients_per_domain)


@dataclass(frozen=True)
class DataSetInfo:
    """Names of the domains, and of the classes in the order of the labels."""

    domains: tuple[str, ...]
    class_names: tuple[str, ...]


DATA_SETS: Mapping[str, DataSetInfo] = {
    "digits": DataSetInfo(("clean", "inverted", "noisy", "rotated"), tuple("0123456789")),
    "pacs": DataSetInfo(
        ("art_painting", "cartoon", "photo", "sketch"),
        ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
    ),
}

"""The division of one domain's samples over clients: Dirichlet, even, at random, or few classes each."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperlora.data.federation import DataError, Division

MIN_CLIENT_SAMPLES = 20
DIRICHLET_ATTEMPTS = 20


def partition_labels(
    labels: Sequence[int],
    *,
    domain: str,
    num_clients: int,
    alpha: float,
    seed: int,
    min_samples: int = MIN_CLIENT_SAMPLES,
) -> list[list[int]]:
    """Divide the positions of one domain's labels over clients, each position to exactly one.

    Args:
        labels: class of each sample of the domain.
        domain: its name; domains are divided independently of each other.
        num_clients: number of lists to return.
        alpha: concentration of the Dirichlet distribution over clients, drawn per class; 0 gives every
            client an equal share of every class.
        seed: of the division.
        min_samples: samples that each client gets at least.

    Raises:
        DataError: if there are too few samples, or no draw gives each client ``min_samples``.
    """
    check_enough(labels, domain, num_clients, min_samples)
    domain_seed = _derived_seed(seed, domain)
    if alpha == 0:
        return _even(labels, num_clients, domain_seed)
    for attempt in range(DIRICHLET_ATTEMPTS):
        parts = _dirichlet(labels, num_clients, alpha, domain_seed + attempt, min_samples)
        if parts is not None:
            return parts
    raise DataError(
        f"no Dirichlet division with alpha {alpha} gives each of {num_clients} clients {min_samples} of the "
        f"{len(labels)} samples of domain '{domain}'; use fewer clients per domain or a larger alpha"
    )


def divide_domain(labels: Sequence[int], domain: str, division: Division) -> list[list[int]]:
    """Return the positions of a domain's labels by client, as ``division.partition`` says; raises DataError."""
    count, seed = division.clients_per_domain, _derived_seed(division.seed, domain)
    if division.partition == "pathological":
        return _pathological(labels, domain, count, division.classes_per_client, seed)
    if division.partition == "iid":
        check_enough(labels, domain, count, MIN_CLIENT_SAMPLES)
        order = np.random.default_rng(seed).permutation(len(labels))
        return [sorted(order[index::count].tolist()) for index in range(count)]
    return partition_labels(
        labels, domain=domain, num_clients=count, alpha=division.dirichlet_alpha, seed=division.seed
    )


def check_enough(labels: Sequence[int], domain: str, num_clients: int, min_samples: int) -> None:
    """Raise DataError if there are fewer samples than ``min_samples`` for each client."""
    if len(labels) < min_samples * num_clients:
        raise DataError(
            f"domain '{domain}' has {len(labels)} samples, too few for {num_clients} clients "
            f"with at least {min_samples} each; lower data.clients-per-domain"
        )


def _derived_seed(seed: int, domain: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{domain}".encode(), digest_size=6).digest(), "big")


def _even(labels: Sequence[int], num_clients: int, seed: int) -> list[list[int]]:
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    return [sorted(by_class[index::num_clients].tolist()) for index in range(num_clients)]


def _dirichlet(
    labels: Sequence[int], num_clients: int, alpha: float, seed: int, min_samples: int
) -> list[list[int]] | None:
    """Return one division by flwr_datasets, or None where its own attempts fell short of ``min_samples``."""
    from flwr_datasets.partitioner import DirichletPartitioner  # slow to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _positions(
                DirichletPartitioner(
                    num_clients, "label", alpha, min_partition_size=min_samples, self_balancing=False, seed=seed
                ),
                labels,
            )
    except ValueError:
        return None


def _pathological(labels: Sequence[int], domain: str, num_clients: int, num_classes: int, seed: int) -> list[list[int]]:
    """Return a division by flwr_datasets in which a client has ``num_classes`` classes, drawn at random."""
    from flwr_datasets.partitioner import PathologicalPartitioner  # slow to import

    try:
        return _positions(
            PathologicalPartitioner(num_clients, "label", num_classes, class_assignment_mode="random", seed=seed),
            labels,
        )
    except ValueError as error:
        raise DataError(
            f"the samples of domain '{domain}' cannot be divided over {num_clients} clients of {num_classes} "
            f"classes each: {str(error).splitlines()[0]}"
        ) from error


def _positions(partitioner: Any, labels: Sequence[int]) -> list[list[int]]:
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"label": list(labels), "position": list(range(len(labels)))})
    return [sorted(partitioner.load_partition(k)["position"]) for k in range(partitioner.num_partitions)]

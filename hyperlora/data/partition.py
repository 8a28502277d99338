"""The division of one domain's samples over clients: Dirichlet, even, at random, or few classes each."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperlora.data.federation import DataError, Division
from hyperlora.seeds import hashed

MIN_CLIENT_SAMPLES = 20
DIRICHLET_ATTEMPTS = 20
Positions = list[list[int]]


def divide_domain(labels: Sequence[int], domain: str, division: Division) -> Positions:
    """Return the positions of a domain's labels by client, as ``division.partition`` says, each at one client.

    Domains are divided independently of each other. ``dirichlet`` draws each class over the clients with the
    concentration ``division.dirichlet_alpha``; 0 gives every client an equal share of every class.

    Args:
        labels: class of each sample of the domain.
        domain: its name.
        division: how to divide.

    Raises:
        DataError: there are too few samples, or no draw gives each client :data:`MIN_CLIENT_SAMPLES`.
    """
    seed = hashed(f"{division.seed}/{domain}", size=6)
    if division.partition == "pathological":
        return _pathological(labels, domain, division, seed)
    count = division.clients_per_domain
    if len(labels) < MIN_CLIENT_SAMPLES * count:
        raise DataError(
            f"domain '{domain}' has {len(labels)} samples, too few for {count} clients "
            f"with at least {MIN_CLIENT_SAMPLES} each; lower data.clients-per-domain"
        )
    if division.partition == "dirichlet" and division.dirichlet_alpha:
        return _dirichlet(labels, domain, division, seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    if division.partition == "dirichlet":
        order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    return [sorted(order[index::count].tolist()) for index in range(count)]


def _dirichlet(labels: Sequence[int], domain: str, division: Division, seed: int) -> Positions:
    from flwr_datasets.partitioner import DirichletPartitioner  # slow to import

    count, alpha = division.clients_per_domain, division.dirichlet_alpha
    for attempt in range(DIRICHLET_ATTEMPTS):
        partitioner = DirichletPartitioner(
            count, "label", alpha, min_partition_size=MIN_CLIENT_SAMPLES, self_balancing=False, seed=seed + attempt
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _positions(partitioner, labels)
        except ValueError:  # its own attempts fell short of the least size
            continue
    raise DataError(
        f"no Dirichlet division with alpha {alpha} gives each of {count} clients {MIN_CLIENT_SAMPLES} of the "
        f"{len(labels)} samples of domain '{domain}'; use fewer clients per domain or a larger alpha"
    )


def _pathological(labels: Sequence[int], domain: str, division: Division, seed: int) -> Positions:
    from flwr_datasets.partitioner import PathologicalPartitioner  # slow to import

    count, classes = division.clients_per_domain, division.classes_per_client
    try:
        return _positions(
            PathologicalPartitioner(count, "label", classes, class_assignment_mode="random", seed=seed), labels
        )
    except ValueError as error:
        raise DataError(
            f"the samples of domain '{domain}' cannot be divided over {count} clients of {classes} "
            f"classes each: {str(error).splitlines()[0]}"
        ) from error


def _positions(partitioner: Any, labels: Sequence[int]) -> Positions:
    from datasets import Dataset

    partitioner.dataset = Dataset.from_dict({"label": list(labels), "position": list(range(len(labels)))})
    return [sorted(partitioner.load_partition(k)["position"]) for k in range(partitioner.num_partitions)]

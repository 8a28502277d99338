"""The division of each domain's samples over its clients, and the federation that results from it."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from data.federation import ClientData, DataError, Division, Samples
from data.listing import Reader
from data.split import split_by_key, unit_interval

MIN_CLIENT_SAMPLES = 20
DIRICHLET_ATTEMPTS = 20
CACHED_CLIENTS = 256


@dataclass(frozen=True)
class ClientPlan:
    """Which rows of the data set a client holds."""

    domain: str
    trains: bool
    rows: tuple[int, ...]


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


def plan_clients(
    domains: Mapping[str, Sequence[int]], labels: Sequence[int], division: Division
) -> dict[str, ClientPlan]:
    """Divide each domain's rows; return the clients by id, sorted by it.

    Client ids are ``{domain}-{k}``, and the last ``num_unseen`` of each domain never train; where a domain is a
    client they are the domains' names, and those of the largest hash never train.

    Args:
        domains: rows of each domain in the data set.
        labels: class of every row of the data set.
        division: how to divide.

    Raises:
        DataError: a domain has too few samples, or the skew is not possible.
    """
    _check_names(domains)
    plans = _natural_plans(domains, division) if division.partition == "natural" else {}
    for domain, rows in domains.items() if not plans else ():
        parts = _divided([labels[row] for row in rows], domain, division)
        for index, part in enumerate(parts):
            trains = index < division.clients_per_domain - division.num_unseen
            plans[f"{safe_id(domain)}-{index}"] = ClientPlan(domain, trains, tuple(rows[i] for i in part))
    return {name: _capped(name, plan, division.max_samples) for name, plan in sorted(plans.items())}


def _natural_plans(domains: Mapping[str, Sequence[int]], division: Division) -> dict[str, ClientPlan]:
    ranked = sorted(domains, key=lambda domain: unit_interval(f"{division.seed}/{domain}", "unseen"))
    seen = ranked[: len(ranked) - round(division.unseen_fraction * len(ranked))]
    return {safe_id(domain): ClientPlan(domain, domain in seen, tuple(rows)) for domain, rows in domains.items()}


def _divided(labels: Sequence[int], domain: str, division: Division) -> list[list[int]]:
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


def _capped(client_id: str, plan: ClientPlan, limit: int) -> ClientPlan:
    if not limit or len(plan.rows) <= limit:
        return plan
    ranked = sorted(plan.rows, key=lambda row: unit_interval(f"{client_id}/{row}", "cap"))
    return ClientPlan(plan.domain, plan.trains, tuple(sorted(ranked[:limit])))


def _check_names(domains: Mapping[str, Sequence[int]]) -> None:
    first: dict[str, str] = {}
    for domain in domains:
        if first.setdefault(safe_id(domain), domain) != domain:
            raise DataError(
                f"domains '{first[safe_id(domain)]}' and '{domain}' would have the same client ids; rename one"
            )


def safe_id(domain: str) -> str:
    """Return a domain's name as it may stand in a client id: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", domain)


def check_enough(labels: Sequence[int], domain: str, num_clients: int, min_samples: int) -> None:
    """Raise DataError if there are fewer samples than ``min_samples`` for each client."""
    if len(labels) < min_samples * num_clients:
        raise DataError(
            f"domain '{domain}' has {len(labels)} samples, too few for {num_clients} clients "
            f"with at least {min_samples} each; lower data.clients-per-domain"
        )


class DividedFederation:
    """A :class:`~data.federation.Federation` made of plans; reads a client on first use and keeps it."""

    def __init__(
        self, plans: Mapping[str, ClientPlan], class_names: Sequence[str], division: Division, read: Reader
    ) -> None:
        self.client_ids: tuple[str, ...] = tuple(sorted(plans))
        self.class_names: tuple[str, ...] = tuple(class_names)
        self._plans = plans
        self._division = division
        self._read = read
        self._cached = lru_cache(maxsize=CACHED_CLIENTS)(self._load)

    def load(self, client_id: str) -> ClientData:
        """Return the data of one client; see :meth:`data.federation.Federation.load`."""
        if client_id not in self._plans:
            raise DataError(f"the data set has no client '{client_id}'; its first is '{self.client_ids[0]}'")
        return self._cached(client_id)

    def _load(self, client_id: str) -> ClientData:
        plan = self._plans[client_id]
        inputs, labels, keys = self._read(plan.domain, plan.rows)
        parts = split_by_key(
            keys,
            validation_fraction=self._division.validation_fraction,
            test_fraction=self._division.test_fraction,
            client_id=client_id,
        )
        train, validation, test = (Samples(_chosen(inputs, part), labels[part]) for part in parts)
        return ClientData(client_id, plan.domain, plan.trains, train, validation, test)


def _chosen(inputs: Tensor | Sequence[str], part: list[int]) -> Tensor | Sequence[str]:
    return inputs[part] if isinstance(inputs, Tensor) else [inputs[position] for position in part]


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

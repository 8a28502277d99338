"""Which client holds which rows, and the federation that results from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from data.federation import ClientData, DataError, Division, Samples
from data.listing import Reader
from data.partition import divide_domain
from data.split import split_by_key, unit_interval

CACHED_CLIENTS = 256


@dataclass(frozen=True)
class ClientPlan:
    """Which rows of the data set a client holds."""

    domain: str
    trains: bool
    rows: tuple[int, ...]


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
        parts = divide_domain([labels[row] for row in rows], domain, division)
        for index, part in enumerate(parts):
            trains = index < division.clients_per_domain - division.num_unseen
            plans[f"{safe_id(domain)}-{index}"] = ClientPlan(domain, trains, tuple(rows[i] for i in part))
    return {name: _capped(name, plan, division.max_samples) for name, plan in sorted(plans.items())}


def _natural_plans(domains: Mapping[str, Sequence[int]], division: Division) -> dict[str, ClientPlan]:
    ranked = sorted(domains, key=lambda domain: unit_interval(f"{division.seed}/{domain}", "unseen"))
    seen = ranked[: len(ranked) - round(division.unseen_fraction * len(ranked))]
    return {safe_id(domain): ClientPlan(domain, domain in seen, tuple(rows)) for domain, rows in domains.items()}


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
    """Return a domain's name as it may stand in a client id and a file name: letters, digits, dot, dash, underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+|^\.+", "_", domain)


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
        self._require(client_id)
        return self._cached(client_id)

    def rows(self, client_id: str) -> tuple[int, ...]:
        """Return the rows of the data set that a client holds; raises DataError for an unknown one."""
        self._require(client_id)
        return self._plans[client_id].rows

    def _require(self, client_id: str) -> None:
        if client_id not in self._plans:
            raise DataError(f"the data set has no client '{client_id}'; its first is '{self.client_ids[0]}'")

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

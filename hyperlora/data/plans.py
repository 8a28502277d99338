"""Which client holds which rows, and which of them it trains on: the federation that results from a division.

Train, validation and test are divided by a hash of each sample's own key. A sample stays in its part when other samples
are added or the division over clients changes, and samples with equal keys fall into the same part, save where a part
would otherwise be empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from hyperlora.data.federation import ClientData, DataError, Division, Samples
from hyperlora.data.listing import Reader
from hyperlora.data.partition import divide_domain
from hyperlora.seeds import unit_interval

if TYPE_CHECKING:
    from torch import Tensor

CACHED_CLIENTS = 256
Rows = Mapping[str, Sequence[int]]


class Parts(NamedTuple):
    """Positions of the samples of each part, ascending; together each position once."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_by_key(keys: Sequence[str], *, validation_fraction: float, test_fraction: float, client_id: str) -> Parts:
    """Divide samples by u = unit_interval(key): test below ``test_fraction``, validation next, then train.

    A part with a fraction above 0 that no sample falls into takes the sample of lowest u from the parts
    after it, so an empty test part takes from validation before it takes from train.

    Raises:
        DataError: naming the client, if it has no samples or none is left to train on.
    """
    draws = [unit_interval(key, "split") for key in keys]
    order = sorted(range(len(keys)), key=lambda position: (draws[position], keys[position], position))
    num_test = sum(draw < test_fraction for draw in draws)
    num_held_out = sum(draw < test_fraction + validation_fraction for draw in draws)
    if test_fraction > 0:
        num_test = max(num_test, 1)
    num_held_out = max(num_held_out, num_test + (validation_fraction > 0 and num_held_out <= num_test))
    if num_held_out >= len(keys):
        raise DataError(f"client '{client_id}' has {len(keys)} samples, which leaves none to train on")
    train, validation, test = order[num_held_out:], order[num_test:num_held_out], order[:num_test]
    return Parts(sorted(train), sorted(validation), sorted(test))


def divide_test(labels: Sequence[int], parts: Sequence[Sequence[int]], test: Sequence[int]) -> list[list[int]]:
    """Give each client that share of a class's test rows which it has of the class's training rows.

    Each row goes to one client, so the accuracy of one model over the clients' shares together is its accuracy on the
    official split. Classes that nobody trains on are not tested.

    Args:
        labels: class of every row of the data set.
        parts: training rows of each client.
        test: rows of the domain's test split.
    """
    held = [Counter(labels[row] for row in part) for part in parts]
    shares: list[list[int]] = [[] for _ in parts]
    by_class: dict[int, list[int]] = {}
    for row in test:
        by_class.setdefault(labels[row], []).append(row)
    for label, rows in by_class.items():
        ends = list(accumulate(counts[label] for counts in held))
        bounds = [0, *(round(len(rows) * end / ends[-1]) for end in ends)] if ends[-1] else [0] * (len(parts) + 1)
        for share, (first, last) in zip(shares, pairwise(bounds), strict=True):
            share.extend(rows[first:last])
    return [sorted(share) for share in shares]


@dataclass(frozen=True)
class ClientPlan:
    """Which rows of the data set a client holds; ``test`` are those of an official test split, not in ``rows``."""

    domain: str
    trains: bool
    rows: tuple[int, ...]
    test: tuple[int, ...] = ()


def plan_clients(
    domains: Rows, labels: Sequence[int], division: Division, test: Collection[int] = frozenset()
) -> dict[str, ClientPlan]:
    """Divide each domain's rows; return the clients by id, sorted by it.

    Client ids are ``{domain}-{k}``, and the last ``num_unseen`` of each domain never train; where a domain is a
    client they are the domains' names, and those of the largest hash never train.

    Args:
        domains: rows of each domain in the data set.
        labels: class of every row of the data set.
        division: how to divide.
        test: rows of the official test split, where clients are to be tested on it; they follow the other rows.

    Raises:
        DataError: a domain has too few samples, or the skew is not possible.
    """
    _check_names(domains)
    training = {domain: [row for row in rows if row not in test] for domain, rows in domains.items()}
    testing = {domain: [row for row in rows if row in test] for domain, rows in domains.items()}
    if division.partition == "natural":
        plans = _natural_plans(training, testing, division)
    else:
        plans = _divided_plans(training, testing, labels, division)
    return {name: _capped(name, plan, division.max_samples) for name, plan in sorted(plans.items())}


def _divided_plans(training: Rows, testing: Rows, labels: Sequence[int], division: Division) -> dict[str, ClientPlan]:
    plans = {}
    for domain, rows in training.items():
        parts = [[rows[i] for i in part] for part in divide_domain([labels[row] for row in rows], domain, division)]
        shares = divide_test(labels, parts, testing[domain])
        for index, (part, share) in enumerate(zip(parts, shares, strict=True)):
            trains = index < division.clients_per_domain - division.num_unseen
            plans[f"{safe_id(domain)}-{index}"] = ClientPlan(domain, trains, tuple(part), tuple(share))
    return plans


def _natural_plans(training: Rows, testing: Rows, division: Division) -> dict[str, ClientPlan]:
    ranked = sorted(training, key=lambda domain: unit_interval(f"{division.seed}/{domain}", "unseen"))
    seen = ranked[: len(ranked) - round(division.unseen_fraction * len(ranked))]
    return {
        safe_id(name): ClientPlan(name, name in seen, tuple(training[name]), tuple(testing[name])) for name in training
    }


def _capped(client_id: str, plan: ClientPlan, limit: int) -> ClientPlan:
    """Return the plan with at most ``limit`` rows, its test rows in proportion and at least one."""
    total = len(plan.rows) + len(plan.test)
    if not limit or total <= limit:
        return plan
    for_test = max(1, round(limit * len(plan.test) / total)) if plan.test else 0
    chosen = [
        tuple(sorted(sorted(rows, key=lambda row: unit_interval(f"{client_id}/{row}", "cap"))[:most]))
        for rows, most in ((plan.rows, max(1, limit - for_test)), (plan.test, for_test))
    ]
    return ClientPlan(plan.domain, plan.trains, *chosen)


def _check_names(domains: Rows) -> None:
    first: dict[str, str] = {}
    for domain in domains:
        if domain != domain.encode(errors="replace").decode():
            raise DataError(f"the name of domain {domain!r} is not in UTF-8: rename it")
        if first.setdefault(safe_id(domain), domain) != domain:
            raise DataError(
                f"domains '{first[safe_id(domain)]}' and '{domain}' would have the same client ids; rename one"
            )


def safe_id(domain: str) -> str:
    """Return a domain's name as it may stand in a client id and a file name: letters, digits, dot, dash, underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+|^\.+", "_", domain)


class DividedFederation:
    """A :class:`~hyperlora.data.federation.Federation` made of plans; reads a client on first use and keeps it."""

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
        """Return the data of one client; see :meth:`hyperlora.data.federation.Federation.load`."""
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
            test_fraction=0.0 if plan.test else self._division.test_fraction,
            client_id=client_id,
        )
        train, validation, test = (Samples(_chosen(inputs, part), labels[part]) for part in parts)
        if plan.test:
            test = Samples(*self._read(plan.domain, plan.test)[:2])
        return ClientData(client_id, plan.domain, plan.trains, train, validation, test)


def _chosen(inputs: Tensor | Sequence[str], part: list[int]) -> Tensor | Sequence[str]:
    return [inputs[position] for position in part] if isinstance(inputs, Sequence) else inputs[part]

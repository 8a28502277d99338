"""The division of a domain's official test split over the clients that share the domain's training split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise


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

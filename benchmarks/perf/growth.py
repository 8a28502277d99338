"""How a round of hyperlora's server grows with the clients, the adapted blocks and the rank, each doubled twice."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.perf.measure import Comparison, in_turns
from benchmarks.perf.server_time import Server

BASE = {"clients": 25, "blocks": 4, "rank": 4}
STEPS = (1, 2, 4)


def run(repeats: int) -> Iterator[Comparison]:
    """Yield for each of the three how long a round takes at twice and four times the base, DeiT-tiny's shapes."""
    for name, base in BASE.items():
        sizes = {step: {**BASE, name: step * base} for step in STEPS}
        rounds = {str(step): _server(size).round for step, size in sizes.items()}
        seconds = in_turns(rounds, min(repeats, 3))
        described = ", ".join(f"{value} {other}" for other, value in BASE.items())
        for step in STEPS[1:]:
            a, b = seconds["1"], seconds[str(step)]
            case = f"hyperlora's server in a round, {name} {step * base}"
            yield Comparison("growth", case, described, a, b, "s", b / a, "", min(repeats, 3))


def _server(size: dict[str, int]) -> Server:
    return Server("hyperlora", size["clients"], rank=size["rank"], blocks=size["blocks"])

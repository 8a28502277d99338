"""A suite: settings as toml, one run per variant and seed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.config import RunConfig, Scalar

HERE = Path(__file__).parent


class SuiteError(ValueError):
    """A suite cannot be read; the message is one sentence."""


@dataclass(frozen=True)
class Job:
    """One run of a suite."""

    suite: str
    variant: str
    config: RunConfig

    @property
    def name(self) -> str:
        """The name of the run's file, without suffix."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.variant.lower())}-seed{self.config.seed}"


def load_jobs(suite: str, overrides: Mapping[str, Scalar], seeds: list[int], variants: list[str]) -> list[Job]:
    """Return the runs of a suite, seeds outermost so that variants of one seed share cached data.

    Args:
        suite: name of a file under ``benchmarks/suites``.
        overrides: configuration keys set for every run, such as ``data.path``.
        seeds: seeds to run instead of the suite's own; empty for those.
        variants: names of variants to run; empty for all.

    Raises:
        SuiteError: there is no such suite or variant.
        ConfigError: a key or value is wrong.
    """
    table = _read(HERE / "suites" / f"{suite}.toml", f"suite '{suite}'")
    base: dict[str, Scalar] = {}
    if "preset" in table:
        base |= flatten(_read(HERE / "presets" / f"{table['preset']}.toml", f"preset '{table['preset']}'"))
    base |= flatten(table.get("base", {}))
    known = table["variants"]
    if unknown := set(variants) - set(known):
        raise SuiteError(f"suite '{suite}' has no variant {sorted(unknown)}; it has {', '.join(known)}")
    chosen = {name: flatten(values) for name, values in known.items() if not variants or name in variants}
    return [
        Job(suite, name, RunConfig.parse({**base, **values, **overrides, "seed": seed}))
        for seed in seeds or table["seeds"]
        for name, values in chosen.items()
    ]


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Return nested toml tables as Flower's flat mapping with dotted keys."""
    return dict(_flatten(table, prefix))


def _flatten(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Scalar]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(path: Path, what: str) -> dict[str, Any]:
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.toml")))
        raise SuiteError(f"there is no {what}; there are {known}")
    return tomllib.loads(path.read_text(encoding="utf-8"))

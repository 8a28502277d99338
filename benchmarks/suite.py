"""A suite: settings as toml, one run per variant and seed.

A suite file has ``seeds`` and ``variants`` (or ``variants-of``: those of another suite, ``only`` some of them), and may
have a ``title``, a ``preset``, a ``base`` of settings for all runs, ``fewer-seeds``: which ``variants`` have fewer
``seeds``, a grid (:mod:`benchmarks.trials`), ``tuned``: the suite whose grid chose settings for each variant
(:mod:`benchmarks.tuning`), and ``minutes``: how long a run is believed to take on one core, until one has been made.

It may also have ``axes``; every combination of one choice on each axis is then a setting: ``[axes.backbone.vit]`` and
``[axes.data.domainnet]`` make ``vit-domainnet``. A choice or a setting may follow the name of the suite:
``paper/domainnet`` is all settings with it, ``paper/vit-domainnet-6-clients`` is one. A suite without axes is its only
setting.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.trials import AdaptingGrid, SuiteError, trial_name, trials
from hyperlora.cli.settings import flatten
from hyperlora.config.schema import RunConfig, Scalar

HERE = Path(__file__).parent
TUNED = HERE / "tuned"


@dataclass(frozen=True)
class Job:
    """One run of a suite (``file`` or ``file/setting``).

    ``reference`` is ``centralised`` where the data are trained on in one place, or a robust rule of Flower
    (:mod:`benchmarks.robust_rules`). ``attack`` is what a share of the training clients does
    (:mod:`benchmarks.attacks`); empty where all are honest. ``trial`` has the settings of a grid
    that are tried, ``adapting`` the budgets of use that are tried on the result.
    """

    suite: str
    variant: str
    config: RunConfig
    reference: str = ""
    attack: str = ""
    attack_share: float = 0.0
    trial: Mapping[str, Scalar] = field(default_factory=dict)
    adapting: AdaptingGrid | None = None

    @property
    def name(self) -> str:
        """The name of the run's own file, without suffix."""
        return f"{re.sub(r'[^a-z0-9.]+', '-', self.variant.lower()).strip('-')}-seed{self.config.seed}"


def load_jobs(suite: str, overrides: Mapping[str, Scalar], seeds: list[int], variants: list[str]) -> list[Job]:
    """Return the runs of a suite, seeds outermost so that variants of one seed share cached data.

    Args:
        suite: name of a file under ``benchmarks/suites``, which choices on its axes may follow.
        overrides: configuration keys set for every run, such as ``data.path``.
        seeds: seeds to run instead of the suite's own; empty for those.
        variants: names of variants to run; empty for all.

    Raises:
        SuiteError: there is no such suite or variant.
        ConfigError: a key or value is wrong.
    """
    table = _table(suite)
    base: dict[str, Scalar] = {}
    if "preset" in table:
        base |= flatten(_read(HERE / "presets" / f"{table['preset']}.toml", f"preset '{table['preset']}'"))
    base |= flatten(table.get("base", {}))
    known = _variants(table)
    if unknown := set(variants) - set(known):
        raise SuiteError(f"suite '{suite}' has no variant {sorted(unknown)}; it has {', '.join(known)}")
    settings = {place: flatten(one) for place, one in settings_of(suite, table).items()}
    if not settings:
        known_settings = ", ".join(settings_of(split_name(suite)[0], table))
        raise SuiteError(f"there is no setting '{suite}'; there are {known_settings}")
    adapting = AdaptingGrid.of(table)
    return [
        _job(place, label, {**base, **setting, **values, **overrides, "seed": seed}, reference, trial, adapting)
        for place, setting in settings.items()
        for seed in seeds or table["seeds"]
        for name, own in known.items()
        if (not variants or name in variants) and (seeds or seed in _own_seeds(name, table))
        for label, values, reference, trial in _runs_of(name, own, table)
    ]


def _job(
    place: str,
    label: str,
    values: dict[str, Scalar],
    reference: str,
    trial: Mapping[str, Scalar],
    adapting: AdaptingGrid | None,
) -> Job:
    attack, share = str(values.pop("attack", "")), float(values.pop("attack-share", 0.0))
    return Job(place, label, RunConfig.parse(values), reference, attack, share, trial, adapting)


def split_name(suite: str) -> tuple[str, str]:
    """Return the name of a suite's file and what stands after the slash."""
    name, _, wanted = suite.partition("/")
    return name, wanted


def settings_of(suite: str, table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that ``suite`` names, ``file/setting`` to configuration tables, the last axis fastest.

    They are empty where ``suite`` names a setting or choice that there is not.
    """
    name, wanted = split_name(suite)
    axes = [list(choices.items()) for choices in table.get("axes", {}).values()]
    if not axes:
        return {} if wanted else {name: {}}
    settings = {}
    for chosen in product(*axes):
        setting = "-".join(choice for choice, _ in chosen)
        if wanted in ("", setting, *(choice for choice, _ in chosen)):
            settings[f"{name}/{setting}"] = _merged([values for _, values in chosen])
    return settings


def _merged(tables: list[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for one in tables:
        for section, values in one.items():
            if isinstance(values, Mapping):
                merged[section] = {**merged.get(section, {}), **values}
            else:
                merged[section] = values
    return merged


def has_grid(suite: str) -> bool:
    """Tell whether a suite compares settings of each variant."""
    return "grid" in _table(suite)


def expected_minutes(suite: str) -> float:
    """Return how many minutes of one core a run is believed to take; 0 where the suite does not say."""
    return float(_table(suite).get("minutes", 0.0))


def seeds_of(suite: str) -> list[int]:
    """Return the seeds of a suite."""
    return list(_table(suite)["seeds"])


def tuning_suite(suite: str) -> str:
    """Return the name of the suite whose grid chose the settings; empty where there is none."""
    return str(_table(suite).get("tuned", ""))


def suite_title(suite: str) -> str:
    """Return what a suite's setting is called in a table; its name where it has no ``title``."""
    name, setting = split_name(suite)
    title = str(_table(suite).get("title", name))
    return f"{title}, {setting}" if setting else title


def setting_names(suite: str) -> list[str]:
    """Return the names of a suite's settings (``file/setting``), in the order of its axes."""
    return list(settings_of(suite, _table(suite)))


def _own_seeds(name: str, table: Mapping[str, Any]) -> list[int]:
    fewer = table.get("fewer-seeds", {})
    return list(fewer["seeds"] if name in fewer.get("variants", ()) else table["seeds"])


def variant_names(suite: str) -> list[str]:
    """Return the names of a suite's variants in order.

    Raises:
        SuiteError: there is no such suite.
    """
    return list(_variants(_table(suite)))


def _variants(table: Mapping[str, Any]) -> dict[str, Any]:
    if "variants-of" not in table:
        return dict(table["variants"])
    others = _variants(_table(table["variants-of"]))
    chosen = table.get("only", list(others))
    if unknown := set(chosen) - set(others):
        raise SuiteError(f"suite '{table['variants-of']}' has no variant {sorted(unknown)}")
    return {**{name: others[name] for name in chosen}, **table.get("variants", {})}


def _runs_of(
    name: str, own: Mapping[str, Any], table: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any], str, dict[str, Scalar]]]:
    values = dict(flatten(own))
    reference = str(values.pop("reference", ""))
    tuned = {**chosen_settings(table["tuned"]).get(name, {}), **values} if "tuned" in table else values
    for trial in trials(table, name):
        yield trial_name(name, trial), {**tuned, **trial}, reference, trial


def chosen_settings(suite: str) -> dict[str, dict[str, Scalar]]:
    """Return by variant the settings that a grid suite chose; none where it was not run."""
    path = TUNED / f"{suite}.toml"
    if not path.exists():
        return {}
    return {name: dict(flatten(one["set"])) for name, one in tomllib.loads(path.read_text(encoding="utf-8")).items()}


def _table(suite: str) -> dict[str, Any]:
    name = split_name(suite)[0]
    return _read(HERE / "suites" / f"{name}.toml", f"suite '{name}'")


def _read(path: Path, what: str) -> dict[str, Any]:
    if not path.exists():
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.toml")))
        raise SuiteError(f"there is no {what}; there are {known}")
    return tomllib.loads(path.read_text(encoding="utf-8"))

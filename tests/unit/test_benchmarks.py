from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from benchmarks.run_job import is_there
from benchmarks.suite import HERE, SuiteError, flatten, load_jobs
from benchmarks.table import accuracy_table, load_results, paired_table
from protocol.config import ConfigError, RunConfig

SUITES = sorted(path.stem for path in (HERE / "suites").glob("*.toml"))


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_parses_and_names_its_runs_apart(suite: str) -> None:
    jobs = load_jobs(suite, {}, [], [])
    assert len({job.name for job in jobs}) == len(jobs)


@pytest.mark.parametrize("preset", sorted((HERE / "presets").glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_a_configuration(preset: Path) -> None:
    values = flatten(tomllib.loads(preset.read_text()))
    assert RunConfig.parse(values).data.name == values["data.name"]


def test_overrides_and_seeds_reach_every_run() -> None:
    jobs = load_jobs("digits", {"federation.rounds": 3}, [7, 8], ["fedit", "hyperlora"])
    assert [job.config.seed for job in jobs] == [7, 7, 8, 8]
    assert {job.config.federation.rounds for job in jobs} == {3}


def test_unknown_names_are_one_sentence() -> None:
    with pytest.raises(SuiteError, match="there is no suite 'nope'; there are digits"):
        load_jobs("nope", {}, [], [])
    with pytest.raises(SuiteError, match="has no variant"):
        load_jobs("digits", {}, [], ["nope"])
    with pytest.raises(ConfigError, match="unknown configuration key"):
        load_jobs("digits", {"lora.rnk": 3}, [], [])


def _result(variant: str, seed: int, share: float) -> dict:
    figures = {
        name: {"mean": share, "std": 0.1, "worst_tenth": share / 2} for name in ("zero_step", "k_step", "chosen")
    }
    return {
        "variant": variant,
        "seed": seed,
        "commit": "abc",
        "rounds": [{"evaluation": {}}, {"evaluation": {"seen": figures, "unseen": figures}}],
    }


def test_the_table_shows_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.6, 0.7)):
        (tmp_path / f"a-{seed}.json").write_text(json.dumps(_result("a", seed, share)))
    (tmp_path / "b-0.json").write_text(json.dumps(_result("b", 0, 0.25)))
    lines = accuracy_table(load_results(tmp_path), ["b", "a"]).splitlines()
    assert lines[2].startswith("| b | 25.0 | 25.0 | 12.5 | 25.0 |")
    assert lines[3].startswith("| a | 60.0 ± 10.0 | 60.0 ± 10.0 | 30.0 ± 5.0 | 60.0 ± 10.0 |")
    assert "commit abc" in lines[-1]


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.6, 0.7)):
        (tmp_path / f"a-{seed}.json").write_text(json.dumps(_result("a", seed, share)))
        (tmp_path / f"b-{seed}.json").write_text(json.dumps(_result("b", seed, share + 0.1)))
    lines = paired_table(load_results(tmp_path), ["a", "b"], "a").splitlines()
    assert lines[-1].startswith("| b | +10.0 ± 0.0 | +10.0 ± 0.0 | +5.0 ± 0.0 |")


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    target = tmp_path / "hyperlora-seed0.json"
    job = load_jobs("digits", {"federation.rounds": 3}, [0], ["hyperlora"])[0]
    assert not is_there(job, target)
    target.write_text(json.dumps({"config": {**job.config.flat(), "run.output-dir": "elsewhere", "old.key": 1}}))
    assert is_there(job, target)
    assert not is_there(load_jobs("digits", {"federation.rounds": 4}, [0], ["hyperlora"])[0], target)

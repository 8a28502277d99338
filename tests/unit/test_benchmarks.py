from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cost import cost_of
from benchmarks.fingerprint import product_fingerprint
from benchmarks.pages import FIGURES, hours
from benchmarks.result import is_run, load_results, missing_jobs, pack_runs, packed_file, run_file, write_json
from benchmarks.run_job import require_all_clients, run_federation
from benchmarks.suite import (
    HERE,
    Job,
    SuiteError,
    chosen_settings,
    flatten,
    load_jobs,
    seeds_of,
    suite_title,
    tuning_suite,
)
from benchmarks.table import accuracy_table, paired_table, steps_table
from benchmarks.tracks import domain_table, target_table
from benchmarks.trials import AdaptingGrid, trials
from benchmarks.tuning import choose, tried_of
from hyperlora.config.schema import ConfigError, RunConfig

SUITES = sorted(path.stem for path in (HERE / "suites").glob("*.toml"))


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_parses_and_names_its_runs_apart(suite: str) -> None:
    jobs = load_jobs(suite, {}, [], [])
    assert len({run_file(HERE, job) for job in jobs}) == len(jobs)


@pytest.mark.parametrize("preset", sorted((HERE / "presets").glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_is_a_configuration(preset: Path) -> None:
    values = flatten(tomllib.loads(preset.read_text()))
    assert RunConfig.parse(values).data.name == values["data.name"]


def test_overrides_and_seeds_reach_every_run() -> None:
    jobs = load_jobs("digits", {"federation.rounds": 3}, [7, 8], ["fedit", "hyperlora"])
    assert [job.config.seed for job in jobs] == [7, 7, 8, 8]
    assert {job.config.federation.rounds for job in jobs} == {3}


def test_unknown_names_are_one_sentence() -> None:
    with pytest.raises(
        SuiteError, match="there is no suite 'nope'; there are adapters, adapters-routed, attacks, budgets"
    ):
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
        "suite": "any",
        "variant": variant,
        "seed": seed,
        "commit": "abc",
        "rounds": [{"evaluation": {}}, {"evaluation": {"seen": figures, "unseen": figures}}],
    }


def test_the_table_shows_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.6, 0.7)):
        write_json(tmp_path / ".runs" / "any" / f"a-{seed}.json", _result("a", seed, share))
    pack_runs(tmp_path, "any")
    write_json(tmp_path / ".runs" / "any" / "b-0.json", _result("b", 0, 0.25))
    lines = accuracy_table(load_results(tmp_path, "any"), ["b", "a"]).splitlines()
    assert lines[2].startswith("| b | 25.0 | 25.0 | 12.5 | 25.0 |")
    assert lines[3].startswith("| a | 60.0 ± 10.0 | 60.0 ± 10.0 | 30.0 ± 5.0 | 60.0 ± 10.0 |")
    assert "commit abc" in lines[-1]


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    for seed, share in enumerate((0.5, 0.6, 0.7)):
        write_json(tmp_path / ".runs" / "any" / f"a-{seed}.json", _result("a", seed, share))
        write_json(tmp_path / ".runs" / "any" / f"b-{seed}.json", _result("b", seed, share + 0.1))
    lines = paired_table(load_results(tmp_path, "any"), ["a", "b"], "a").splitlines()
    assert lines[-1].startswith("| b | +10.0 ± 0.0 | +10.0 ± 0.0 | +5.0 ± 0.0 |")


def test_a_run_of_other_settings_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (job,) = load_jobs("digits", {"federation.rounds": 3}, [0], ["hyperlora"])
    assert missing_jobs([job], tmp_path) == [job]
    _write_run(tmp_path, job)
    assert missing_jobs([job], tmp_path) == []
    (longer,) = load_jobs("digits", {"federation.rounds": 4}, [0], ["hyperlora"])
    assert missing_jobs([longer], tmp_path) == [longer]


def test_packed_runs_are_found_again_and_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    jobs = load_jobs("digits", {"federation.rounds": 3}, [0, 1], ["hyperlora", "fedit"])
    for folder, order in (("a", jobs), ("b", jobs[::-1])):
        for job in order:
            _write_run(tmp_path / folder, job)
            pack_runs(tmp_path / folder, "digits")
        assert missing_jobs(jobs, tmp_path / folder) == []
        assert not list((tmp_path / folder).rglob("*.json"))
    first, second = (packed_file(tmp_path / folder, "digits").read_bytes() for folder in ("a", "b"))
    assert first == second


def test_a_run_made_again_replaces_the_packed_one(tmp_path: Path) -> None:
    for rounds in (3, 4):
        (job,) = load_jobs("digits", {"federation.rounds": rounds}, [0], ["fedit"])
        _write_run(tmp_path, job)
        assert missing_jobs([job], tmp_path) == []
        pack_runs(tmp_path, "digits")
        (run,) = load_results(tmp_path, "digits")["fedit"]
        assert run["config"]["federation.rounds"] == rounds


def _write_run(results: Path, job: Job) -> None:
    config = {**job.config.flat(), "run.output-dir": "elsewhere", "old.key": 1}
    content = {"suite": job.suite, "variant": job.variant, "seed": job.config.seed, "config": config}
    write_json(run_file(results, job), content)


def test_a_grid_runs_every_variant_with_each_choice_and_the_best_by_validation_loss_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = load_jobs("digits-rates", {}, [], ["fedit"])
    assert [job.config.train.learning_rate for job in jobs] == [0.001, 0.003, 0.01, 0.03]
    found = {job.variant: [_validated(loss)] for job, loss in zip(jobs, (0.9, 0.5, 0.7, 0.8), strict=True)}
    results = {"digits-rates": found}
    monkeypatch.setattr("benchmarks.tuning.TUNED", tmp_path)
    monkeypatch.setattr("benchmarks.suite.TUNED", tmp_path)
    choose("digits-rates", jobs, results)
    assert chosen_settings("digits-rates") == {"fedit": {"train.learning-rate": 0.003}}
    assert load_jobs("digits", {}, [0], ["fedit"])[0].config.train.learning_rate == 0.003


def _validated(loss: float) -> dict:
    figures = {"zero_step_validation_loss": {"mean": loss + 1}, "k_step_validation_loss": {"mean": loss}}
    return {"seed": 0, "rounds": [{"evaluation": {"seen": figures}}]}


def test_rate_of_rounds_and_budget_of_use_are_chosen_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.tuning.TUNED", tmp_path)
    monkeypatch.setattr("benchmarks.suite.TUNED", tmp_path)
    jobs = load_jobs("pacs-tune", {}, [], ["fedit", "local"])
    losses = {"fedit @ 0.001": 0.9, "fedit @ 0.003": 0.5, "local @ 0.001": 0.2}
    found = {name: [_validated(loss)] for name, loss in losses.items()}
    found["fedit @ 0.001"][0]["adapting"] = [{"rate": 0.01, "steps": 5, "loss": 0.3}]
    found["fedit @ 0.003"][0]["adapting"] = [{"rate": 0.01, "steps": 5, "loss": 0.4}]
    found["local @ 0.001"][0]["adapting"] = [{"rate": 0.01, "steps": 5, "loss": 1.3}]
    choose("pacs-tune", jobs, {"pacs-tune": found})
    assert chosen_settings("pacs-tune") == {
        "fedit": {"train.learning-rate": 0.001, "train.adapt-learning-rate": 0.01, "train.adapt-steps": 5},
        "local": {"train.learning-rate": 0.001, "train.adapt-steps": 0},
    }
    (job,) = load_jobs("pacs/feature", {}, [10], ["fedit"])
    assert job.config.evaluation_steps == (0, 5)
    assert (job.config.train.rate_of_use, job.config.train.local_steps) == (0.01, 10)
    assert load_jobs("pacs/feature", {}, [10], ["local"])[0].config.evaluation_steps == (0,)


def test_what_a_budget_changes_for_some_clients_is_added_to_what_all_receive() -> None:
    jobs = load_jobs("pacs-tune", {}, [], ["fedit"])
    run = _validated(0.5)
    run["adapting"] = [{"rate": 0.1, "steps": 0, "loss": 2.0}, {"rate": 0.1, "steps": 5, "loss": 1.75}]
    trial = tried_of(jobs, {"pacs-tune": {"fedit @ 0.001": [run]}})["fedit"][0]
    assert (trial.as_received, trial.adapted) == (1.5, {(0.1, 5): 1.25})
    assert (trial.budget, trial.loss) == ((0.1, 5), 1.25)


def test_the_main_table_gives_the_class_prior_to_every_row_and_hetloras_clients_several_ranks() -> None:
    jobs = load_jobs("pacs", {}, [10], [])
    assert {job.config.prior_strength for job in jobs} == {1.0}
    assert {job.config.lora.client_ranks for job in jobs if job.variant == "hetlora"} == {(1, 2, 3, 4)}


def test_headline_has_runs_of_the_main_table_and_takes_less_than_forty_minutes_on_two_cores() -> None:
    jobs = load_jobs("headline", {}, [], [])
    main = {job.variant: job.config for job in load_jobs("pacs/feature", {}, [11], [])}
    assert all(job.config == main[job.variant] for job in load_jobs("headline/feature", {}, [11], []))
    assert cost_of(jobs, {}, 2) == "about 60 minutes of one core, 30 with 2 at the same time"


def test_runs_that_shared_a_gpu_are_named_and_tell_nothing_of_a_core() -> None:
    jobs = load_jobs("headline/feature", {}, [10], ["hyperlora"])
    shared = {"seconds": 3600.0, "environment": {"machine": {"gpus": ["H100"]}}}
    alone = {"seconds": 600.0, "environment": {"machine": {"gpus": []}}}
    assert hours({"a": [shared, alone]}, ["a"]).endswith("one core each; 1 of 2 runs shared a GPU (H100).")
    assert cost_of(jobs, {"headline/feature": {"hyperlora": [shared, alone]}}, 1).startswith("about 10 minutes")
    assert cost_of(jobs, {"headline/feature": {"hyperlora": [shared]}}, 1).startswith("about 2 minutes")


def test_all_variants_have_the_same_number_of_trials() -> None:
    table = {"grid": {"rate": [1, 2, 3, 4]}, "grids": {"b": {"rate": [1, 2], "own": [5, 6]}, "c": {"own": [5]}}}
    assert trials({}, "a") == [{}]
    assert len(trials(table, "a")) == len(trials(table, "b")) == 4
    assert trials(table, "b")[1] == {"rate": 1, "own": 6}
    with pytest.raises(SuiteError, match="the grid of 'c' has 1 trials, the other variants have 4 each"):
        trials(table, "c")


@pytest.mark.parametrize("suite", SUITES)
def test_no_suite_reports_on_seeds_that_it_was_tuned_on(suite: str) -> None:
    tuned = tuning_suite(suite)
    assert not tuned or not set(seeds_of(suite)) & set(seeds_of(tuned))


def test_budgets_of_use_are_tried_on_what_a_run_ends_with_and_change_nothing_of_it(tmp_path: Path) -> None:
    values = {"federation.rounds": 1, "federation.evaluate-every": 1, "train.local-steps": 2}
    (plain,) = load_jobs("smoke", values, [0], ["fedsa-lora"])
    tried = replace(plain, adapting=AdaptingGrid((0.001, 0.1), (2, 4), clients=2))
    for name, job in (("plain", plain), ("tried", tried)):
        run_federation(job, tmp_path / f"{name}.json")
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "tried"))
    assert one["clients"] == two["clients"]
    budgets = [(entry["rate"], entry["steps"]) for entry in two["adapting"]]
    assert budgets == [
        (0.001, 0),
        (0.001, 2),
        (0.001, 4),
        (0.1, 0),
        (0.1, 2),
        (0.1, 4),
    ]
    losses = [entry["loss"] for entry in two["adapting"]]
    assert losses[0] == losses[3]
    assert losses[1] != losses[4]
    assert one["fingerprint"] == two["fingerprint"] == product_fingerprint()


def test_clients_that_try_budgets_are_the_same_for_every_row_and_of_all_in_any_order() -> None:
    grid, names = AdaptingGrid((0.1,), (2,), clients=3), [f"client-{index}" for index in range(10)]
    drawn = grid.drawn(names, 0)
    assert len(drawn) == 3
    assert drawn == grid.drawn(reversed(names), 0)
    assert any(grid.drawn(names, seed) != drawn for seed in range(1, 5))
    assert AdaptingGrid((0.1,), (2,)).drawn(names, 0) == set(names)
    assert AdaptingGrid((0.1,), (2,), clients=20).drawn(names, 0) == set(names)


def test_the_fingerprint_is_that_of_what_the_code_does(tmp_path: Path) -> None:
    path = tmp_path / "models" / "a.py"
    path.parent.mkdir()
    says = []
    for text in ('"""One."""\nx = 1  # one\n', '"""Two."""\n\nx = 1\n', '"""Two."""\nx = 2\n'):
        path.write_text(text)
        product_fingerprint.cache_clear()
        says.append(product_fingerprint(tmp_path))
    assert says[0] == says[1] != says[2]


def test_a_suite_may_take_the_variants_of_another() -> None:
    of_pacs = [job.variant for job in load_jobs("pacs/feature", {}, [0], [])]
    of_clinc = [job.variant for job in load_jobs("clinc", {}, [0], [])]
    assert 1 < len(of_clinc) < len(of_pacs)
    assert set(of_clinc) < set(of_pacs)
    assert load_jobs("clinc", {}, [0], ["fedit"])[0].config.data.clients_per_domain == 10


def test_some_variants_may_have_fewer_seeds_and_any_that_is_asked_for() -> None:
    jobs = load_jobs("pacs/feature", {}, [], ["hyperlora", "flora"])
    seeds = {name: [job.config.seed for job in jobs if job.variant == name] for name in ("hyperlora", "flora")}
    assert seeds == {"hyperlora": [10, 11, 12, 13, 14], "flora": [10, 11, 12]}
    assert [job.config.seed for job in load_jobs("pacs/feature", {}, [14], ["flora"])] == [14]


def test_what_a_machine_keeps_on_its_disk_does_not_make_a_run_another() -> None:
    (job,) = load_jobs("pacs/feature", {}, [10], ["fedit"])
    (other,) = load_jobs("pacs/feature", {"train.embedding-cache-mb": 77, "data.path": "/elsewhere"}, [10], ["fedit"])
    (faster,) = load_jobs("pacs/feature", {"train.learning-rate": 0.5}, [10], ["fedit"])
    run = {"config": other.config.flat()}
    assert is_run(run, job)
    assert not is_run(run, faster)


def test_a_suite_with_axes_is_one_sub_suite_for_every_combination() -> None:
    jobs = load_jobs("paper", {}, [0], ["fedit"])
    assert len(jobs) == 8
    assert jobs[0].suite == "paper/vit-domainnet-6-clients"
    assert jobs[0].config.data.partition == "natural"
    assert [job.suite for job in load_jobs("paper/nico", {}, [0], ["fedit"])] == [
        f"paper/{backbone}-nico-{division}" for backbone in ("vit", "mixer") for division in ("6-clients", "30-clients")
    ]
    (job,) = load_jobs("paper/mixer-nico-30-clients", {}, [0], ["fedit"])
    assert (job.config.model.name, job.config.data.name) == ("mixer_b16_224.goog_in21k", "nico++")
    assert (job.config.data.dirichlet_alpha, job.config.data.clients_per_domain) == (0.5, 5)
    published = {(one.config.lora.rank, one.config.train.batch_size, one.config.train.optimizer) for one in jobs}
    assert published == {(16, 128, "sgd")}
    assert suite_title("paper/vit-nico-6-clients") == "published setting, vit-nico-6-clients"
    for unknown in ("paper/vit-office", "digits/vit"):
        with pytest.raises(SuiteError, match=f"there is no setting '{unknown}'; there are "):
            load_jobs(unknown, {}, [0], [])


def _round(accuracy: float, evaluation: dict) -> dict:
    return {
        "cohort": ["a", "b"],
        "training": {"start_accuracy": {"mean": accuracy}},
        "bytes": {"train_down": 2**20, "train_up": 2**20},
        "evaluation": evaluation,
        "seconds": {"aggregating": 0.1, "training": 1.0},
    }


def _run(variant: str, levels: list[float], curves: dict[str, float], method: str = "fedit") -> dict:
    group = {"zero_step": {"mean": 0.5, "worst_tenth": 0.1}, "k_step": {"mean": 0.6, "worst_tenth": 0.2}}
    group |= {"chosen": {"mean": 0.6}, "by_steps": curves}
    rounds = [_round(level, {}) for level in levels[:-1]] + [_round(levels[-1], {"seen": group, "unseen": group})]
    clients = [
        {"track": "start", "domain": domain, "zero_step": share, "num_test": count}
        for domain, share, count in (("x", 1.0, 1), ("x", 0.5, 3), ("y", 0.2, 5))
    ]
    config = {"method": method, "train.local-steps": 10}
    return {"variant": variant, "seed": 0, "rounds": rounds, "clients": clients, "config": config, "commit": "c"}


def test_the_cost_of_reaching_the_references_level_is_counted_in_rounds_steps_and_bytes() -> None:
    slow = _run("fedit", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {"0": 0.5})
    fast = _run("fast", [0.5, 0.5, 0.5, 0.9, 0.9, 0.9], {"0": 0.5})
    never = _run("never", [0.0] * 6, {"0": 0.5})
    lines = target_table({one["variant"]: [one] for one in (slow, fast, never)}, ["fedit", "fast", "never"], "fedit")
    assert lines.splitlines()[2:] == [
        "| fedit | 5.0 | 100.0 | 10.0 | 0.5 |",
        "| fast | 2.0 | 40.0 | 4.0 | 0.2 |",
        "| never | - | - | - | - |",
    ]


def test_the_global_model_is_scored_by_domain_and_methods_without_one_are_left_out() -> None:
    found = {"fedit": [_run("fedit", [0.1], {"0": 0.5})], "local": [_run("local", [0.1], {"0": 0.5}, "local")]}
    assert domain_table(found, ["fedit", "local"]).splitlines()[2:] == ["| fedit | 62.5 | 20.0 | 41.2 |"]


def test_a_domain_that_no_client_of_a_run_is_of_is_left_open() -> None:
    whole, part = _run("fedit", [0.1], {"0": 0.5}), _run("flexlora", [0.1], {"0": 0.5})
    part["clients"] = [one for one in part["clients"] if one["domain"] != whole["clients"][0]["domain"]]
    first, second = domain_table({"a": [whole], "b": [part]}, ["b", "a"]).splitlines()[2:]
    assert second == "| a | 62.5 | 20.0 | 41.2 |"
    assert first in ("| b |  | 20.0 | 20.0 |", "| b | 62.5 |  | 62.5 |")


def test_a_run_that_left_a_client_out_is_no_result() -> None:
    honest = [{"server_round": 1, "failures": {}}]
    require_all_clients(honest)
    late = {"server_round": 2, "failures": {"a": "it did not answer in time"}}
    with pytest.raises(RuntimeError, match="round 2 left 1 clients out, 'a' since it did not answer in time"):
        require_all_clients([*honest, late])


def test_variants_scored_after_other_numbers_of_steps_share_one_header() -> None:
    found = {"a": [_run("a", [0.1], {"0": 0.5, "2": 0.6, "10": 0.7})], "b": [_run("b", [0.1], {"0": 0.2, "5": 0.3})]}
    lines = steps_table(found, ["a", "b"]).splitlines()
    assert lines[0] == "| local steps | 0 | 2 | 5 | 10 |"
    assert lines[2] == "| a, seen | 50.0 | 60.0 |  | 70.0 |"
    assert lines[5] == "| b, unseen | 20.0 |  | 30.0 |  |"


def test_figures_are_drawn_from_results_alone(tmp_path: Path) -> None:
    found = {name: [_run(name, [0.1], {"0": 0.5, "10": 0.7})] for name in ("fedit", "hyperlora")}
    for name, draw in FIGURES.items():
        texts = []
        for place in ("one", "two"):
            target = tmp_path / place / f"{name}.svg"
            draw(found, list(found), target)
            texts.append(target.read_text())
        assert "hyperlora" in texts[0]
        assert texts[0] == texts[1]


def test_a_curve_has_the_steps_that_all_of_its_runs_have(tmp_path: Path) -> None:
    def run(seed: int, by_steps: dict[str, float]) -> dict:
        group = {"zero_step": {"mean": 0.5}, "k_step": {"mean": 0.6}, "by_steps": by_steps}
        return {"seed": seed, "rounds": [{"evaluation": {"seen": group, "unseen": group}}]}

    runs = {"a": [run(0, {"0": 0.5, "10": 0.6}), run(1, {"0": 0.5, "10": 0.6, "20": 0.7})]}
    for order in (runs["a"], runs["a"][::-1]):
        FIGURES["steps"]({"a": order}, ["a"], tmp_path / "steps.svg")
    assert (tmp_path / "steps.svg").exists()

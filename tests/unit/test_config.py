from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from benchmarks.suite import flatten
from hyperlora.config.schema import ConfigError, RunConfig, config_keys
from strategies.methods.lora_fair.config import LoraFairSettings
from strategies.methods.pfedhn_lora.config import PFedHNSettings
from strategies.methods.registry import build_method

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def test_defaults_in_pyproject_are_those_of_the_sections() -> None:
    assert flatten(PYPROJECT["tool"]["flwr"]["app"]["config"]) == RunConfig().flat()


def test_parse_is_the_inverse_of_flat() -> None:
    config = RunConfig.parse({"lora.rank": 8, "method": "fedit", "train.learning-rate": 1})
    assert config.lora.rank == 8
    assert config.train.learning_rate == 1.0
    assert RunConfig.parse(config.flat()) == config


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lora.rnk": 8}, "unknown configuration key 'lora.rnk'; did you mean 'lora.rank'?"),
        ({"lora.rank": 0}, "'lora.rank' must be at least 1, got 0"),
        ({"lora.rank": 4.0}, "'lora.rank' takes an integer, got 4.0"),
        ({"lora.rank": True}, "'lora.rank' takes an integer, got True"),
        ({"method": "fedsgd"}, "'method' must be one of 'hyperlora'"),
        ({"method": "lora-fiar"}, "got 'lora-fiar'; did you mean 'lora-fair'?"),
        ({"method": "hyperflora"}, "method 'hyperflora' is now called 'pfedhn-lora'"),
        ({"hyperflora.hidden": 8}, "'hyperflora.hidden' is now called 'pfedhn-lora.hidden'"),
        ({"method": 3}, "'method' takes a string, got 3 (int)"),
        ({"method": "my_app.fedprox"}, "'method' must be one of 'hyperlora'"),
        ({"wire.dtype": 16}, "'wire.dtype' takes a string, got 16 (int)"),
        ({"model.ship": 1}, "'model.ship' takes true or false, got 1 (int)"),
        ({"lora-fair.form": "open"}, "'lora-fair.form' must be one of 'closed', 'iterative', got 'open'"),
        ({"defence.norm": "off"}, "configuration key 'defence.norm' is now called 'defence.norm-rule'"),
        ({"hyperlora.learn": "gates"}, "'hyperlora.learn' is gone: nothing is learned from validation gradients"),
        ({"rivals.lora-fair-lambda": 1.0}, "'rivals.lora-fair-lambda' is now called 'lora-fair.penalty'"),
        ({"data.name": "imagenet"}, "'data.name' must be one of 'digits', 'folder', 'csv'"),
        ({"model.prompt": "a photo"}, "'model.prompt' must be a text with one {} in it"),
        ({"train.learning-rate": float("nan")}, "'train.learning-rate' must be greater than 0"),
        ({"data.test-fraction": 1.0}, "'data.test-fraction' must be at least 0 and below 1"),
    ],
)
def test_wrong_values_are_one_sentence(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(values)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_client_adapts_as_in_a_round_unless_the_budget_of_use_is_set() -> None:
    same = RunConfig.parse({"train.local-steps": 7, "train.learning-rate": 0.5})
    assert (same.train.steps_of_use, same.train.rate_of_use, same.evaluation_steps) == (7, 0.5, (0, 7))
    own = same.with_values(
        {"train.adapt-steps": 20, "train.adapt-learning-rate": 0.1, "federation.evaluate-steps": "5,40"}
    )
    assert (own.train.local_steps, own.train.steps_of_use, own.train.rate_of_use) == (7, 20, 0.1)
    assert own.evaluation_steps == (0, 5, 20)
    assert own.with_values({"train.adapt-steps": 0}).evaluation_steps == (0,)


def test_settings_of_an_old_run_are_read_under_their_new_names() -> None:
    stored = {"method": "hyperflora", "defence.norm": "off", "generator.hidden": 8, "rivals.lora-fair-lambda": 0.5}
    config = RunConfig.parse_stored(stored)
    assert (config.defence.norm_rule, config.of(LoraFairSettings).penalty) == ("off", 0.5)
    assert (config.method, config.of(PFedHNSettings).hidden, config.of(PFedHNSettings).inputs) == ("pfedhn-lora", 8, 16)
    assert RunConfig.parse_stored({"hyperflora.hidden": 7, "generator.hidden": 8}).of(PFedHNSettings).hidden == 7
    assert RunConfig.parse_stored(config.flat()) == config


def test_other_values_are_checked_like_the_first_ones() -> None:
    config = RunConfig.parse({"lora.rank": 8}).with_values({"lora.ranks": "2,8"})
    assert (config.lora.rank, config.lora.client_ranks) == (8, (2, 8))
    with pytest.raises(ConfigError, match=r"must lie between 1 and lora.rank 8"):
        config.with_values({"lora.ranks": "16"})


def test_sections_can_be_keys_and_do_not_change() -> None:
    assert hash(RunConfig.parse({"lora.rank": 8})) == hash(RunConfig.parse({"lora.rank": 8}))
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().lora.rank = 8


PACKAGE = {
    "__init__.py": "",
    "config.py": """
from typing import ClassVar
from pydantic import Field, NonNegativeFloat
from hyperlora.config.methods import MethodInfo
from hyperlora.config.section import Section

class Proximal(Section):
    prefix: ClassVar[str] = "fedprox"
    mu: NonNegativeFloat = Field(0.1, description="weight of the proximal term")

SECTIONS, INFO = (Proximal,), MethodInfo(uses_prior=True, any_rank=True)
""",
    "server.py": "import loaded_too_early",
}


def test_a_method_from_outside_has_its_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in PACKAGE.items():
        (tmp_path / "outside_app" / "fedprox" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outside_app" / "fedprox" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    values = {"method": "outside_app.fedprox", "fedprox.mu": 1, "lora.ranks": "2,4"}
    config = RunConfig.parse(values)
    assert config.flat() == {**RunConfig().flat(), **values, "fedprox.mu": 1.0}
    assert (config.prior_strength, RunConfig.parse(config.flat())) == (1.0, config)
    with pytest.raises(ConfigError, match=r"'fedprox.mu' must be 0 or more, got -1.0"):
        RunConfig.parse({**values, "fedprox.mu": -1})
    with pytest.raises(ConfigError, match=r"unknown configuration key 'fedprox.mo'; did you mean 'fedprox.mu'"):
        RunConfig.parse({**values, "fedprox.mo": 1})
    with pytest.raises(ConfigError, match=r"unknown configuration key 'fedprox.mu'"):
        RunConfig.parse({"fedprox.mu": 1})


def test_a_method_from_outside_can_be_a_single_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    settings = PACKAGE["config.py"]
    (tmp_path / "outside_method.py").write_text(settings + "def build(config):\n    return config.of(Proximal).mu\n")
    (tmp_path / "outside_settings.py").write_text(settings)
    (tmp_path / "outside_broken.py").write_text("import loaded_too_early")
    assert build_method(RunConfig.parse({"method": "outside_method", "fedprox.mu": 0.3})) == 0.3
    with pytest.raises(ConfigError, match=r"method 'outside_settings' .* has no function 'build\(config\)'"):
        build_method(RunConfig.parse({"method": "outside_settings"}))
    with pytest.raises(ConfigError, match="method 'outside_broken' cannot be imported: No module named 'loaded_too_e"):
        RunConfig.parse({"method": "outside_broken"})


def test_a_stored_run_with_keys_that_are_gone_can_be_read() -> None:
    stored = {"lora.rank": 8, "hyperlora.learn": "gates", "generator.newcomer-share": 0.5}
    assert RunConfig.parse_stored(stored) == RunConfig.parse({"lora.rank": 8})


@pytest.mark.parametrize("module", ["hyperlora.config.reference", "hyperlora.data.opening", "hyperlora.task"])
def test_configuration_and_data_sets_are_known_without_torch_and_without_flower(module: str) -> None:
    use = "from hyperlora.config.schema import RunConfig; RunConfig.parse({'method': 'lora-fair'})"
    code = f"import sys, {module}; {use}; print(sorted({{'torch', 'flwr'}} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_key_has_a_meaning() -> None:
    assert all(entry.meaning for entry in config_keys())

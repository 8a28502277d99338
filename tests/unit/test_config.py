from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from benchmarks.suite import flatten
from hyperlora.config.schema import ConfigError, RunConfig, config_keys

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


def test_defaults_in_pyproject_are_those_of_the_dataclass() -> None:
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


def test_every_key_has_a_meaning() -> None:
    assert all(entry.meaning for entry in config_keys())

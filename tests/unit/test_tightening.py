"""An operator under attack may tighten a run that goes on, and may not loosen it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperlora.config.schema import ConfigError, RunConfig
from server_app.run_directory import RunDirectory
from server_app.tightening import TIGHTER

LOOSE: dict[str, Any] = {
    "defence.norm-rule": "clip",
    "defence.factor": 5.0,
    "defence.aggregation": "mean",
    "defence.trim": 0.2,
    "federation.allowed-clients": "",
    "federation.clients-per-node": 3,
    "federation.min-replies": 1,
    "privacy.epsilon": 0.0,
    "privacy.exact-figures": True,
}
TIGHT: dict[str, Any] = {
    "defence.norm-rule": "reject",
    "defence.factor": 3.0,
    "defence.aggregation": "median",
    "defence.trim": 0.3,
    "federation.allowed-clients": "/etc/allowed.json",
    "federation.clients-per-node": 1,
    "federation.min-replies": 3,
    "privacy.epsilon": 2.0,
    "privacy.exact-figures": False,
}
NOISE: dict[str, Any] = {
    "privacy.signature-noise": 2.0,
    "privacy.adapter-noise": 2.0,
}


def kept(directory: Path, values: dict[str, Any]) -> None:
    RunDirectory(directory, resume=True).keep_config(RunConfig.parse(NOISE | values))


def needed(name: str) -> dict[str, Any]:
    """What has to stand beside a key so that both of its values are allowed."""
    return {"privacy.exact-figures": False} if name == "privacy.epsilon" else {}


def test_all_keys_that_tighten_are_tried() -> None:
    assert set(LOOSE) == set(TIGHT) == set(TIGHTER)


@pytest.mark.parametrize("name", TIGHTER)
def test_a_run_that_goes_on_may_be_tightened_and_not_loosened(tmp_path: Path, name: str) -> None:
    loose, tight = needed(name) | {name: LOOSE[name]}, needed(name) | {name: TIGHT[name]}
    kept(tmp_path, loose)
    kept(tmp_path, tight)
    with pytest.raises(ConfigError, match=f"cannot go on with another {name}"):
        kept(tmp_path, loose)


SUMS: dict[str, Any] = {"privacy.mode": "sums", "privacy.epsilon": 8.0}


@pytest.mark.parametrize(
    ("values", "changed"),
    [
        ({"federation.rounds": 60}, "federation.rounds"),
        ({"federation.evaluate-every": 1}, "federation.evaluate-every"),
        ({"privacy.epsilon": 4.0}, "privacy.epsilon"),
        ({"privacy.epsilon": 0.0}, "privacy.epsilon"),
    ],
)
def test_a_run_of_sums_with_noise_goes_on_with_what_its_noise_was_planned_by(
    tmp_path: Path, values: dict[str, Any], changed: str
) -> None:
    directory = RunDirectory(tmp_path, resume=True)
    directory.keep_config(RunConfig.parse(SUMS))
    directory.keep_config(RunConfig.parse(SUMS))
    with pytest.raises(ConfigError, match=f"cannot go on with another {changed}"):
        directory.keep_config(RunConfig.parse(SUMS | values))


def test_a_run_of_sums_cannot_have_noise_from_some_round_on(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, resume=True)
    directory.keep_config(RunConfig.parse(SUMS | {"privacy.epsilon": 0.0}))
    with pytest.raises(ConfigError, match=r"cannot go on with another privacy\.epsilon"):
        directory.keep_config(RunConfig.parse(SUMS))

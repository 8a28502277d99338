"""The settings of a suite: every combination of one choice on each of its axes, each a sub-suite of its own.

``[axes.backbone.vit]`` and ``[axes.data.domainnet]`` make the setting ``vit-domainnet``. A suite's name may be followed
by a choice or a setting: ``paper/domainnet`` is all settings with it, ``paper/vit-domainnet-6-clients`` is one.
A suite without axes is its own only setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any


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

"""The reference of configuration keys is complete and current, and the command answers misspelt keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.config.reference import reference
from hyperlora.config.schema import config_keys

ROOT = Path(__file__).resolve().parents[2]


def test_every_key_stands_in_the_reference_with_type_default_and_meaning() -> None:
    rows = {line.split("`")[1]: line for line in reference().splitlines() if line.startswith("| `")}
    assert list(rows) == [one.key for one in config_keys()]
    for one in config_keys():
        assert one.meaning in rows[one.key]
        assert len(one.meaning) > 5


def test_the_page_in_docs_is_what_the_command_writes() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m hyperlora.config.reference > docs/reference/configuration.md"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lora.rnak=4", "lora.rank"),
        ("federation.round=4", "federation.rounds"),
        ("hyperlora.temprature=1", "hyperlora.temperature"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest_one(wrong: str, right: str) -> None:
    outcome = CliRunner().invoke(app, ["run", str(ROOT), "-c", wrong])
    assert outcome.exit_code == 1
    assert f"unknown configuration key '{wrong.partition('=')[0]}'; did you mean '{right}'?" in outcome.output

"""The README's own lines, after a run: PEFT, and a folder that is personalised to."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.data.digits import digits_public

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
RUN = "runs/20261120-153459-hyperlora-seed0"
"""The run directory that the README names."""


@pytest.fixture
def reader(short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's directory with a finished run and a folder of digits, as the README describes them."""
    shutil.copytree(short_run, tmp_path / RUN, ignore=shutil.ignore_patterns("exports", "personal"))
    for index, (image, label) in enumerate(zip(*(part[:80] for part in digits_public()), strict=True)):
        path = tmp_path / "my-digits" / str(int(label)) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(255 - image[0].numpy()).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(heading: str) -> Iterator[list[str]]:
    """Yield the commands of the first block under a heading, without ``hyperlora`` and comments."""
    found = re.search(rf"### {heading}\n.*?```bash\n(.*?)```", README, flags=re.DOTALL)
    assert found, heading
    for line in found[1].splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "hyperlora"
        yield [argument.replace("runs/...", RUN) for argument in arguments]


def invoke(arguments: list[str]) -> str:
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_the_lines_with_peft_load_an_adapter_and_say_an_accuracy(
    reader: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"<!-- peft-lines -->\n```python\n(.*?)```", README, flags=re.DOTALL)
    assert found
    names: dict[str, object] = {}
    exec(found[1], names)
    said = re.fullmatch(r"tensor\((0\.\d+)\)\n", capsys.readouterr().out)
    assert said
    assert float(said[1]) > 0.3
    assert isinstance(names["model"], torch.nn.Module)


def test_the_folder_of_the_readme_gets_its_adapter(reader: Path) -> None:
    arguments, page = commands("An adapter for your own images")
    assert page == ["demo"]  # its page is tested in test_demo_server
    assert arguments == ["personalize", RUN, "my-digits"]
    assert "as generated, before any local step" in invoke(arguments)
    made = {path.name for path in (reader / RUN / "personal" / "my-digits").iterdir()}
    assert made == {"generated", "after-10-steps", "scores.json"}

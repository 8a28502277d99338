"""The help of every command answers at once: it imports none of the libraries that take seconds."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "datasets", "timm", "peft", "flwr", "matplotlib", "sklearn", "scipy")
PROGRAM = f"""
import sys
import typer
from typer.testing import CliRunner
from hyperlora.cli.main import app

def paths(command, path=()):
    yield path
    for name, below in getattr(command, "commands", {{}}).items():
        yield from paths(below, (*path, name))

seen = []
for path in paths(typer.main.get_command(app)):
    outcome = CliRunner().invoke(app, [*path, "--help"])
    assert outcome.exit_code == 0 and "Usage" in outcome.output, outcome.output
    seen.append(" ".join(path))
assert CliRunner().invoke(app, ["--version"]).exit_code == 0
print(*seen, sep="\\n")
print(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""


def test_no_help_imports_a_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "", "imported by a help: " + done.stderr
    commands = (
        "run",
        "certs",
        "certs server",
        "certs node",
        "certs signing",
        "certs allow",
        "personalize",
        "report",
        "compare",
    )
    more = "audit", "audit verify", "check", "demo", "export", "publish", "forget", "doctor", ""
    assert {*commands, *more} == set(done.stdout.split("\n")[:-1])

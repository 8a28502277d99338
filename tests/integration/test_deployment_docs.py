"""docs/deployment.md: its commands, copied one after another, start a federation of two sites and make a run."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperlora.cli.flower import base_environment
from hyperlora.cli.processes import MARKER, end_marked
from hyperlora.cli.superlink import free_port
from tests.deployment import REPOSITORY, until
from tests.integration.test_run_in_process import metrics_without_times

DOCUMENT = REPOSITORY / "docs" / "deployment.md"
SECOND_SITE = {"site-a": "site-b", "clean-0": "rotated-0", "9094": "9095"}
SLOWLY = " -c federation.join-timeout=400 -c federation.round-timeout=400"


def block(name: str) -> str:
    """Return the commands that follow the line ``<!-- name -->``."""
    found = re.search(rf"<!-- {name} -->\n```bash\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found, name
    return found[1]


class Copyist:
    """Runs blocks with ``home`` as the home directory, on ports that are free."""

    def __init__(self, home: Path) -> None:
        self.home, self.mark = home, uuid.uuid4().hex
        self._ports = {port: str(free_port()) for port in ("8443", "9094", "9095")}
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        own = {"HOME": str(home), "XDG_CACHE_HOME": cache, MARKER: self.mark, "NO_PROXY": "127.0.0.1"}
        self._environment = {**base_environment(), **own, "OMP_NUM_THREADS": "1"}

    def start(self, name: str, log: str, changes: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        text = block(name)
        for old, new in [*(changes or {}).items(), *self._ports.items()]:
            text = text.replace(old, new)
        with (self.home / log).open("ab") as sink:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def copy(self, name: str, log: str, changes: dict[str, str] | None = None) -> None:
        process = self.start(name, log, changes)
        assert process.wait(timeout=1200) == 0, (self.home / log).read_text()[-3000:]

    def said(self, log: str, text: str) -> bool:
        return text in (self.home / log).read_text(errors="replace")


@pytest.fixture
def copyist(tmp_path: Path) -> Iterator[Copyist]:
    one = Copyist(tmp_path)
    try:
        yield one
    finally:
        end_marked(one.mark)


@pytest.mark.slow
@pytest.mark.deployment
def test_the_commands_of_the_document_work_one_after_another(copyist: Copyist) -> None:
    copyist.start("server", "server.log")
    until(lambda: copyist.said("server.log", "Uvicorn running"), 120, "the start of the server")
    for log, changes in (("site-a.log", {}), ("site-b.log", SECOND_SITE)):
        for name in ("site key", "let in"):
            copyist.copy(name, log, changes)
        copyist.start("site", log, changes)
    for log in ("site-a.log", "site-b.log"):
        until(lambda log=log: copyist.said(log, "SuperNode ID"), 120, f"the start of {log}")
    copyist.copy("run", "run.log", {"federation.rounds=3": f"federation.rounds=1{SLOWLY}"})
    records = metrics_without_times(copyist.home / "hyperlora-server" / "runs" / "first")
    assert [record["cohort"] for record in records] == [["clean-0", "rotated-0"]]
    for site, client in (("a", "clean-0"), ("b", "rotated-0")):
        adapter = copyist.home / f"hyperlora-site-{site}" / "state" / client / "adapter"
        assert (adapter / "adapter_model.safetensors").is_file()

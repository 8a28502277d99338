"""docker/demo.sh as a run of sums: its three sites with the settings of the line in the docs, in this process."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Message
from flwr.common.config import parse_config_args

from benchmarks.local_grid import expired
from client_app.site import Site, read_site
from hyperlora.cli.certs import allow, node
from hyperlora.cli.settings import read_settings
from server_app.run import run
from tests.deployment import REPOSITORY
from tests.sites import SiteGrid

DOCKER = REPOSITORY / "docker"
NOT_HERE = ("federation.allowed-clients",)
"""What names a file in a container."""


def overrides(line: str) -> list[str]:
    """Return what follows every ``-c`` of a command."""
    words = shlex.split(line)
    return [words[place + 1] for place, word in enumerate(words) if word == "-c"]


def demo_values(directory: Path, *more: str) -> dict[str, Any]:
    script, document = (DOCKER / "demo.sh").read_text(), (REPOSITORY / "docs" / "deployment.md").read_text()
    made = re.search(r"hyperlora run \.\. (.*?)\"\$@\"", script.replace("\\\n", ""), re.DOTALL)
    documented = re.search(r"^docker/demo\.sh (.*privacy\.mode.*)$", document, re.MULTILINE)
    assert made
    assert documented
    texts = [one for one in overrides(made[1]) + overrides(documented[1]) if not one.startswith(NOT_HERE)]
    short = ["federation.join-timeout=5", "train.adapt-steps=0", "train.local-steps=2", *more]
    options = {"run.output-dir": str(directory)}
    return dict(read_settings(REPOSITORY, [], texts + short, options).config.flat())


def sites() -> list[Site]:
    """Return the sites of compose.yml."""
    services = yaml.safe_load((DOCKER / "compose.yml").read_text())["services"]
    commands = [one["command"][-1] for name, one in services.items() if re.fullmatch(r"site-\d", name)]
    found = [read_site(parse_config_args([one.removeprefix("--node-config=")])) for one in commands]
    return [site for site in found if site is not None]


def node_configs(directory: Path) -> list[dict[str, str]]:
    """Return the node configs of the sites, with what demo.sh makes for them in ``directory``."""
    for place, one in enumerate(sites()):
        node(directory / f"peer-{place}")
        allow(directory / "peers.json", one.client_id, directory / f"peer-{place}.pub", 30)
    return [
        {
            "client-id": one.client_id,
            "state-dir": str(directory / "state"),
            "peers": str(directory / Path(one.peers).name),
            "peer-key": str(directory / Path(one.peer_key).name),
        }
        for one in sites()
    ]


class Losing(SiteGrid):
    """Loses the first site while it works on the first masked answer of a round."""

    lost_in = 0

    def _answer(self, message: Message) -> Message:
        config: Any = message.content["config"]
        lost = (config.get("server_round"), config.get("step")) == (self.lost_in, "masked")
        if lost and message.metadata.dst_node_id == 1:
            self.present.discard(1)
        return super()._answer(message) if message.metadata.dst_node_id in self.present else expired(message)

    def get_node_ids(self) -> list[int]:
        if self.sent and self.sent[-1].metadata.group_id == "2":
            self.present.add(1)  # it is back before round 3
        return super().get_node_ids()


def made(directory: Path, *more: str, lost_in: int = 0) -> list[dict[str, Any]]:
    values = demo_values(directory / "run", *more)
    grid = Losing(values, node_configs(directory))
    grid.lost_in = lost_in
    written = run(grid, values) / "metrics.jsonl"
    return [json.loads(line) for line in written.read_text().splitlines()]


@pytest.mark.usefixtures("every_site_keeps_its_parts")
def test_the_documented_line_makes_a_run_over_the_three_sites_and_one_that_is_lost_costs_one_round(
    tmp_path: Path,
) -> None:
    records = made(tmp_path, "federation.rounds=3", lost_in=2)  # in round 3 it would rest, were there enough without it
    assert [one["training"].get("clients") for one in records] == [3, None, 3]
    assert records[1]["missing_sums"]["movement of A"] == "2 clients are left, and 3 is the least for a sum"
    assert f"sum {sites()[0].client_id}" in records[1]["failures"]
    assert records[2]["failures"] == {}
    assert records[2]["evaluation"]["seen"]["zero_step"]["mean"] > 0.2
    assert all((tmp_path / "state" / one.client_id / "adapter").is_dir() for one in sites())


def test_the_line_is_refused_with_more_clients_in_a_sum_than_there_are_in_a_round() -> None:
    with pytest.raises(ValueError, match="no round would have a sum"):
        demo_values(Path("/tmp"), "privacy.least-clients=4")

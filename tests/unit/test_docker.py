"""docker/: the compose file fits its schema, Flower takes every command in it, and each site is on its own."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import socket
import stat
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from flwr.cli.app import app as flwr
from flwr.common.config import parse_config_args
from flwr.supercore.cli.flower_superexec import _parse_args as superexec
from flwr.superlink.cli.flower_superlink import _parse_args_run_superlink as superlink
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode as supernode

from client_app.site import read_site

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SITES, PRIVATE = ("site-0", "site-1", "site-2"), ("superexec-", "peer-")
PARSERS = {"flwr/superlink": superlink, "flwr/supernode": supernode, "hyperlora-superexec": superexec}


def compose(name: str = "compose.yml") -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return content


SERVICES = compose()["services"]


def parser_of(service: dict[str, Any]) -> argparse.ArgumentParser:
    return PARSERS[service["image"].partition(":")[0]]()


@pytest.mark.parametrize("name", ["compose.yml", "compose.gpu.yml"])
def test_a_compose_file_fits_the_schema(name: str) -> None:
    schema = json.loads((ROOT / "tests" / "schemas" / "compose-spec.json").read_text())
    jsonschema.Draft201909Validator(schema).validate(compose(name))


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "register"])
def test_flower_takes_every_command(name: str) -> None:
    parsed = parser_of(SERVICES[name]).parse_args(SERVICES[name]["command"])
    if name in SITES:
        site = read_site(parse_config_args([parsed.node_config]))
        assert site is not None
        assert site.state_dir == "/state"
        assert (parsed.host, parsed.port, parsed.isolation) == ("0.0.0.0", 9094, "process")


def test_flower_takes_the_command_of_the_registration() -> None:
    line = re.search(r"flwr (supernode register .*?) 2>", (DOCKER / "register.sh").read_text())
    assert line
    command = typer.main.get_command(flwr)
    for key in SERVICES["register"]["command"]:
        words = [word.replace("$key", key) for word in shlex.split(line[1])]
        group = command.commands["supernode"]
        context = group.commands["register"].make_context("register", words[2:])
        assert (str(context.params["public_key"]), context.params["superlink"]) == (key, "demo")


def secrets_in(words: list[str]) -> set[str]:
    return {found for word in words for found in re.findall(r"/run/secrets/([\w.-]+)", word)}


def test_every_secret_that_a_command_names_is_given_to_it_and_no_other_private_key() -> None:
    for name, service in SERVICES.items():
        named = secrets_in([word for word in service["command"] if not word.startswith("--node-config")])
        if name.endswith("-app"):
            named |= secrets_in(SERVICES[name.removesuffix("-app")]["command"][-1:])  # of the node config
        assert named <= set(service["secrets"]), name
        private = {one for one in service["secrets"] if one in (*SITES, "server.key") or one.startswith(PRIVATE)}
        assert private <= named, name
    assert {one for service in SERVICES.values() for one in service["secrets"]} == set(compose()["secrets"])


def test_a_site_shares_a_network_with_the_superlink_alone_and_none_of_its_networks_leads_outside() -> None:
    networks = compose()["networks"]
    members = {one: {name for name, service in SERVICES.items() if one in service["networks"]} for one in networks}
    outside = [name for name, settings in networks.items() if not (settings or {}).get("internal")]
    assert [members[name] for name in outside] == [{"superlink"}]
    assert members["server"] == {"superlink", "serverapp", "register"}
    for site in SITES:
        assert members[site] == {site, f"{site}-app"}
        assert members[site.replace("site", "uplink")] == {"superlink", site}
        assert set(SERVICES[site]["networks"]) == {site, site.replace("site", "uplink")}


def test_the_image_is_built_once_and_without_cuda_unless_gpus_are_asked_for() -> None:
    built = {name for name, service in SERVICES.items() if "build" in service}
    shared = {name for name, service in SERVICES.items() if service["image"] == "hyperlora-superexec"}
    assert built == {"serverapp"}
    assert built < shared
    assert all(SERVICES[name]["pull_policy"] == "never" for name in shared)
    assert SERVICES["serverapp"]["build"]["args"] == {"TORCH_BACKEND": "cpu"}
    assert compose("compose.gpu.yml")["services"]["serverapp"]["build"]["args"] == {"TORCH_BACKEND": ""}
    copied = re.findall(r"^COPY (.*) \S+$", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()} - {"*"}
    assert {name for line in copied for name in line.split()} == allowed
    assert all((ROOT / name).is_file() for name in allowed)


def test_every_container_has_limits_and_logs_that_do_not_grow() -> None:
    for name, service in SERVICES.items():
        assert service["mem_limit"] in ("1g", "4g"), name
        assert service["pids_limit"] > 0, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_a_health_check_is_frequent_at_the_start_only() -> None:
    for name in ("superlink", *SITES):
        health = SERVICES[name]["healthcheck"]
        assert (health["interval"], health["start_interval"], health["start_period"]) == ("30s", "2s", "120s"), name


def test_the_key_that_signs_certificates_is_given_to_no_container() -> None:
    assert not any("ca.key" in secret["file"] for secret in compose()["secrets"].values())
    assert "chown 0:0 demo/tls/ca.key" in (DOCKER / "demo.sh").read_text()


def test_a_sites_data_are_mounted_read_only_and_in_its_own_app_alone() -> None:
    for name, service in SERVICES.items():
        mounted = [volume for volume in service.get("volumes", []) if "/data" in volume]
        own = name.removesuffix("-app")
        assert mounted == ([f"./demo/data/{own}:/data:ro"] if name != own else []), name


def test_every_container_is_unprivileged_and_reaps_its_children() -> None:
    for name, service in SERVICES.items():
        assert service["init"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].endswith(":-49999:49999}"), name
        assert "privileged" not in service, name


def test_servers_have_health_checks_and_what_needs_them_waits_for_them() -> None:
    for name in ("superlink", *SITES):
        assert SERVICES[name]["healthcheck"]["test"][:2] == ["CMD", "python"], name
        compile(SERVICES[name]["healthcheck"]["test"][-1], name, "exec")
    for name, service in SERVICES.items():
        for other, needed in service.get("depends_on", {}).items():
            assert needed["condition"] in ("service_healthy", "service_completed_successfully"), name
            assert other in SERVICES


def test_one_flower_version_everywhere() -> None:
    versions = set(re.findall(r"flwr/\w+:([\d.]+)", (DOCKER / "compose.yml").read_text()))
    versions |= set(re.findall(r"FLWR_VERSION=([\d.]+)", (DOCKER / "Dockerfile").read_text()))
    assert versions == set(re.findall(r'flwr-version-target = "([\d.]+)"', (ROOT / "pyproject.toml").read_text()))


def test_nothing_but_volumes_and_tmp_can_be_written() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["tmpfs"] == ["/tmp:mode=1777,size=512m"], name


def test_the_probe_tells_what_is_reached_from_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = runpy.run_path(str(DOCKER / "probe.py"))
    main = probe["main"]
    monkeypatch.setitem(main.__globals__, "NOT_MOUNTED", tmp_path / "missing" / "probe")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("127.0.0.1", 0)) as closed:
        there, gone = (f"127.0.0.1:{one.getsockname()[1]}" for one in (server, closed))
        closed.close()
        assert main([f"may={there}", gone]) == 0
        assert main([there]) == 1
        assert main([f"may={gone}"]) == 1
    assert f"{there} is reached: WRONG" in capsys.readouterr().out
    monkeypatch.setitem(main.__globals__, "NOT_MOUNTED", tmp_path / "probe")
    assert main([]) == 1
    assert list(tmp_path.iterdir()) == []


def test_every_site_is_probed_before_the_demo_makes_a_run() -> None:
    script, demo = (DOCKER / "probe.sh").read_text(), (DOCKER / "demo.sh").read_text()
    assert re.search(r"^sites=\((.*)\)$", script, flags=re.MULTILINE)[1].split() == list(SITES)  # type: ignore[index]
    assert demo.index("docker compose up") < demo.index("./probe.sh") < demo.index("hyperlora run ..")
    assert all((DOCKER / name).stat().st_mode & stat.S_IXUSR for name in ("probe.sh", "demo.sh"))


def test_the_demo_makes_every_file_that_the_compose_file_mounts() -> None:
    script = (DOCKER / "demo.sh").read_text()
    assert (DOCKER / "demo.sh").stat().st_mode & stat.S_IXUSR
    for secret in compose()["secrets"].values():
        name = secret["file"].removeprefix("./")
        made = re.sub(r"site-\d", "$site", name)
        known = (made, re.sub(r"superexec-.*", "superexec-$name", name), "demo/tls")
        assert any(one in script for one in known), name

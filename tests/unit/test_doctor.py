"""`hyperlora doctor`: what it finds, and the words in which it says how to put it right."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from typer.testing import CliRunner

from hyperlora.cli import doctor
from hyperlora.cli.doctor import Status
from hyperlora.cli.main import app


def run_doctor(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["doctor", *arguments])
    return outcome.exit_code, outcome.output


def test_a_good_machine_ends_with_status_0_and_json_that_a_script_reads() -> None:
    status, said = run_doctor("--format", "json")
    found = {one["check"]: one for one in json.loads(said)}
    assert status == 0
    assert found["flwr"]["found"].startswith("1.41.")
    assert "hyperlora" in found["methods"]["found"]
    assert "digits-vit" in found["backbones"]["found"]


def test_the_text_names_every_check() -> None:
    status, said = run_doctor()
    assert status == 0
    assert all(one.check in said for one in doctor.all_findings())


def test_another_flower_is_wrong_and_the_command_to_install_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "1.42.0" if name == "flwr" else "1.0")
    status, said = run_doctor()
    assert status == 1
    assert "pip install 'flwr[simulation]>=1.41,<1.42'" in said


def test_a_gpu_that_clients_would_not_get_is_told_with_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H200")
    finding = doctor.check_device()
    assert finding.status is Status.HINT
    assert "--gpus-per-client 0.25" in finding.fix


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {port: "SuperLink"})
        (finding,) = doctor.check_ports()
    assert finding.status is Status.HINT
    assert "flower-superlink --port N" in finding.fix
    (finding,) = doctor.check_ports()
    assert finding.status is Status.OK


def test_a_full_disk_is_told_with_the_option_that_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert [one.status for one in doctor.check_disk()] == [Status.HINT, Status.HINT]
    assert "--output-dir" in next(doctor.check_disk()).fix


def test_missing_programs_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "flwr" else name)
    finding = doctor.check_programs()
    assert finding.status is Status.WRONG
    assert finding.found == "missing: flwr"


def test_it_names_own_data_and_every_family_of_backbones() -> None:
    found = {finding.check: finding.found for finding in doctor.check_registry()}
    assert all(name in found["own data"] for name in ("folder", "csv", "instructions"))
    assert {"pacs", "fdu-mtl", "digits"} <= set(found["data sets"].split(", "))
    assert all(name in found["backbones hf:"] for name in ("bert", "clip", "dinov2", "llama", "hf:"))

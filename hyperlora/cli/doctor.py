"""`hyperlora doctor`: what this machine has, what is wrong with it and the flag or command that puts it right."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer

from hyperlora.cli.output import OutputFormat, print_table, reports_errors, say

FLOWER = "1.41."
PACKAGES = ("hyperlora", "flwr", "ray", "torch", "timm", "peft", "transformers", "datasets", "safetensors", "numpy")
PROGRAMS = ("flwr", "flower-superlink", "flower-supernode")
PORTS = {8000: "SuperLink", 9094: "SuperNode"}
EXAMPLE = "deit_tiny_patch16_224"
GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 2 * GIB, 4 * GIB


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    HINT = "hint"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What one check found; ``fix`` is empty where there is nothing to do."""

    check: str
    status: Status
    found: str
    fix: str = ""


@reports_errors
def doctor(
    output: Annotated[OutputFormat, typer.Option("--format", help="json for scripts.")] = OutputFormat.TEXT,
) -> None:
    """Check versions, cores, GPUs, ports, disk and backbones; status 1 where something is wrong.

    Examples:

        hyperlora doctor

        hyperlora doctor --format json
    """
    findings = list(all_findings())
    if output is OutputFormat.JSON:
        say(json.dumps([asdict(finding) for finding in findings]))
    else:
        print_table(("check", "", "found"), [(each.check, each.status, each.found) for each in findings])
        for each in findings:
            if each.fix:
                say(f"{each.check}: {each.fix}", style="red" if each.status is Status.WRONG else "yellow")
    if any(each.status is Status.WRONG for each in findings):
        raise typer.Exit(1)


def all_findings() -> Iterator[Finding]:
    """Yield the findings of all checks."""
    yield check_python()
    yield from check_packages()
    yield check_programs()
    yield from check_machine()
    yield check_device()
    yield from check_disk()
    yield from check_ports()
    yield from check_registry()


def check_python() -> Finding:
    """Tell which Python runs."""
    return Finding("python", Status.OK, f"{sys.version.split()[0]} at {sys.executable}")


def check_packages() -> Iterator[Finding]:
    """Tell the version of every package that matters, and whether Flower is one this was made for."""
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, Status.WRONG, "not installed", f"{sys.executable} -m pip install {name}")
            continue
        if name == "flwr" and not found.startswith(FLOWER):
            fix = f"{sys.executable} -m pip install 'flwr[simulation]>=1.41,<1.42'"
            yield Finding(name, Status.WRONG, f"{found}, made for {FLOWER}x", fix)
        else:
            yield Finding(name, Status.OK, found)


def check_programs() -> Finding:
    """Tell whether Flower's programs lie beside this Python or on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        fix = f"{sys.executable} -m pip install --force-reinstall 'flwr[simulation]>=1.41,<1.42'"
        return Finding("flower programs", Status.WRONG, f"missing: {', '.join(missing)}", fix)
    return Finding("flower programs", Status.OK, ", ".join(PROGRAMS))


def check_machine() -> Iterator[Finding]:
    """Tell cores and memory."""
    cores, free = len(os.sched_getaffinity(0)), psutil.virtual_memory().available
    yield Finding("cores", Status.OK, f"{cores}; a simulation runs {cores} clients at once (--cpus-per-client 1)")
    if free < LEAST_MEMORY:
        fix = "run fewer clients at once: hyperlora run --cpus-per-client 2 (or more)"
        yield Finding("memory", Status.HINT, f"{free / GIB:.1f} GiB available", fix)
    else:
        yield Finding("memory", Status.OK, f"{free / GIB:.1f} GiB available")


def check_device() -> Finding:
    """Tell what a client trains on, and the flag that gives it a GPU."""
    import torch

    from client_app.workplace import available_threads

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if names:
        fix = "hyperlora run --gpus-per-client 0.25 (four clients share one; without it Ray hides GPUs from clients)"
        return Finding("clients train on", Status.HINT, f"the CPU, though there is {', '.join(names)}", fix)
    return Finding("clients train on", Status.OK, f"the CPU, up to {available_threads()} thread(s); no GPU is visible")


def check_disk() -> Iterator[Finding]:
    """Tell the free disk where runs and caches go."""
    for name, path, flag in (("runs", Path.cwd(), "--output-dir"), ("cache", Path.home(), "XDG_CACHE_HOME")):
        free = shutil.disk_usage(path).free
        found = f"{free / GIB:.1f} GiB free at {path}"
        low = free < LEAST_DISK
        fix = f"free some, or name another disk with {flag}" if low else ""
        yield Finding(f"disk for {name}", Status.HINT if low else Status.OK, found, fix)


def check_ports() -> Iterator[Finding]:
    """Tell whether the ports of a deployment are free; a simulation takes any free one by itself."""
    for port, who in PORTS.items():
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            program = f"flower-{who.lower()}"
            fix = f"only for a deployment: {program} --port N with another N (hyperlora run finds a port by itself)"
            yield Finding(f"port {port}", Status.HINT, f"taken; it is the {who}'s default", fix)
        else:
            yield Finding(f"port {port}", Status.OK, f"free ({who})")


def check_registry() -> Iterator[Finding]:
    """Tell the known methods, data sets and backbones."""
    from hyperlora.config.methods import METHODS
    from hyperlora.data.federation import DATA_SETS
    from models.backbones import digits_vit

    yield Finding("methods", Status.OK, ", ".join(METHODS))
    yield Finding("data sets", Status.OK, ", ".join(DATA_SETS))
    yield Finding("backbones", Status.OK, f"{digits_vit.NAME} (embedded), timm's VisionTransformers, as {EXAMPLE}")

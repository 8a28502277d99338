"""`hyperlora doctor`: what this machine has, what is wrong with it and the flag or command that puts it right."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import psutil
import typer

from hyperlora.cli.output import OutputFormat, print_table, reports_errors, say
from hyperlora.cli.processes import usable_cores
from hyperlora.storage.files import CACHE, cache_directory

FLOWER = "1.41."
INSTALL, FLOWER_PACKAGE = f"{sys.executable} -m pip install", "'flwr[simulation]>=1.41,<1.42'"
PACKAGES = ("hyperlora", "flwr", "ray", "torch", "timm", "peft", "transformers", "datasets", "safetensors", "numpy")
PROGRAMS = ("flwr", "flower-superlink", "flower-supernode")
PORTS = {8000: "SuperLink", 9094: "SuperNode"}
EXAMPLE, HUB_EXAMPLE = "deit_tiny_patch16_224", "hf:sentence-transformers/all-MiniLM-L6-v2"
GIB = 2**30
LEAST_DISK, LEAST_MEMORY = 2 * GIB, 4 * GIB


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    HINT = "hint"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """What a check found; ``fix`` is empty where there is nothing to do, ``broken`` is true where a run would fail."""

    check: str
    found: str
    fix: str = ""
    broken: bool = False

    @property
    def status(self) -> Status:
        """How bad it is."""
        return Status.WRONG if self.broken else Status.HINT if self.fix else Status.OK

    def as_json(self) -> dict[str, str]:
        """Return what scripts read."""
        return {"check": self.check, "status": self.status, "found": self.found, "fix": self.fix}


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
        say(json.dumps([finding.as_json() for finding in findings]))
    else:
        print_table(("check", "", "found"), [(each.check, each.status, each.found) for each in findings])
        for each in findings:
            if each.fix:
                say(f"{each.check}: {each.fix}", style="red" if each.status is Status.WRONG else "yellow")
    if any(each.status is Status.WRONG for each in findings):
        raise typer.Exit(1)


def all_findings() -> Iterator[Finding]:
    """Yield the findings of all checks."""
    yield from check_packages()
    yield check_programs()
    yield from check_machine()
    yield check_device()
    yield from check_disk()
    yield from check_ports()
    yield from check_registry()


def check_packages() -> Iterator[Finding]:
    """Tell the version of Python and of every package that matters, and whether this was made for that Flower."""
    yield Finding("python", f"{sys.version.split()[0]} at {sys.executable}")
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "not installed", f"{INSTALL} {name}", broken=True)
            continue
        if name == "flwr" and not found.startswith(FLOWER):
            yield Finding(name, f"{found}, made for {FLOWER}x", f"{INSTALL} {FLOWER_PACKAGE}", broken=True)
        else:
            yield Finding(name, found)


def check_programs() -> Finding:
    """Tell whether Flower's programs lie next to this Python or on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        fix = f"{INSTALL} --force-reinstall {FLOWER_PACKAGE}"
        return Finding("flower programs", f"missing: {', '.join(missing)}", fix, broken=True)
    return Finding("flower programs", ", ".join(PROGRAMS))


def check_machine() -> Iterator[Finding]:
    """Tell cores and memory."""
    cores, free = usable_cores(), psutil.virtual_memory().available
    yield Finding("cores", f"{cores}; a simulation runs {cores} clients at once (--cpus-per-client 1)")
    fix = "run fewer clients at once: hyperlora run --cpus-per-client 2 (or more)" if free < LEAST_MEMORY else ""
    yield Finding("memory", f"{free / GIB:.1f} GiB available", fix)


def check_device() -> Finding:
    """Tell what a client trains on, and the flag that gives it a GPU."""
    import torch

    from client_app.device import available_threads

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if names:
        fix = "hyperlora run --gpus-per-client 0.25 (four clients share one; without it Ray hides GPUs from clients)"
        return Finding("clients train on", f"the CPU, though there is {', '.join(names)}", fix)
    return Finding("clients train on", f"the CPU, up to {available_threads()} thread(s); no GPU is visible")


def check_disk() -> Iterator[Finding]:
    """Tell the free disk where runs and caches go."""
    cache = next(one for one in (cache_directory(), *cache_directory().absolute().parents) if one.is_dir())
    for name, path, flag in (("runs", Path.cwd(), "--output-dir"), ("cache", cache, CACHE)):
        free = shutil.disk_usage(path).free
        fix = f"free some, or name another disk with {flag}" if free < LEAST_DISK else ""
        yield Finding(f"disk for {name}", f"{free / GIB:.1f} GiB free at {path}", fix)


def check_ports() -> Iterator[Finding]:
    """Tell whether the ports of a deployment are free; a simulation takes any free port by itself."""
    for port, who in PORTS.items():
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        program = f"flower-{who.lower()}"
        fix = f"only for a deployment: {program} --port N with another N (hyperlora run finds a port by itself)"
        found = f"taken; it is the {who}'s default" if taken else f"free ({who})"
        yield Finding(f"port {port}", found, fix if taken else "")


def check_registry() -> Iterator[Finding]:
    """Tell the known methods, data sets and backbones."""
    from hyperlora.config.methods import METHODS
    from hyperlora.data.opening import OWN_DATA, READERS
    from models.backbones import digits_vit

    yield Finding("methods", ", ".join(METHODS))
    yield Finding("own data", f"{', '.join(OWN_DATA)} (data.name, with data.path)")
    yield Finding("data sets", ", ".join(name for name in READERS if name not in OWN_DATA))
    yield Finding("backbones", f"{digits_vit.NAME} (embedded); timm's ViTs and MLP-Mixers, as {EXAMPLE}")
    yield Finding("backbones hf:", f"{', '.join(hub_models())} of transformers, as {HUB_EXAMPLE}")


def hub_models() -> list[str]:
    """Return the architectures that a name with ``hf:`` may be of, as transformers calls them."""
    from models.backbones.loading import families
    from models.backbones.split_model import TransformersFamily

    found = (family.model_types for family in families() if isinstance(family, TransformersFamily))
    return sorted({name for names in found for name in names})

"""Network namespaces on this machine: a server and sites, each site with an address and a line to the server alone."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NETWORK = "10.213"


@dataclass(frozen=True)
class Line:
    """A namespace and its point-to-point line to the server's: the addresses of both ends."""

    namespace: str
    own: str
    server: str

    @property
    def inside(self) -> list[str]:
        """The beginning of a command that is to run in the namespace."""
        return ["ip", "netns", "exec", self.namespace]


def available() -> bool:
    """Tell whether this machine lets us make namespaces."""
    if not shutil.which("ip"):
        return False
    name = f"hl-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


@contextmanager
def namespaces(num_sites: int) -> Iterator[tuple[list[str], Line, list[Line]]]:
    """Make a server's namespace and yield the beginning of its commands, this process's line to it, and the sites'.

    The server's namespace forwards nothing, so no site reaches another.
    """
    mark = uuid.uuid4().hex[:6]
    server, lines = f"hl-{mark}-server", [_line(mark, index) for index in range(num_sites + 1)]
    try:
        for name in (server, *(line.namespace for line in lines[1:])):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for index, line in enumerate(lines):
            _connect(f"hl{mark}{index}", server, line, here=index == 0)
        yield ["ip", "netns", "exec", server], lines[0], lines[1:]
    finally:
        for name in (server, *(line.namespace for line in lines[1:])):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _line(mark: str, index: int) -> Line:
    return Line(f"hl-{mark}-{index}", f"{NETWORK}.{index}.2", f"{NETWORK}.{index}.1")


def _connect(device: str, server: str, line: Line, *, here: bool) -> None:
    """Lay the line; its own end stays in this process's namespace where ``here`` says so."""
    near, far = f"{device}n", f"{device}f"
    _ip("link", "add", near, "type", "veth", "peer", "name", far, "netns", server)
    own = [] if here else ["-n", line.namespace]
    if not here:
        _ip("link", "set", near, "netns", line.namespace)
    _ip(*own, "addr", "add", f"{line.own}/30", "dev", near)
    _ip(*own, "link", "set", near, "up")
    if not here:
        _ip(*own, "route", "add", "default", "via", line.server)
    _ip("-n", server, "addr", "add", f"{line.server}/30", "dev", far)
    _ip("-n", server, "link", "set", far, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"

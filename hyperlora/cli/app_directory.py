"""Which Flower app a command is about: the one that is named or stands here, or the one that comes with the package."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hyperlora.cli.output import say
from hyperlora.cli.settings import flower_app
from hyperlora.storage.files import write_bytes, write_text

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
SHIPPED = PACKAGE / "app"
"""In a wheel: the checkout's pyproject.toml and LICENSE."""
PACKED = re.compile(r"^fab-include = \[.*?^\]", re.DOTALL | re.MULTILINE)


@contextmanager
def app_directory(named: Path | None) -> Iterator[Path]:
    """Yield the directory of the app, as an absolute path.

    Args:
        named: what the user named; None takes the current directory where it is an app, else the package's own app,
            whose code is installed. An app that is only in a wheel lies in a temporary directory meanwhile.
    """
    if named is not None or is_app(Path.cwd()):
        yield (named or Path()).absolute()
        return
    say("there is no Flower app in this directory: the one that comes with HyperLoRA is run")
    if is_app(CHECKOUT):
        yield CHECKOUT
        return
    with tempfile.TemporaryDirectory(prefix="hyperlora-app-") as folder:
        yield installed_app(Path(folder))


def is_app(directory: Path) -> bool:
    """Tell whether a directory has a pyproject.toml that describes a Flower app, or one that cannot be read."""
    project = directory / "pyproject.toml"
    if not project.is_file():
        return False
    try:
        return flower_app(tomllib.loads(project.read_text(encoding="utf-8"))) is not None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return True


def installed_app(directory: Path) -> Path:
    """Write the app of the wheel into ``directory`` and return that: settings and names, no code.

    Flower packs what an app includes and takes the rest from what is installed.
    """
    text = (SHIPPED / "pyproject.toml").read_text(encoding="utf-8")
    write_text(directory / "pyproject.toml", PACKED.sub('fab-include = ["LICENSE"]', text), durable=False)
    write_bytes(directory / "LICENSE", (SHIPPED / "LICENSE").read_bytes(), durable=False)
    return directory

"""One file per family of backbones; each defines ``FAMILY`` and is found by itself."""

from __future__ import annotations

import pkgutil
from functools import cache
from importlib import import_module
from typing import cast

from models.backbone import Family


@cache
def families() -> tuple[Family, ...]:
    """Return the ``FAMILY`` of every file of this package, in the order of their names."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return tuple(cast(Family, import_module(f"{__name__}.{name}").FAMILY) for name in names)

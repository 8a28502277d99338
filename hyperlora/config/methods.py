"""The table of federated LoRA methods, and how a method's settings are found without importing torch.

A method is a module with ``build(config)``, or a folder with ``server.py`` (``build``), ``config.py`` (``SECTIONS``,
its settings) and ``client.py``. One from outside the table is named by its module path, as in ``my_app.fedprox``;
its ``config.py``, or the module itself, may have ``SECTIONS`` and ``INFO`` (a :class:`MethodInfo`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from hyperlora.config.renamed import RENAMED_METHODS
from hyperlora.config.section import ConfigError, Section, nearest, one_of


@dataclass(frozen=True)
class MethodInfo:
    """What both sides must know of a method.

    Attributes:
        module: path of its module or folder.
        uses_prior: whether clients carry their class prior in the head's bias where ``prior.use`` is ``method``.
        any_rank: whether its clients may have different ranks (``lora.ranks``).
        own_start: whether it makes ``lora_A`` before round 1 itself, so that ``lora.start`` cannot.
        takes_late: whether it averages movements, to which a reply to an earlier round's start belongs as well.
    """

    module: str = ""
    uses_prior: bool = False
    any_rank: bool = False
    own_start: bool = False
    takes_late: bool = False

    def load(self, part: str) -> ModuleType | None:
        """Import ``config``, ``server`` or ``client`` of the method's folder; None where it has no such file."""
        spec = find_spec(self.module)
        if spec is None or spec.submodule_search_locations is None or find_spec(f"{self.module}.{part}") is None:
            return None
        return import_module(f"{self.module}.{part}")


METHODS: Mapping[str, MethodInfo] = {
    "hyperlora": MethodInfo("strategies.methods.hyperlora", uses_prior=True, any_rank=True, takes_late=True),
    "fedit": MethodInfo("strategies.methods.fedit"),
    "flexlora": MethodInfo("strategies.methods.flexlora", any_rank=True),
    "local": MethodInfo("strategies.methods.local", any_rank=True),
    "ffa-lora": MethodInfo("strategies.methods.ffa_lora", own_start=True),
    "rolora": MethodInfo("strategies.methods.rolora"),
    "fedsa-lora": MethodInfo("strategies.methods.fedsa_lora"),
    "flora": MethodInfo("strategies.methods.flora", any_rank=True, own_start=True),
    "fedex-lora": MethodInfo("strategies.methods.fedex_lora"),
    "lora-fair": MethodInfo("strategies.methods.lora_fair"),
    "fed-sb": MethodInfo("strategies.methods.fed_sb", own_start=True),
    "hetlora": MethodInfo("strategies.methods.hetlora", any_rank=True),
    "feddpa": MethodInfo("strategies.methods.feddpa"),
    "potara": MethodInfo("strategies.methods.potara"),
    "pfedhn-lora": MethodInfo("strategies.methods.pfedhn_lora", own_start=True),
    "probe": MethodInfo("strategies.methods.probe", own_start=True),
    "clustered": MethodInfo("strategies.methods.clustered"),
    "fedper": MethodInfo("strategies.methods.fedper"),
    "ditto": MethodInfo("strategies.methods.ditto"),
    "hilora": MethodInfo("strategies.methods.hilora"),
    "lda": MethodInfo("strategies.methods.lda", own_start=True),
    "fed3r": MethodInfo("strategies.methods.fed3r", own_start=True),
}
METHOD_NAMES = one_of(METHODS)


def find_method(name: str) -> MethodInfo:
    """Return the method of the table, or the one from outside that ``name`` is the module path of.

    Raises:
        ConfigError: there is none, it has another name now, or its module cannot be imported.
    """
    if name in METHODS:
        return METHODS[name]
    if name in RENAMED_METHODS:
        raise ConfigError(f"method '{name}' is now called '{RENAMED_METHODS[name]}'")
    info: MethodInfo = getattr(_outside(name), "INFO", MethodInfo())
    return replace(info, module=name)


@lru_cache(maxsize=16)
def sections_of(name: str) -> tuple[type[Section], ...]:
    """Return the settings of one method; raises ConfigError as :func:`find_method`."""
    declarations = METHODS[name].load("config") if name in METHODS else _outside(name)
    return tuple(getattr(declarations, "SECTIONS", ()))


@lru_cache(maxsize=16)
def all_sections(name: str) -> tuple[type[Section], ...]:
    """Return the settings of all methods of the table, and of the method ``name`` where it is from outside.

    Raises:
        ConfigError: as :func:`find_method`, or two sections have the same prefix.
    """
    table = [section for known in METHODS for section in sections_of(known)]
    outside = [] if name in METHODS else list(sections_of(name))
    taken = {section.prefix for section in table}
    for section in outside:
        if section.prefix in taken or not section.prefix:
            raise ConfigError(f"method '{name}' has settings under '{section.prefix}', which is taken")
    return (*table, *outside)


def _outside(name: str) -> ModuleType:
    try:
        if all(part.isidentifier() for part in name.split(".")) and find_spec(name) is not None:
            return MethodInfo(name).load("config") or import_module(name)
    except ImportError as error:
        if error.name is None or not name.startswith(error.name):
            raise ConfigError(f"method '{name}' cannot be imported: {error}") from error
    raise ConfigError(f"configuration key 'method' must be {METHOD_NAMES}, got {name!r}{nearest(name, METHODS)}")

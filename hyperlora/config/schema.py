"""The run configuration: parsed and checked once, from the flat mapping that Flower hands an app.

:meth:`RunConfig.parse` turns ``{"lora.rank": 4}`` into frozen sections; from there on values travel as plain arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt

from hyperlora.config import settings
from hyperlora.config.lora import LoraConfig
from hyperlora.config.methods import METHOD_NAMES, all_sections, find_method, sections_of
from hyperlora.config.renamed import REMOVED, RENAMED, current_names
from hyperlora.config.section import (
    ConfigError,
    ConfigKey,
    Rule,
    S,
    Scalar,
    Section,
    key,
    keys_of,
    nearest,
    parse_section,
    values_of,
)

__all__ = ["PATH_KEYS", "ConfigError", "ConfigKey", "RunConfig", "Scalar", "config_keys"]

OF_ONE_MACHINE = ("train.device", "train.embedding-cache-mb", "train.prefix-cache-mb")
PATH_KEYS = ("data.path", "model.weights", "run.output-dir", "federation.allowed-clients", "run.signing-key")
DEFAULT_METHOD = "hyperlora"
MethodName = Annotated[str, Rule(lambda value: bool(find_method(value)), METHOD_NAMES)]


class RunConfig(Section):
    """One run, complete and checked.

    ``method_settings`` has the sections of all methods of the table, and of the run's method from outside it;
    :meth:`of` returns one of them.
    """

    method: MethodName = key(DEFAULT_METHOD, "federated LoRA method")
    seed: NonNegativeInt = key(0, "seed of data division, cohorts, initial factors and local batches")
    data: settings.DataConfig = settings.DataConfig()
    model: settings.ModelConfig = settings.ModelConfig()
    lora: LoraConfig = LoraConfig()
    train: settings.TrainConfig = settings.TrainConfig()
    prior: settings.PriorConfig = settings.PriorConfig()
    signature: settings.SignatureConfig = settings.SignatureConfig()
    federation: settings.FederationConfig = settings.FederationConfig()
    defence: settings.DefenceConfig = settings.DefenceConfig()
    privacy: settings.PrivacyConfig = settings.PrivacyConfig()
    wire: settings.WireConfig = settings.WireConfig()
    run: settings.RunDirectoryConfig = settings.RunDirectoryConfig()
    method_settings: tuple[Section, ...] = Field(
        default_factory=lambda: tuple(kind() for kind in all_sections(DEFAULT_METHOD))
    )

    @classmethod
    def parse(cls, values: Mapping[str, Scalar]) -> RunConfig:
        """Build the configuration from Flower's flat mapping; keys that are absent keep their default.

        Raises:
            ConfigError: for an unknown key, a value of another type or outside its range, or values that contradict
                each other.
        """
        top = parse_section(cls, values)
        _refuse_unknown(values, [entry.key for entry in config_keys(top.method)])
        core = {name: parse_section(kind, values, f"{name}.") for name, kind in _core_sections().items()}
        of_methods = [parse_section(kind, values, f"{kind.prefix}.") for kind in all_sections(top.method)]
        config = top.model_copy(update={**core, "method_settings": tuple(of_methods)})
        config._check()
        return config

    @classmethod
    def parse_stored(cls, values: Mapping[str, Scalar]) -> RunConfig:
        """Build the configuration from the ``config.json`` of a run directory, which may have names of old keys.

        Raises:
            ConfigError: as :meth:`parse`.
        """
        return cls.parse(current_names(values))

    def with_values(self, values: Mapping[str, Scalar]) -> RunConfig:
        """Return the configuration with other values, checked as :meth:`parse` does; raises ConfigError."""
        return type(self).parse({**self.flat(), **values})

    def of(self, kind: type[S]) -> S:
        """Return the settings of a method; their defaults where the run's method is another one from outside."""
        return next((section for section in self.method_settings if isinstance(section, kind)), kind())

    @property
    def prior_strength(self) -> float:
        """Gamma, the strength of the log class frequencies in the head's bias; 0 where the prior is off."""
        on = find_method(self.method).uses_prior if self.prior.use == "method" else self.prior.use == "on"
        return self.prior.gamma if on else 0.0

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Numbers of local steps after which an evaluation scores, in order, with 0 and those of use among them."""
        asked = {int(part) for part in self.federation.evaluate_steps.split(",") if part}
        last = self.train.steps_of_use
        return tuple(sorted({0, last} | {step for step in asked if step <= last}))

    def flat(self) -> dict[str, Scalar]:
        """Return the flat mapping that :meth:`parse` accepts, every key present."""
        return {name: value for prefix, section in self._sections() for name, value in values_of(section, prefix)}

    def public(self) -> dict[str, Scalar]:
        """Return :meth:`flat` without paths of a machine: what may stand in what is handed on."""
        return {name: value for name, value in self.flat().items() if name not in PATH_KEYS}

    def digest(self) -> str:
        """Return by what the settings that all parties of a run share are known again.

        Those of one machine are not among them, nor what the server writes (``run.*``).
        """
        own = (*PATH_KEYS, *OF_ONE_MACHINE)
        shared = {name: value for name, value in self.flat().items() if name not in own and not name.startswith("run.")}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()

    def _sections(self) -> Iterator[tuple[str, Section]]:
        yield "", self
        for name in _core_sections():
            yield f"{name}.", getattr(self, name)
        for section in self.method_settings:
            yield f"{section.prefix}.", section

    def _check(self) -> None:
        core = [getattr(self, name) for name in _core_sections()]
        of_method = [section for section in self.method_settings if type(section) in sections_of(self.method)]
        for section in [*core, *of_method]:
            section.check(self)


def config_keys(method: str = DEFAULT_METHOD) -> Iterator[ConfigKey]:
    """Yield every configuration key in the order of its declaration, for ``method`` from outside with its settings."""
    yield from keys_of(RunConfig)
    for name, kind in _core_sections().items():
        yield from keys_of(kind, f"{name}.")
    for kind in all_sections(method):
        yield from keys_of(kind, f"{kind.prefix}.")


def _core_sections() -> dict[str, type[Section]]:
    annotated = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {name: kind for name, kind in annotated.items() if isinstance(kind, type) and issubclass(kind, Section)}


def _refuse_unknown(names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name in RENAMED:
            raise ConfigError(f"configuration key '{name}' is now called '{RENAMED[name]}'")
        if name in REMOVED:
            raise ConfigError(f"configuration key '{name}' is gone: {REMOVED[name]}")
        if name not in known:
            raise ConfigError(f"unknown configuration key '{name}'{nearest(name, known)}")

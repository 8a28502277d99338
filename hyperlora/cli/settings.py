"""The settings of one run: the app's defaults, files and options laid over each other, then checked."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hyperlora.cli.output import CommandError
from hyperlora.config.renamed import current_names
from hyperlora.config.schema import PATH_KEYS, RunConfig, Scalar, config_keys
from hyperlora.storage.run_names import CONFIG, followed, is_published

INPUT_KEYS = ("data.path", "model.weights", "federation.allowed-clients", "run.signing-key")


@dataclass(frozen=True)
class Settings:
    """The app, its checked configuration, and the values that Flower is given."""

    app_dir: Path
    config: RunConfig
    values: Mapping[str, Scalar]


def read_settings(
    app_dir: Path,
    files: Sequence[Path],
    overrides: Sequence[str],
    options: Mapping[str, Scalar | None],
    resume: Path | None = None,
) -> Settings:
    """Lay ``files``, ``key=value`` texts and ``options`` over the defaults of the app; the later wins.

    The settings of the run in ``resume`` stand between the defaults and the files. Relative paths become absolute,
    seen from the current directory.

    Raises:
        CommandError: for a missing or malformed file, or a key that the app does not declare.
        ConfigError: for an unknown key or a wrong value.
    """
    defaults = app_defaults(app_dir)
    values = defaults | (settings_of_run(resume) if resume else {})
    for file in files:
        values.update(flatten(read_toml(file), file))
    values.update(parse_override(text) for text in overrides)
    values.update({name: value for name, value in options.items() if value is not None})
    values = with_absolute_paths(values)
    config = RunConfig.parse(values)
    require_declared(values, defaults, app_dir)
    return Settings(app_dir, config, {name: value for name, value in config.flat().items() if name in values})


def settings_of_run(directory: Path) -> dict[str, Scalar]:
    """Return the configuration of the run in ``directory``, set to go on there.

    Raises:
        CommandError: the directory holds no run.
    """
    directory = followed(directory)
    if is_published(directory):
        raise CommandError(f"'{directory}' was published to make adapters from, and cannot be gone on with")
    try:
        values: dict[str, Scalar] = dict(json.loads((directory / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CommandError(f"'{directory}' holds no run to go on with: its config.json cannot be read") from error
    return {**current_names(values), "run.output-dir": str(directory.absolute()), "run.resume": True}


def app_defaults(app_dir: Path) -> dict[str, Scalar]:
    """Return the flat ``[tool.flwr.app.config]`` of the Flower app in ``app_dir``."""
    project = app_dir / "pyproject.toml"
    if not project.is_file():
        raise CommandError(
            f"there is no Flower app in '{app_dir}': it holds no pyproject.toml; name no directory to run the app that "
            "comes with HyperLoRA"
        )
    app = flower_app(read_toml(project))
    if app is None:
        raise CommandError(f"'{project}' describes no Flower app: it has no [tool.flwr.app] section")
    return flatten(app.get("config", {}), project)


def flower_app(project: Any) -> dict[str, Any] | None:
    """Return the table ``[tool.flwr.app]`` of a pyproject.toml's content; None where it has none."""
    for name in ("tool", "flwr", "app"):
        project = project.get(name) if isinstance(project, dict) else None
    return project if isinstance(project, dict) else None


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of one TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"configuration file '{path}' cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"'{path}' is not valid TOML: {error}") from error


def flatten(table: Mapping[str, Any], source: Path | str = "the settings", prefix: str = "") -> dict[str, Scalar]:
    """Return nested TOML tables as a flat mapping with dotted keys.

    Raises:
        CommandError: a value is no scalar; the sentence names its key and ``source``.
    """
    flat: dict[str, Scalar] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= flatten(value, source, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            flat[prefix + name] = value
        else:
            raise CommandError(f"'{prefix}{name}' in '{source}' must be a number, a string or a boolean, got {value!r}")
    return flat


def parse_override(text: str) -> tuple[str, Scalar]:
    """Split ``key=value``; the value is a TOML scalar, or the text itself where it is none or the setting is a text."""
    name, equals, raw = text.partition("=")
    if not equals or not name.strip():
        raise CommandError(f"'-c {text}' is not of the form key=value")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    is_text = name.strip() in {entry.key for entry in config_keys() if entry.type is str}
    taken = isinstance(value, str) or (isinstance(value, (bool, int, float)) and not is_text)
    return name.strip(), value if taken else raw


def with_absolute_paths(values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return ``values`` with the paths in them seen from the current directory; an empty path stays empty."""
    given = {name: value for name in PATH_KEYS if isinstance(value := values.get(name), str) and value}
    # abspath and not resolve: a link stays the name that was given
    paths = {name: os.path.abspath(Path(value).expanduser()) for name, value in given.items()}  # noqa: PTH100
    return {**values, **paths}


def require_declared(values: Mapping[str, Scalar], defaults: Mapping[str, Scalar], app_dir: Path) -> None:
    """Refuse keys that Flower would refuse because the app's pyproject.toml has no default for them."""
    for name in values:
        if name not in defaults:
            raise CommandError(
                f"configuration key '{name}' is not declared in [tool.flwr.app.config] of "
                f"'{app_dir / 'pyproject.toml'}'"
            )


def require_inputs(config: RunConfig) -> None:
    """Check that the configured files exist on this machine and that the signing key is valid.

    Raises:
        CommandError: a path does not exist.
        StorageError: the signing key cannot be used.
    """
    values = config.flat()
    for name in INPUT_KEYS:
        if values[name] and not Path(str(values[name])).exists():
            raise CommandError(f"{name} = '{values[name]}' does not exist")
    if config.run.signing_key:
        from hyperlora.storage.signing import SigningKey  # cryptography takes a while to import

        SigningKey.read(Path(config.run.signing_key))


def new_output_dir(config: RunConfig, root: Path, now: datetime) -> Path:
    """Return a directory under ``root`` that does not exist yet, named by time, method and seed."""
    name = f"{now:%Y%m%d-%H%M%S}-{config.method}-seed{config.seed}"
    path, count = root / name, 1
    while path.exists():
        count += 1
        path = root / f"{name}-{count}"
    return path

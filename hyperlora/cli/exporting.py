"""What `hyperlora export` does: copy or merge an adapter of a run and write its card."""

from __future__ import annotations

import shutil
from pathlib import Path

from hyperlora.cli.expected import as_command_errors
from hyperlora.cli.output import CommandError
from hyperlora.cli.run_model import rebuild_model
from hyperlora.reporting.model_card import ANCHOR, accuracy_of_anchor, accuracy_of_client, model_card
from hyperlora.reporting.run_files import RunFiles
from models.adapters.export import merged, save_merged

LOAD_PEFT = """
from peft import PeftModel

# backbone: the frozen model named below, with a head of {classes} classes
model = PeftModel.from_pretrained(backbone, "{directory}")
"""
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_adapter(directory: Path, client: str | None, to: Path | None) -> Path:
    """Copy the adapter of ``client``, or the anchor, with a card; return where it lies.

    Raises:
        CommandError: the run has no such adapter, or the target exists.
    """
    with as_command_errors():
        run = RunFiles.open(directory)
        source, target = adapter_of(run, client), new_directory(to or run.path / "exports" / (client or ANCHOR))
        for name in PEFT_FILES:
            shutil.copyfile(source / name, target / name)
        classes = len(run.require_clients().class_names)
        write_card(run, client, target, LOAD_PEFT.format(directory=target.name, classes=classes))
    return target


def export_merged(directory: Path, client: str | None, to: Path | None, weights: Path | None) -> Path:
    """Write the backbone with the adapter added into its weights, and a card; return where it lies.

    Raises:
        CommandError: the run has no such adapter, the backbone is not that of the run, or the target exists.
    """
    with as_command_errors():
        run = RunFiles.open(directory)
        source, names = adapter_of(run, client), run.require_clients().class_names
        model = rebuild_model(run, weights)
        target = new_directory(to or run.path / "exports" / f"{client or ANCHOR}-merged")
        loading = save_merged(merged(model, source), model, names, target)
        write_card(run, client, target, loading)
    return target


def adapter_of(run: RunFiles, client: str | None) -> Path:
    """Return the PEFT directory of a client's adapter, or of the anchor.

    Raises:
        CommandError: there is none.
    """
    adapters = run.path / "adapters"
    if not adapters.is_dir():
        raise CommandError(
            f"the run in '{run.path}' has not ended, so it wrote no adapters; "
            f"go on with: hyperlora run --resume {run.path}"
        )
    wanted = adapters / (client or ANCHOR)
    names = sorted(path.name for path in adapters.iterdir() if path.name != ANCHOR)
    if client and client not in names:
        raise CommandError(f"the run has no client '{client}'; it has {', '.join(names)}")
    if not wanted.is_dir():
        raise CommandError(f"method '{run.config.method}' has no anchor: name a client with --client, as {names[0]}")
    return wanted


def write_card(run: RunFiles, client: str | None, target: Path, loading: str) -> None:
    """Write the model card of an exported anchor or client's adapter."""
    figures = accuracy_of_client(run, client) if client else accuracy_of_anchor(run)
    name = f"adapter of client {client}" if client else ANCHOR
    card = model_card(run, name, loading=loading, figures=figures or ["not evaluated"])
    (target / "README.md").write_text(card, encoding="utf-8")


def new_directory(path: Path) -> Path:
    """Make the directory ``path`` and return it absolute; raises CommandError where there is something in it."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CommandError(f"'{path}' is there already: name another one with --to")
    path.mkdir(parents=True, exist_ok=True)
    return path.absolute()

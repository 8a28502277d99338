"""What `hyperlora personalize` does, from the run directory to the PEFT directories with their cards."""

from __future__ import annotations

import json
from pathlib import Path

from hyperlora.cli.expected import as_command_errors
from hyperlora.cli.exporting import LOAD_PEFT, new_directory
from hyperlora.cli.personal import Outcome, Wishes, personalised
from hyperlora.reporting.model_card import model_card
from hyperlora.reporting.run_files import RunFiles


def make_adapters(directory: Path, folder: Path, wishes: Wishes, to: Path | None) -> tuple[Path, Outcome]:
    """Make, score and write the adapters for ``folder``; return where they lie and their scores.

    Raises:
        CommandError: it cannot be done.
    """
    with as_command_errors():
        run = RunFiles.open(directory)
        target = new_directory(to or run.path / "personal" / wishes.name)
        outcome = personalised(run, folder, wishes, target)
        classes = len(run.require_clients().class_names)
        for steps, accuracy in zip(outcome.steps, outcome.accuracy, strict=True):
            made = target / (f"after-{steps}-steps" if steps else "generated")
            card = model_card(
                run,
                f"adapter {wishes.name}",
                loading=LOAD_PEFT.format(directory=made.name, classes=classes),
                figures=[f"{100 * accuracy:.1f} % of {outcome.num_test} held-out images, {steps} local steps"],
            )
            (made / "README.md").write_text(card, encoding="utf-8")
        (target / "scores.json").write_text(json.dumps(outcome.as_json(), indent=2) + "\n", encoding="utf-8")
    return target, outcome

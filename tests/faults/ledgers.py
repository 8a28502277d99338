"""Damaged privacy ledgers: a site releases nothing, or its account has lost lines from the end alone."""

from __future__ import annotations

import random
from pathlib import Path

from client_app.release_ledger import ReleaseLedger
from hyperlora.storage.chained_log import ChainedLog
from hyperlora.storage.files import StorageError
from tests.faults.damaged import damage
from tests.faults.table import Row

LINES, BUDGET, NOISE = 8, 1000.0, 5.0


def ledger_row(tries: int, directory: Path, seed: int = 0) -> Row:
    """Damage a ledger of eight releases ``tries`` times and ask for a ninth."""
    path, chance = directory / "releases.jsonl", random.Random(seed)
    ledger = ReleaseLedger(path, BUDGET, 1e-5)
    for _ in range(LINES):
        ledger.reserve("adapter", NOISE, 1)
    content, digests = path.read_bytes(), [entry["digest"] for entry in ChainedLog(path).read()]
    refused, wrong = 0, ""
    for _ in range(tries):
        path.write_bytes(damage(content, chance))
        was_refused, reason = _outcome(ledger, digests)
        refused, wrong = refused + was_refused, wrong or reason
    seen = wrong or f"{refused} refused, {tries - refused} shorter at the end or whole"
    return Row("damaged privacy ledgers", "refused in one sentence; or lines gone from the end", seen, not wrong, tries)


def _outcome(ledger: ReleaseLedger, digests: list[str]) -> tuple[bool, str]:
    """Return whether the release was refused, and what is wrong."""
    try:
        ledger.reserve("adapter", NOISE, 2)
    except StorageError as error:
        return True, "" if "releases.jsonl" in str(error) and "\n" not in str(error) else str(error)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    *before, new = [entry["digest"] for entry in ledger._log.read()]
    return False, "" if before == digests[: len(before)] and new not in digests else "other lines were read"

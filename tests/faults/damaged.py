"""Damaged checkpoint files: each is named and the one before is used, or it holds exactly what was written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.local_grid import LocalGrid
from hyperlora.storage.state import StateError
from strategies.engine.checkpoint import Checkpoint, CheckpointStore, share, shared
from strategies.engine.strategy import LoraStrategy
from tests.builders import fake_client_app
from tests.faults.clients import CARDS, SETTINGS, logged, make_strategy
from tests.faults.table import Row
from tests.trees import same


def damage(content: bytes, chance: random.Random) -> bytes:
    """Cut, flip, overwrite, blank, shorten in the middle, or lengthen a file."""
    way, changed = chance.randrange(6), bytearray(content)
    place, size = chance.randrange(len(content)), chance.randint(1, 600)
    if way == 0:
        return content[:place]
    if way == 1:
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif way == 2:
        changed[place : place + size] = chance.randbytes(len(changed[place : place + size]))
    elif way == 3:
        changed[place : place + size] = bytes(len(changed[place : place + size]))
    elif way == 4:
        del changed[place : place + size]
    else:
        changed += chance.randbytes(size)
    return bytes(changed)


def damaged_rows(tries: int, directory: Path, seed: int = 0) -> Iterator[Row]:
    """Damage the newer of two checkpoints ``tries`` times, and both a tenth as often."""
    chance, damager = random.Random(seed), Damager(directory)
    outcomes = [damager.objection(chance) for _ in range(tries)]
    wrong = [reason for _, reason in outcomes if reason]
    harmless = sum(read for read, _ in outcomes)
    seen = wrong[0] if wrong else f"{tries - harmless} named and the one before used, {harmless} read as written"
    yield Row("damaged checkpoint files", "named, the one before used; or as written", seen, not wrong, tries)
    both = [damager.both(chance) for _ in range(max(1, tries // 10))]
    wrong = [reason for reason in both if reason]
    yield Row("both checkpoints cut short", "one sentence that names both", wrong[0] if wrong else "so it was",
              not wrong, len(both))  # fmt: skip
    others = [damager.published(chance) for _ in range(max(1, tries // 10))]
    wrong = [reason for reason in others if reason]
    yield Row("damaged state of a published run", "named; or as written", wrong[0] if wrong else "so it was",
              not wrong, len(others))  # fmt: skip


class Damager:
    """Two checkpoints of a run with all of HyperLoRA's modules, and what they hold."""

    def __init__(self, directory: Path) -> None:
        strategy = make_strategy(SETTINGS)
        self.store = CheckpointStore(directory / "checkpoints", keep=2)
        self.classes = strategy.method.state_classes
        self.saved: dict[int, Checkpoint] = {}
        strategy.start(
            LocalGrid(fake_client_app(CARDS), {}, 3), num_rounds=2, on_round=lambda record: self._save(strategy)
        )
        self.older, self.newer = (self.store.directory / f"round-0000{number}.pt" for number in (1, 2))
        self.contents = {path: path.read_bytes() for path in (self.older, self.newer)}

    def _save(self, strategy: LoraStrategy) -> None:
        checkpoint = strategy.checkpoint()
        self.saved[checkpoint.server_round] = checkpoint
        self.store.save(checkpoint, self.classes)

    def objection(self, chance: random.Random) -> tuple[bool, str]:
        """Damage the newer file; return whether it could be read all the same, and what is wrong with what came."""
        self._write(self.older, self.contents[self.older])
        self._write(self.newer, damage(self.contents[self.newer], chance))
        with logged() as lines:
            try:
                found = self.store.latest(self.classes)
            except Exception as error:
                return False, f"{type(error).__name__}: {error}"
        if found is None or not same(found, self.saved[found.server_round]):
            return False, "another state was read"
        named = any(self.newer.name in line for line in lines)
        read = found.server_round == 2
        return read, "" if read != named else "the warning is missing, or one too many"

    def both(self, chance: random.Random) -> str:
        for path, content in self.contents.items():
            self._write(path, content[: chance.randrange(len(content))])
        try:
            self.store.latest(self.classes)
        except StateError as error:
            return "" if self.older.name in str(error) and self.newer.name in str(error) else str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "a file was read"

    def published(self, chance: random.Random) -> str:
        """Damage the newer checkpoint as it is published; return what is wrong with what came."""
        path = self.store.directory / "state.safetensors"
        share(self.saved[2], path, self.classes)
        self._write(path, damage(path.read_bytes(), chance))
        try:
            found = shared(path, self.classes)
        except StateError as error:
            return "" if path.name in str(error) else str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "" if same(found, self.saved[2]) else "another state was read"

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)

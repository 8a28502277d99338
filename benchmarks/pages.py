"""The tables in ``docs/``: each block between two marks is printed from the results, never typed.

A block begins with ``<!-- results: SUITE | tables=A, B | variants=X; Y | reference=X | seeds=10, 11 -->`` and ends with
``<!-- /results -->``; all but the suite may be left out. The suites ``membership``, ``lira``, ``head_parts``,
``controls``, ``forgetting``, ``gpu``, ``language``, ``sums``, ``sum-movements``, ``lira-sums``, ``central-privacy``,
``wire-deltas`` and ``words`` are the tables of these modules, ``costs`` what every suite costs. Several suites, with
commas, stand side by side in one table, or one sentence each (``tables=verdicts``). A block without any result says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.amortisation import draw as draw_amortisation
from benchmarks.attack_tables import attack_table, lira_table, loss_table, membership_table
from benchmarks.bootstrap import calibration_table, interval_table
from benchmarks.central_privacy import central_privacy_table
from benchmarks.controls import controls_table
from benchmarks.cost import cost_page
from benchmarks.figures import draw_methods, draw_steps
from benchmarks.forgetting import forgetting_table
from benchmarks.gpu.table import gpu_table
from benchmarks.head_parts import head_parts_table
from benchmarks.language_table import language_table
from benchmarks.lira_sums import lira_sums_table
from benchmarks.newcomers import draw_newcomers
from benchmarks.result import gpus_of, load_results, load_settings
from benchmarks.server_soak import draw as draw_soak
from benchmarks.server_soak import read as read_soak
from benchmarks.suite import HERE, setting_names, split_name, suite_title, variant_names
from benchmarks.sum_movements import sum_movements_table
from benchmarks.sums import sums_table
from benchmarks.table import accuracy_table, cost_table, paired_table, parts_table, side_by_side, steps_table
from benchmarks.tracks import domain_table, target_table
from benchmarks.trials import SuiteError
from benchmarks.verdicts import verdicts
from benchmarks.wire_deltas import wire_deltas_table
from benchmarks.wire_table import bytes_table, draw_bytes
from benchmarks.words import words_table

Results = Mapping[str, Sequence[Mapping[str, Any]]]
TARGET_REFERENCE = "fedit"
COSTS = "costs"
UNMEASURED = "Not measured yet."
ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?P<head><!-- results: (?P<wanted>.*?) -->\n).*?(?P<tail><!-- /results -->)", re.DOTALL)
TABLES: dict[str, Callable[[Results, Sequence[str], str], str]] = {
    "accuracy": lambda found, order, _: accuracy_table(found, order),
    "paired": paired_table,
    "steps": lambda found, order, _: steps_table(found, order),
    "domains": lambda found, order, _: domain_table(found, order),
    "parts": lambda found, order, _: parts_table(found, order),
    "cost": lambda found, order, _: cost_table(found, order),
    "target": lambda found, order, _: target_table(found, order, TARGET_REFERENCE),
}
MORE_TABLES: dict[str, Callable[[Results, Sequence[str], str], str]] = {
    "intervals": interval_table,
    "calibration": lambda found, order, _: calibration_table(found, order),
    "verdicts": verdicts,
    "bytes": bytes_table,
}
"""Tables that stand where a block names them."""
ATTACK_TABLES = {"attacks": attack_table, "losses": loss_table}
"""Tables over all settings of a suite."""
OF_MODULES: dict[str, Callable[[Any], str]] = {
    "membership": membership_table,
    "lira": lira_table,
    "head_parts": head_parts_table,
    "controls": controls_table,
    "forgetting": forgetting_table,
    "gpu": gpu_table,
    "language": language_table,
    "sums": sums_table,
    "sum-movements": sum_movements_table,
    "lira-sums": lira_sums_table,
    "central-privacy": central_privacy_table,
    "wire-deltas": wire_deltas_table,
    "words": words_table,
}
"""Tables of the runs in a json file of this name."""
FIGURES = {"steps": draw_steps, "methods": draw_methods, "bytes": draw_bytes}


@dataclass(frozen=True)
class Block:
    """Which tables of which suites stand in a block; all variants, tables and seeds by default."""

    suites: tuple[str, ...]
    tables: tuple[str, ...]
    variants: tuple[str, ...]
    reference: str
    seeds: tuple[int, ...] = ()

    @classmethod
    def parse(cls, wanted: str) -> Block:
        """Read the text of an opening mark.

        Raises:
            SuiteError: it names a table or a key that there is not.
        """
        first, *rest = (part.strip() for part in wanted.split(" | "))
        suites = _names(first, ",")
        keys = dict(part.split("=", 1) for part in rest)
        if unknown := set(keys) - {"tables", "variants", "reference", "seeds"}:
            raise SuiteError(f"'{wanted}' has the unknown keys {sorted(unknown)}")
        tables = _names(keys.get("tables", ""), ",") or tuple(TABLES)
        if missing := set(tables) - {*TABLES, *MORE_TABLES, *ATTACK_TABLES}:
            raise SuiteError(f"'{wanted}' names the tables {sorted(missing)}; there are {', '.join(TABLES)}")
        if suites[0] in (*OF_MODULES, COSTS):
            return cls(suites, suites, (), "")
        variants = _names(keys.get("variants", ""), ";") or tuple(variant_names(suites[0]))
        seeds = tuple(map(int, _names(keys.get("seeds", ""), ",")))
        return cls(suites, tables, variants, keys.get("reference", variants[0]), seeds)

    def shown(self, found: Results) -> Results:
        """Return the runs of the block's variants and seeds; variants without any are left out."""
        kept = {
            name: [run for run in runs if not self.seeds or run["seed"] in self.seeds]
            for name, runs in found.items()
            if name in self.variants
        }
        return {name: runs for name, runs in kept.items() if runs}


def tables_of(found: Results, order: Sequence[str], reference: str, names: Sequence[str] = tuple(TABLES)) -> list[str]:
    """Return the named tables of the variants in ``order``, those that are empty left out."""
    kept, note = of_one_fingerprint(found)
    makers = {**TABLES, **MORE_TABLES}
    return [text for text in (*(makers[name](kept, order, reference) for name in names), note) if text]


def of_one_fingerprint(found: Results) -> tuple[Results, str]:
    """Return the runs of the product code that made most of them, and a sentence on it and on what is left out.

    Runs from before there were fingerprints are shown where there are no others.
    """
    prints = Counter(run["fingerprint"] for runs in found.values() for run in runs if "fingerprint" in run)
    if not prints:
        return found, ""
    chosen = prints.most_common(1)[0][0]
    kept = {name: [run for run in runs if run.get("fingerprint") == chosen] for name, runs in found.items()}
    others = [name for name, runs in found.items() if len(kept[name]) < len(runs)]
    dirty = any(run.get("dirty") for runs in kept.values() for run in runs)
    note = f"Made by the product code {chosen}{', which was not committed' if dirty else ''}"
    note += f"; not shown, as of other code: {', '.join(others)}" if others else ""
    return {name: runs for name, runs in kept.items() if runs}, f"{note}."


def hours(found: Results, order: Sequence[str]) -> str:
    """Return a sentence: how long the runs took together, and which of them had a GPU, several runs the same one."""
    runs = [run for name in order for run in found.get(name, [])]
    told = f"{sum(run['seconds'] for run in runs) / 3600:.1f} hours of runs in all, one core each"
    cards = Counter(card for run in runs for card in gpus_of(run)[:1])
    shared = "; ".join(f"{count} of {len(runs)} runs shared a GPU ({card})" for card, count in cards.items())
    return f"{told}; {shared}." if shared else f"{told}."


def pages() -> list[Path]:
    """Return the pages that may have blocks: README.md and everything in ``docs/``."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(page: str, results: Path) -> str:
    """Return the text of a page with every block printed anew from the results in the folder ``results``."""
    return BLOCK.sub(lambda block: f"{block['head']}\n{_text(block['wanted'], results)}\n\n{block['tail']}", page)


def fill_pages(results: Path, say: Callable[[str], None]) -> None:
    """Print every block of every page anew, draw the figures of the pages anew, and say which pages changed."""
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = filled(before, results)
        if after != before:
            path.write_text(after, encoding="utf-8")
            say(f"{path.relative_to(ROOT)} is new")
    for path in sorted((ROOT / "docs" / "figures").glob("*.svg")):
        draw_figure(path, results)


def draw_figure(path: Path, results: Path) -> None:
    """Draw a figure of the pages anew; its file's name is that of the suite and the kind."""
    suite, _, kind = path.stem.rpartition("-")
    if kind == "newcomers":
        draw_newcomers({name: of_one_fingerprint(runs)[0] for name, runs in _settings_of(suite, results)}, path)
    elif kind == "amortisation":
        found = json.loads((results / "amortisation.json").read_text(encoding="utf-8"))
        draw_amortisation({name: found[name] for name in ("clients", "samples")}, path)
    elif kind == "soak":
        draw_soak(read_soak(results / "server_soak.json"), path)
    else:
        named = {one.replace("/", "-"): one for one in _settings()}
        kept, _ = of_one_fingerprint(load_results(results, named[suite]))
        FIGURES[kind](kept, variant_names(named[suite]), path)


def _settings_of(suite: str, results: Path) -> list[tuple[str, Results]]:
    return [(split_name(one)[1], load_results(results, one)) for one in setting_names(suite)]


def _settings() -> list[str]:
    return [one for path in sorted((HERE / "suites").glob("*.toml")) for one in setting_names(path.stem)]


def _text(wanted: str, results: Path) -> str:
    block = Block.parse(wanted)
    if (name := block.tables[0]) in OF_MODULES:
        path = results / f"{name}.json"
        return OF_MODULES[name](json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else UNMEASURED
    if set(block.tables) <= set(ATTACK_TABLES):
        return _attacks(load_settings(results, block.suites[0]), block)
    if block.tables == (COSTS,):
        return cost_page()
    suites = {suite: block.shown(load_results(results, suite)) for suite in block.suites}
    if not any(suites.values()):
        return UNMEASURED
    if len(suites) == 1:
        (runs,) = suites.values()
        texts = tables_of(runs, block.variants, block.reference, block.tables)
        return "\n\n".join([*texts, hours(runs, block.variants)])
    return _several(suites, block)


def _attacks(found: Mapping[str, Results], block: Block) -> str:
    """Return the tables of a block on attacks, of runs of one fingerprint, and which it is."""
    settings = {name: name.rsplit("/", 1)[-1] for name in setting_names(block.suites[0])}
    wanted = [(name, variant) for name in settings for variant in block.variants]
    every = {f"{settings[name]}, {variant}": found.get(name, {}).get(variant, []) for name, variant in wanted}
    kept, note = of_one_fingerprint(every)
    if not any(kept.values()):
        return UNMEASURED
    shown = {
        short: {variant: kept.get(f"{short}, {variant}", []) for variant in block.variants}
        for short in settings.values()
    }
    return "\n\n".join([*(ATTACK_TABLES[one](shown, block.variants) for one in block.tables), note])


def _several(suites: Mapping[str, Results], block: Block) -> str:
    """Return one table of several suites, or a sentence each; the setting alone names those of one file."""
    one_file = len({split_name(suite)[0] for suite in suites}) == 1
    shown = {
        split_name(suite)[1] if one_file else suite_title(suite): of_one_fingerprint(runs)
        for suite, runs in suites.items()
    }
    if block.tables == ("verdicts",):
        read = {title: verdicts(runs, block.variants, block.reference) for title, (runs, _) in shown.items()}
        return "\n".join(f"- **{title}**: {text or UNMEASURED}" for title, text in read.items())
    said = {title: note for title, (_, note) in shown.items() if note}
    same = len(said) == len(shown) and len(set(said.values())) == 1
    notes = list(said.values())[:1] if same else [f"{title}: {note}" for title, note in said.items()]
    table = side_by_side({title: runs for title, (runs, _) in shown.items()}, block.variants)
    return "\n\n".join([table, *notes])


def _names(text: str, between: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(between) if name.strip())

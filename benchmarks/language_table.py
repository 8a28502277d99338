"""The tables of :mod:`benchmarks.language`: loss per token, and differences between rows with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.bootstrap import paired_difference
from benchmarks.table import markdown

RESULT = Path(__file__).parent / "results" / "language.json"
REFERENCE = "fedit"
FIGURES = {"as received": "zero_step", "after K steps": "k_step"}
COMPARISONS = {
    **{what: (key, key) for what, key in FIGURES.items()},
    "as received against K steps": ("zero_step", "k_step"),
}
GROUPS = ("seen", "unseen")
ORDER = (
    REFERENCE,
    "hyperlora",
    "hyperlora, deviations at use",
    "hyperlora, deviations in rounds",
    "hyperlora, deviations alike for all",
    "local",
    "no federation",
)
"""In which rows stand in a table."""
Run = Mapping[str, Any]


def chosen_rate(runs: Sequence[Run]) -> float:
    """Return the learning rate of FedIT's run on seed 0 with the lowest validation loss of the clients that train."""
    tried = [run for run in runs if (run["row"], run["seed"]) == (REFERENCE, 0)]
    return float(min(tried, key=validation_loss)["rate"])


def validation_loss(run: Run) -> float:
    """Return the mean loss on the validation shares of the clients that train, nats per token, over all figures."""
    return mean(float(one[f"{key}_validation"]) for one in run["clients"] if one["seen"] for key in FIGURES.values())


def language_table(runs: Sequence[Run]) -> str:
    """Return markdown tables: losses, differences to ``REFERENCE``, by domain, and how rate and model were come by.

    Args:
        runs: of ``benchmarks.language``'s file.
    """
    rate = chosen_rate(runs)
    kept = {name: [run for run in runs if (run["row"], run["rate"]) == (name, rate)] for name in ORDER}
    found = {name: own for name, own in kept.items() if own}
    parts = [_losses(found), _against(found), _domains(found), _note(runs, found, rate)]
    return "\n\n".join(part for part in parts if part)


def _losses(found: Mapping[str, Sequence[Run]]) -> str:
    rows = {
        f"{name} ({len(own)} seed(s))": [_cell(own, group, key) for group in GROUPS for key in FIGURES.values()]
        for name, own in found.items()
    }
    return markdown("nats per token", [f"{group}, {what}" for group in GROUPS for what in FIGURES], rows)


def _cell(runs: Sequence[Run], group: str, key: str) -> str:
    means = [mean(one[key] for one in run["clients"] if one["seen"] == (group == "seen")) for run in runs]
    return f"{mean(means):.3f}" + (f" ± {stdev(means):.3f}" if len(means) > 1 else "")


def _against(found: Mapping[str, Sequence[Run]]) -> str:
    rows = {}
    for name in [one for one in found if one != REFERENCE]:
        pairs = [
            paired_difference(found[name], found[REFERENCE], group, columns)
            for group in GROUPS
            for columns in COMPARISONS.values()
        ]
        rows[name] = [str(one) if one else "" for one in pairs]
    columns = [f"{group}, {what}" for group in GROUPS for what in COMPARISONS]
    return markdown(f"minus {REFERENCE}, hundredths of a nat", columns, rows) if rows else ""


def _domains(found: Mapping[str, Sequence[Run]]) -> str:
    domains = sorted({one["domain"] for own in found.values() for run in own for one in run["clients"]})
    rows = {name: [_of_domain(own, domain) for domain in domains] for name, own in found.items()}
    return markdown("all clients of a domain, as received", domains, rows)


def _of_domain(runs: Sequence[Run], domain: str) -> str:
    means = [mean(one["zero_step"] for one in run["clients"] if one["domain"] == domain) for run in runs]
    return f"{mean(means):.3f}"


def _note(runs: Sequence[Run], found: Mapping[str, Sequence[Run]], rate: float) -> str:
    own = found[REFERENCE][0]
    tried = sorted((run["rate"], validation_loss(run)) for run in runs if (run["row"], run["seed"]) == (REFERENCE, 0))
    seeds = sorted({run["seed"] for run in runs})
    return (
        f"{model_sentence(own['model'])} Cross-entropy on the clients' test shares; lower is better, so that a "
        f"negative difference is a gain. Seeds {', '.join(map(str, seeds))}, 95 % intervals of a bootstrap over seeds "
        "and clients, paired; level: the interval holds zero. "
        f"Learning rate {rate:g} for all rows, by FedIT's validation loss on seed 0, mean of as received and after K: "
        f"{', '.join(f'{loss:.3f} at {one:g}' for one, loss in tried)}. "
        f"{sum(run['seconds'] for run in runs) / 3600:.1f} hours of runs in all, one core each; made at commit "
        f"{', '.join(sorted({run['commit'] for run in runs}))}."
    )


def model_sentence(model: Mapping[str, Any]) -> str:
    """Return what the model is and what it knows, from the figures of its training."""
    return (
        f"The model: {model['layers']} blocks of width {model['width']}, {model['weights'] / 1e6:.1f} M weights, "
        f"{model['steps']:,} steps of {model['batch']} x {model['length']} tokens in {model['seconds'] / 60:.0f} "
        f"minutes of one core; on held-out reviews of its own domains {model['loss']:.2f} nats per token, perplexity "
        f"{model['perplexity']:.0f}, against {model['unigram_loss']:.2f} and {model['unigram_perplexity']:.0f} of a "
        "unigram model."
    )

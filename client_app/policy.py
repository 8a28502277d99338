"""A site's policy: what it answers at all, whatever a run asks for. A TOML file at the site, named in its node config.

A run's submitter sets noise, clip and budget of the run; the policy says within which bounds the site takes part::

    answers = ["signature", "train"]
    methods = ["hyperlora", "fedit"]
    minimum-signature-noise = 2.0
    minimum-adapter-noise = 1.0
    maximum-epsilon = 8.0
    exact-counts = false
    exact-label-frequencies = false
    sums-only = true
    minimum-clients = 10

What the file does not name is not restricted.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import NonNegativeFloat, NonNegativeInt

from client_app.site import Site
from hyperlora.config.schema import RunConfig
from hyperlora.config.section import ConfigError, Section, key, keys_of, names_out_of, nearest, parse_section
from hyperlora.config.settings import PrivacyConfig

KINDS = ("signature", "train", "evaluate", "statistics", "inputs", "sum", "backbone")
"""What may be asked of a site: the types of Flower's messages, without ``query.``."""
NEEDED = {
    "signature": ("signature_noise",),
    "train": ("signature_noise", "adapter_noise"),
    "evaluate": ("adapter_noise",),
    "backbone": (),
}
"""Kind of message -> the noise settings under which its answer is differentially private. A train reply may carry a new
signature; an evaluation sends no scores where adapters have noise. The answers to other kinds carry no noise."""
Kinds = Annotated[str, names_out_of(KINDS)]


class SitePolicy(Section):
    """The rules of one site."""

    answers: Kinds = key(",".join(KINDS), "kinds of messages that are answered")
    methods: str = key("", "methods whose runs are answered; empty are all")
    minimum_signature_noise: NonNegativeFloat = key(0.0, "least privacy.signature-noise of a run")
    minimum_adapter_noise: NonNegativeFloat = key(0.0, "least privacy.adapter-noise of a run")
    maximum_epsilon: NonNegativeFloat = key(0.0, "largest epsilon over all runs, as epsilon-budget; 0 is no bound")
    exact_counts: bool = key(True, "whether the number of samples may leave as it is")
    exact_label_frequencies: bool = key(True, "whether label frequencies may leave without noise")
    sums_only: bool = key(False, "whether only runs of sums (privacy.mode) are answered")
    minimum_clients: NonNegativeInt = key(0, "least privacy.least-clients of a run of sums")

    def objection(self, kind: str, config: RunConfig, budget: float) -> str | None:
        """Return why a message of a run is not answered, or None.

        Args:
            kind: one of ``KINDS``.
            config: the run's configuration.
            budget: the largest epsilon that the site may release over all runs; 0 where it has none.
        """
        if kind not in self.answers.split(","):
            return f"it answers {self.answers or 'nothing'}, and not '{kind}'"
        if self.methods and config.method not in self.methods.split(","):
            return f"it takes part in runs of {self.methods}, and this one is of '{config.method}'"
        privacy = config.privacy
        return (
            self._against_mode(privacy)
            or self._against_noise(kind, privacy, budget)
            or self._against_figures(kind, privacy)
        )

    def _against_mode(self, privacy: PrivacyConfig) -> str | None:
        if privacy.mode != "sums":
            return "it takes part in runs of sums alone, and privacy.mode is open here" if self.sums_only else None
        if privacy.least_clients < self.minimum_clients:
            return f"its sums are over {self.minimum_clients} clients at least, and privacy.least-clients is less"
        return None

    def _against_noise(self, kind: str, privacy: PrivacyConfig, budget: float) -> str | None:
        least = {"signature_noise": self.minimum_signature_noise, "adapter_noise": self.minimum_adapter_noise}
        if not (budget or any(least.values())):
            return None
        if privacy.noised_sums and kind in ("sum", "signature") and not any(least.values()):
            return None
        if privacy.exact_figures:
            return "this run has exact figures told beside what has noise (privacy.exact-figures)"
        if kind not in NEEDED:
            return f"what has no noise has no bound, and an answer to '{kind}' has none"
        for name in NEEDED[kind]:
            told, shown = getattr(privacy, name), name.replace("_", "-")
            if told < least[name]:
                return f"it needs privacy.{shown} of at least {least[name]:g}, and this run has {told:g}"
            if not told:
                why = f"it has a budget of epsilon {budget:g}" if budget else "it tells nothing without noise"
                return f"{why}, and without noise (privacy.{shown} is 0) its answer has no bound"
        return None

    def _against_figures(self, kind: str, privacy: PrivacyConfig) -> str | None:
        if kind == "evaluate" and not self.exact_label_frequencies and not privacy.noised:
            return "it does not tell its label frequencies, and an evaluation without noise counts hits by class"
        if kind == "evaluate" and not self.exact_counts and not privacy.keeps_scores:
            return "it does not reveal how many samples it has, and an evaluation counts those that it tests on"
        if kind not in ("signature", "train", "statistics", "inputs") or privacy.mode == "sums":
            return None
        if not self.exact_counts and not privacy.keeps_counts:
            return "it does not reveal how many samples it has (with privacy.signature-noise the number is not sent)"
        if not self.exact_label_frequencies and (kind == "statistics" or not privacy.signature_noise):
            return "it does not tell its label frequencies without noise (privacy.signature-noise)"
        return None


def kind_of(message_type: str) -> str:
    """Return the kind of a message out of its type."""
    return message_type.removeprefix("query.")


def read_policy(site: Site) -> SitePolicy:
    """Return the policy that a site's node config names; one that restricts nothing where it names none.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown or has a wrong value.
    """
    if not site.policy:
        return SitePolicy()
    try:
        values = tomllib.loads(Path(site.policy).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the site's policy '{site.policy}' cannot be read, so nothing is answered: {error}"
        ) from None
    known = [entry.key for entry in keys_of(SitePolicy)]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"unknown key '{name}' in the site's policy, so nothing is answered{nearest(name, known)}"
            )
    return parse_section(SitePolicy, {name: _flat(value) for name, value in values.items()})


def _flat(value: Any) -> Any:
    """Return a list of names as one text, as a configuration has it; anything else as it is."""
    names = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return ",".join(value) if names else value

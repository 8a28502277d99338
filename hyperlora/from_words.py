"""An adapter for a client that sends no data, made from a sentence, from class names, or both (after SG-LoRA).

The clients of a run have a description already: the names of their domains. What a newcomer says is compared with them
by the run's own frozen backbone, where that reads texts, and its signature is the mean of theirs that follows
(:mod:`models.personalization.described`). What is served for that signature is what a client with it would be served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from client_app.device import choose_device
from hyperlora.messages.signature import ClientCard
from hyperlora.newcomer import GENERATED, anchor_of, serve
from hyperlora.reporting.model_card import write_card
from hyperlora.reporting.run_files import RunFiles, RunFilesError, new_directory, require_new
from hyperlora.storage.files import write_json
from models.adapters.adapted_model import AdaptedModel
from models.backbones.backbone import BackboneError
from models.backbones.transforms import InstructionTransform, TextTransform
from models.personalization.described import (
    attention,
    class_shares,
    fitted_temperatures,
    mean_signature,
    overlap,
    told_frequencies,
)
from models.personalization.prior import add_prior
from models.personalization.signature import Signature

Read = Callable[[Sequence[str]], Tensor]
"""Maps n texts to unit vectors (n, e)."""
LONGEST_NAME = 48


@dataclass(frozen=True)
class Description:
    """What a client says of itself.

    Attributes:
        words: a sentence, or a few words; empty where it says none.
        classes: name -> share, of the classes that it has; shares need not sum to 1, and none says that it lists none.
    """

    words: str = ""
    classes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Understood:
    """What is made of a description.

    Attributes:
        signature: the newcomer's, as it is predicted.
        temperatures: of the cues, by name.
        weights: client-id -> how much of the signature is that client's, of sum 1.
    """

    signature: Signature
    temperatures: Mapping[str, float]
    weights: Mapping[str, float]


@dataclass(frozen=True)
class MadeFromWords:
    """The result.

    Attributes:
        directory: where the PEFT directory ``generated`` lies.
        after_round: the round of the run's checkpoint.
        words, classes: the description.
        domains: domain -> how much of the predicted signature is of its clients, most first.
        temperatures: of the cues, by name; infinite where a cue tells nothing.
        personal: whether the adapter is another than what all clients share, the class prior aside.
    """

    directory: str
    after_round: int
    words: str
    classes: Mapping[str, float]
    domains: Mapping[str, float]
    temperatures: Mapping[str, float]
    personal: bool


def personalize_from_words(
    run_directory: Path,
    description: Description,
    *,
    name: str = "",
    device: str = "auto",
    weights: Path | None = None,
    target: Path | None = None,
) -> MadeFromWords:
    """Make and write the adapter that a run serves a client of which only a description is known.

    Args:
        run_directory: a run with a checkpoint, or a federation that was published.
        description: words, class names of the run, or both.
        name: of the adapter; made of the description by default.
        device: that reads the words: ``auto``, ``cpu`` or ``cuda``.
        weights: the backbone's weights, where they are not where the run found them.
        target: new directory; ``<run>/personal/<name>`` by default.

    Raises:
        RunFilesError, BackboneError, AdapterError, StorageError: it cannot be done.
    """
    run = RunFiles.open(run_directory)
    if run.config.privacy.mode == "sums":
        raise RunFilesError(f"the run in '{run.path}' is one of sums: it knows no client that words could be like")
    known, name = run.require_clients(), name or name_of(description)
    if name in known.cards:
        raise RunFilesError(f"the run has a client '{name}' already: choose another name with --name")
    place = target or run.place_for("personal") / name
    require_new(place)
    model = run.rebuild_model(weights)
    model.to(choose_device(device))
    smoothing = run.config.signature.smoothing
    found = understand(description, known.cards, known.class_names, lambda texts: read(model, texts), smoothing)
    count = max(1, round(math.exp(found.signature.log_num_examples)))
    signature = replace(found.signature, log_num_examples=math.log(count))
    served = serve(run, ClientCard(name, "", False, count, signature))
    adapter, anchor = served.start.whole(), anchor_of(run)
    with new_directory(place) as directory:
        with_prior = add_prior(adapter, signature.class_frequencies, run.config.prior_strength)
        model.save(with_prior, directory / GENERATED)
        said = f"made from a description, no sample of the client was seen: {_told(description)}"
        write_card(run, directory / GENERATED, f"adapter {name}", figures=[said])
        made = MadeFromWords(
            directory=str(directory),
            after_round=served.after_round,
            words=description.words,
            classes=dict(description.classes),
            domains=by_domain(found.weights, known.cards),
            temperatures=found.temperatures,
            personal=anchor is None or any(not adapter.tensors()[k].equal(v) for k, v in anchor.tensors().items()),
        )
        write_json(directory / "description.json", {k: v for k, v in asdict(made).items() if k != "directory"})
    return made


def understand(
    description: Description,
    cards: Mapping[str, ClientCard],
    class_names: Sequence[str],
    read_texts: Read,
    smoothing: float,
) -> Understood:
    """Predict the signature of a client from what it says of itself; all classes count alike where it lists none.

    Args:
        description: of the newcomer.
        cards: of the clients known.
        class_names: of the run.
        read_texts: the frozen text encoder; called where there are words.
        smoothing: pseudo-count of class frequencies.

    Raises:
        RunFilesError: the description is empty, names a class that there is not, or words cannot tell the run's
            clients apart.
        BackboneError: there are words, and the backbone reads no texts.
    """
    signatures = [card.signature for card in cards.values()]
    shares, said = class_shares(signatures, smoothing), [readable(card.domain) for card in cards.values()]
    told = _told_shares(description.classes, class_names)
    among: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    if description.words.strip():
        among["words"], own["words"] = _alike_in_words(description.words, said, read_texts)
    if told is not None:
        among["classes"], own["classes"] = overlap(shares, shares), overlap(told[None], shares)[0]
    if not own:
        raise RunFilesError("a description is needed, in words or as names of classes, and this one is empty")

    temperatures = fitted_temperatures(list(among.values()), _features(signatures), said)
    weights = attention(list(own.values()), temperatures)
    signature = mean_signature(weights, signatures)
    classes = torch.ones(len(class_names)) if told is None else told
    frequencies = told_frequencies(classes, math.exp(signature.log_num_examples), smoothing)
    by_client = dict(zip(cards, weights.tolist(), strict=True))
    return Understood(
        replace(signature, class_frequencies=frequencies), dict(zip(own, temperatures, strict=True)), by_client
    )


def read(model: AdaptedModel, texts: Sequence[str]) -> Tensor:
    """Return unit vectors (n, e) of texts by the frozen backbone; raises BackboneError where it reads no texts."""
    backbone = model.backbone
    if backbone.read_texts is not None:
        vectors = backbone.read_texts(texts)
    elif isinstance(backbone.transform, TextTransform) and not isinstance(backbone.transform, InstructionTransform):
        vectors = model.frozen_features(model.embed(backbone.prepare(list(texts)))).cpu()
    else:
        raise BackboneError(
            f"backbone '{backbone.name}' has no encoder of texts, so that words tell it nothing; "
            "class names do: leave --words out and list them with --classes"
        )
    return F.normalize(vectors.float(), dim=1)


def readable(domain: str) -> str:
    """Return the name of a domain as words: ``kitchen_housewares`` is ``kitchen housewares``."""
    return re.sub(r"[\s_-]+", " ", domain).strip()


def by_domain(weights: Mapping[str, float], cards: Mapping[str, ClientCard]) -> dict[str, float]:
    """Return the weights of clients summed by their domains, most first."""
    sums: dict[str, float] = {}
    for client_id, weight in weights.items():
        domain = cards[client_id].domain
        sums[domain] = sums.get(domain, 0.0) + weight
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def name_of(description: Description) -> str:
    """Return a name for the adapter, which is safe as that of a file."""
    said = re.sub(r"[^a-z0-9]+", "-", " ".join([description.words, *description.classes]).lower())
    return said[:LONGEST_NAME].strip("-") or "described"


def _alike_in_words(words: str, said: Sequence[str], read_texts: Read) -> tuple[Tensor, Tensor]:
    """Return the cosine similarities of the known descriptions (N, N), and those of the newcomer's to them (N,)."""
    texts = list(dict.fromkeys(said))
    if len(texts) < 2:
        raise RunFilesError(
            f"the clients of the run all describe themselves as '{texts[0]}', so that words cannot tell them apart; "
            "class names may: list them with --classes"
        )
    place = torch.tensor([texts.index(text) for text in said])
    *known, mine = read_texts([*texts, readable(words)])
    table = torch.stack(known)[place]
    return table @ table.mT, table @ mine


def _features(signatures: Sequence[Signature]) -> Tensor:
    """Return the feature means of clients (N, d), each coordinate with the variance 1 over the clients."""
    means = torch.stack([one.feature_mean for one in signatures])
    return (means - means.mean(dim=0)) / means.std(dim=0, correction=0).clamp_min(1e-6)


def _told_shares(classes: Mapping[str, float], class_names: Sequence[str]) -> Tensor | None:
    """Return the shares of the classes (C,), of sum 1; None where none is listed."""
    if unknown := [name for name in classes if name not in class_names]:
        few = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
        raise RunFilesError(f"no class of the run: {', '.join(unknown)}; its classes are {few}")
    shares = torch.tensor([float(classes.get(name, 0.0)) for name in class_names])
    return shares / shares.sum() if classes else None


def _told(description: Description) -> str:
    listed = ", ".join(f"{name}={share:g}" for name, share in description.classes.items())
    return "; ".join([f'"{description.words}"'] * bool(description.words) + [f"classes {listed}"] * bool(listed))

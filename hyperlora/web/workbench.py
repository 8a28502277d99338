"""What the page asks for: the clients on their map, sample digits, and an adapter for images with its scores."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from client_app.runtime import ClientRuntime
from hyperlora.data.federation import DataError
from hyperlora.data.images import MODES
from hyperlora.data.personal import Shares, read_images_given
from hyperlora.data.sample import STYLES, sample_images
from hyperlora.newcomer import Trial, adapter_name, newcomer_runtime, try_newcomer
from hyperlora.reporting.likeness import likeness
from hyperlora.reporting.run_files import RunFiles, RunFilesError
from hyperlora.reporting.signature_map import SignatureMap
from hyperlora.reporting.verdict import interval
from hyperlora.serving import majority_accuracy
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from models.backbones.transforms import ImageTransform

MOST_IMAGES, MOST_SIDE, MOST_SHOWN = 1000, 4096, 60
YOU = "your images"


class GivenImage(BaseModel):
    """An image as the page sends it: its class, and the bytes of a png or jpg file in base64."""

    model_config = ConfigDict(extra="forbid")
    label: str = Field(max_length=200)
    data: str


class Asked(BaseModel):
    """What the page sends to have an adapter made."""

    model_config = ConfigDict(extra="forbid")
    images: list[GivenImage] = Field(max_length=MOST_IMAGES)


@dataclass(frozen=True)
class Workbench:
    """A federation that is held in memory, for one request after the other.

    Attributes:
        run: a run with a checkpoint, or a published federation, on images.
        model: its backbone with an adapter of its shape.
        transform: what the backbone does with images.
        signature_map: the map of its clients.
    """

    run: RunFiles
    model: AdaptedModel
    transform: ImageTransform
    signature_map: SignatureMap

    @classmethod
    def open(cls, run_directory: Path) -> Workbench:
        """Open a federation.

        Raises:
            RunFilesError: it cannot be used, or its samples are no images.
            BackboneError, AdapterError: its backbone cannot be built.
        """
        run = RunFiles.open(run_directory)
        cards = list(run.require_clients().cards.values())
        model = run.rebuild_model()
        if not isinstance(model.backbone.transform, ImageTransform):
            raise RunFilesError(f"the page takes images, the run in '{run.path}' is on {run.config.data.name}")
        return cls(run, model, model.backbone.transform, SignatureMap.of(cards))

    def federation(self) -> dict[str, Any]:
        """Return what the page shows before anything is drawn."""
        known, config = self.run.require_clients(), self.run.config
        places = self.signature_map.places([card.signature for card in known.cards.values()])
        return {
            "method": config.method,
            "data": config.data.name,
            "rounds": len(self.run.records),
            "steps": config.train.steps_of_use,
            "classes": list(known.class_names),
            "side": self.transform.size,
            "styles": list(STYLES) if config.data.name == "digits" else [],
            "most_images": MOST_IMAGES,
            "clients": [
                {"name": name, "domain": card.domain, "trains": card.trains, "place": place}
                for (name, card), place in zip(known.cards.items(), places.tolist(), strict=True)
            ],
        }

    def sample(self, style: str) -> dict[str, Any]:
        """Return digits of a style that no client had; raises DataError for a style that is not there."""
        names = self.run.require_clients().class_names
        return {"images": [{"label": names[label], "data": _base64(png)} for png, label in sample_images(style)]}

    def personalize(self, asked: Asked) -> dict[str, Any]:
        """Return the scores, the place on the map and the answers for held-out images.

        Raises:
            DataError: an image or a class cannot be used, or there are too few.
            RunFilesError, StateError: the federation has nothing for it.
        """
        shares = Shares(self.run.config.data.validation_fraction, self.run.config.data.test_fraction)
        samples = [(_decoded(image), self._label(image.label)) for image in asked.images]
        size, channels = self.transform.size, self.transform.channels
        client = read_images_given(samples, YOU, image_size=size, channels=channels, shares=shares)
        runtime = newcomer_runtime(self.run, self.model, client)
        trial = try_newcomer(self.run, runtime)
        found = likeness(trial.card.signature, self.run.require_clients().cards)
        return {
            "samples": {"train": len(client.train), "validation": len(client.validation), "test": len(client.test)},
            "scores": list(_scores(trial, majority_accuracy(client), len(client.test))),
            "use": trial.use,
            "place": self.signature_map.places([trial.card.signature])[0].tolist(),
            "nearest": found.nearest if found else "",
            "unlike": bool(found and found.unlike),
            "leaning": None if trial.leaning is None else asdict(trial.leaning),
            "held_out": list(self._answers(trial, runtime)),
        }

    def _label(self, name: str) -> int:
        names = list(self.run.require_clients().class_names)
        if name not in names:
            raise DataError(f"'{name}' is no class of the run: its classes are {', '.join(names)}")
        return names.index(name)

    def _answers(self, trial: Trial, runtime: ClientRuntime) -> Iterator[dict[str, Any]]:
        """Yield the first held-out images with what every adapter says of them."""
        test, tokens = runtime.client(YOU).test, runtime.tokens(YOU, "test")
        names = self.run.require_clients().class_names
        said = {
            adapter_name(steps, tried.name): self._predicted(adapter, tokens.tokens)
            for tried in trial.all
            for steps, adapter in sorted(tried.adapters.items())
        }
        for row in range(min(len(test), MOST_SHOWN)):
            yield {
                "image": _base64(_png(torch.as_tensor(test.inputs[row]))),
                "label": names[int(test.labels[row])],
                "said": {name: names[int(labels[row])] for name, labels in said.items()},
            }

    @torch.inference_mode()
    def _predicted(self, adapter: Adapter, tokens: Tensor) -> Tensor:
        self.model.load(adapter)
        parts = tokens[:MOST_SHOWN].to(self.model.device)
        return self.model.logits(parts).argmax(dim=1)


def _scores(trial: Trial, majority: float, count: int) -> Iterator[dict[str, Any]]:
    for tried in trial.all:
        for steps, accuracy in zip(sorted(tried.adapters), tried.reply.test_accuracy, strict=True):
            yield _score(adapter_name(steps, tried.name), tried.name, steps, accuracy, count)
    yield _score("majority", "majority", 0, majority, count)


def _score(name: str, start: str, steps: int, accuracy: float, count: int) -> dict[str, Any]:
    low, high = interval(accuracy, count)
    return {"name": name, "start": start, "steps": steps, "accuracy": accuracy, "low": low, "high": high}


def _decoded(image: GivenImage) -> bytes:
    """Return the bytes of an image whose sides are within bounds; raises DataError."""
    try:
        encoded = base64.b64decode(image.data, validate=True)
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as opened:
            sides = opened.size
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"an image of class '{image.label}' cannot be read: expected a png or jpg file") from error
    if max(sides) > MOST_SIDE:
        raise DataError(f"an image has {sides[0]} x {sides[1]} px: expected at most {MOST_SIDE} px a side")
    return encoded


def _png(pixels: Tensor) -> bytes:
    """Return an image (channels, h, w) uint8 as a png file."""
    array = pixels.permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if MODES[len(pixels)] == "L" else array).save(stream, format="png")
    return stream.getvalue()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

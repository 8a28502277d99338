"""Raw samples as a backbone takes them: normalised images, and texts as token ids of the backbone's own tokenizer."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.backbones.backbone import BackboneError, Inputs

log = logging.getLogger(__name__)
SEPARATOR = "\x1f"
"""Separates prompt and response in a text; a text without one is all response."""
PROMPT, RESPONSE = 1, 2


@dataclass(frozen=True)
class ImageTransform:
    """Normalises uint8 images (n, c, h, w) to float32 of the same shape, on the same device.

    Colour images become grey for a backbone of one channel, and grey ones are repeated for one of three.

    Attributes:
        name: the backbone's, for messages.
        size: side in pixels.
        mean, std: per channel, for values in [0, 1].
    """

    name: str
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Inputs) -> Tensor:
        """Raise BackboneError for another type, rank, number of channels or size."""
        if not isinstance(inputs, Tensor):
            raise BackboneError(f"backbone '{self.name}' takes images, but the data are texts; choose a text model")
        images = self._in_channels(inputs)
        expected = (self.channels, self.size, self.size)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise BackboneError(
                f"backbone '{self.name}' takes uint8 images of shape (n, {', '.join(map(str, expected))}), "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        mean, std = (images.new_tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def _in_channels(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or {images.shape[1], self.channels} != {1, 3}:
            return images
        return images.expand(-1, 3, -1, -1) if self.channels == 3 else images.float().mean(1, keepdim=True).byte()


class TextTransform:
    """Turns n texts into ids and mask (n, 2, t) int64, padded on the right to the longest of them.

    Args:
        name: the backbone's, for messages.
        tokenizer: a fast tokenizer of transformers.
        max_length: most tokens of a text; what is longer is truncated, and the log says how many texts were.
    """

    def __init__(self, name: str, tokenizer: Any, max_length: int) -> None:
        self.name, self.tokenizer, self.max_length = name, tokenizer, max_length

    def __repr__(self) -> str:
        return f"{type(self).__name__}(max_length={self.max_length})"

    def texts(self, inputs: Inputs) -> list[str]:
        """Return the texts; raise BackboneError for images."""
        if isinstance(inputs, Tensor):
            raise BackboneError(
                f"backbone '{self.name}' takes texts, but the data are images; choose an image model, "
                "such as model.name = 'deit_tiny_patch16_224'"
            )
        return list(inputs)

    def __call__(self, inputs: Inputs) -> Tensor:
        """Raise BackboneError for images."""
        encoded = self.tokenizer(
            self.texts(inputs), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        longer = sum(bool(one.overflowing) for one in encoded.encodings)
        if longer:
            log.info("%d of %d texts are longer than %d tokens and truncated", longer, len(inputs), self.max_length)
        return torch.stack([encoded["input_ids"], encoded["attention_mask"]], dim=1)

    def fingerprint(self, weights: str) -> str:
        """Return the SHA-256 (hex) of the fingerprint of the weights and the vocabulary, which all parties share."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return hashlib.sha256((weights + repr(vocabulary)).encode()).hexdigest()


class InstructionTransform(TextTransform):
    """Turns n texts into ids and roles (n, 2, t) int64: role 1 is the prompt, 2 the response, 0 padding.

    A response ends with the end-of-text token where the tokenizer has one. What is longer than ``max_length`` is cut
    at its end, and the log says how many texts were.
    """

    def __call__(self, inputs: Inputs) -> Tensor:
        """Raise BackboneError for images."""
        samples = [self._encode(text) for text in self.texts(inputs)]
        longer = sum(len(ids) > self.max_length for ids, _ in samples)
        if longer:
            log.info("%d of %d texts are longer than %d tokens and truncated", longer, len(samples), self.max_length)
        columns = [pad_sequence([torch.tensor(one[: self.max_length]) for one in part], batch_first=True)
                   for part in zip(*samples, strict=True)]  # fmt: skip
        return torch.stack(columns, dim=1)

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        before, separator, after = text.partition(SEPARATOR)
        prompt, response = (before, after) if separator else ("", before)
        start = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        learned = self.tokenizer(response, add_special_tokens=False)["input_ids"] + end
        return start + learned, [PROMPT] * len(start) + [RESPONSE] * len(learned)

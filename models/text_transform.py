"""Raw texts as a backbone takes them: token ids and attention mask, by the backbone's own tokenizer."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbone import BackboneError, Inputs

log = logging.getLogger(__name__)


class TextTransform:
    """Turns n texts into ids and mask (n, 2, t) int64, padded on the right to the longest of them.

    Args:
        name: the backbone's, for messages.
        tokenizer: a fast tokenizer of transformers.
        max_length: most tokens of a text; what is longer is truncated, and the log says how many texts were.
    """

    def __init__(self, name: str, tokenizer: Any, max_length: int) -> None:
        self.name, self.tokenizer, self.max_length = name, tokenizer, max_length

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


def longest(mask: Tensor) -> int:
    """Return the tokens of the longest text under a mask (n, t); texts are padded on the right."""
    return int(mask.sum(dim=1).max())


def pack(hidden: Tensor, mask: Tensor) -> Tensor:
    """Put hidden states (n, s, d), s at most t, and their mask (n, t) into tokens (n, t, d + 1), padded with zeros."""
    padded = F.pad(hidden, (0, 0, 0, mask.shape[1] - hidden.shape[1]))
    return torch.cat([padded, mask[:, :, None].to(hidden.dtype)], dim=2)


def unpack(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse of :func:`pack`: hidden states (n, s, d) and mask (n, s), cut to the longest text."""
    mask = tokens[:, :, -1]
    length = longest(mask)
    return tokens[:, :length, :-1], mask[:, :length]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to attention logits for a mask (n, t): 0, or a large negative number, (n, 1, 1, t)."""
    return (1 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min

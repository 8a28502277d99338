"""Raw images as a backbone takes them: checked and normalised, never resized here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.backbone import BackboneError, Inputs


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

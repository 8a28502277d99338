"""The embedded backbone: a small VisionTransformer, pretrained in seconds on public handwritten digits.

It lets the whole system run with no download. The weights are made on first use and cached.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hyperlora.progress import counted
from hyperlora.storage.files import StorageError, cache_directory, write_bytes
from models.backbones.backbone import BackboneError, Pretraining
from models.backbones.weights import fingerprint, misfit, read_weights, weights_bytes

NAME = "digits-vit"
IMAGE_SIZE = 16
NUM_CLASSES = 10
MEAN: tuple[float, ...] = (0.5,)
STD: tuple[float, ...] = (0.5,)
ARCHITECTURE: dict[str, Any] = {
    "img_size": IMAGE_SIZE,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "class_token": False,
    "global_pool": "avg",
}
RECIPE: dict[str, Any] = {"seed": 0, "epochs": 40, "batch_size": 32, "learning_rate": 2e-3, "shift": 1}
VERSION = 1
"""Count up when pretraining changes in a way that neither ``RECIPE`` nor ``ARCHITECTURE`` shows."""

_log = logging.getLogger(__name__)


def build(*, weights: str, image_size: int, pretraining: Pretraining | None) -> VisionTransformer:
    """Build the embedded ViT from ``weights`` or, if that is empty, from the cache or by pretraining.

    Pretraining with one seed gives the same bytes in every process of one machine. Another processor or
    torch version may round differently, which shows as another fingerprint: parties on different machines
    then share the file of one of them (:func:`cache_path`) through ``weights``.

    Raises:
        BackboneError: for another image size, unusable ``weights``, or if weights have to be made and no
            ``pretraining`` data is given.
    """
    if image_size != IMAGE_SIZE:
        raise BackboneError(f"'{NAME}' takes images of {IMAGE_SIZE} px, got an image size of {image_size} px")
    if weights:
        return _loaded(weights)
    if pretraining is None:
        raise BackboneError(f"'{NAME}' needs public digits to be pretrained on, got none")
    images, labels = pretraining()
    path = cache_path(images, labels)
    vit = _read_cache(path)
    if vit is None:
        vit = pretrain(images, labels, **RECIPE)
        _write_cache(path, vit)
    return vit


def pretrain(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    shift: int,
) -> VisionTransformer:
    """Train a fresh ViT on images (n, 1, 16, 16) uint8 and labels (n,) by supervised classification.

    AdamW with a one-cycle rate, label smoothing 0.1, and one random shift of up to ``shift`` px per batch.
    Runs on one thread; leaves the caller's random state and number of threads as they were.

    Raises:
        BackboneError: if there are fewer images than one batch.
    """
    if len(images) < batch_size:
        raise BackboneError(f"pretraining needs at least {batch_size} images, got {len(images)}")
    steps = epochs * (len(images) // batch_size)
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        vit = VisionTransformer(num_classes=NUM_CLASSES, **ARCHITECTURE).train()
        optimizer = torch.optim.AdamW(vit.parameters(), lr=learning_rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
        for batch in counted(_batches(len(images), batch_size, epochs), f"making the weights of '{NAME}', once", steps):
            inputs = _shifted(_normalised(images[batch]), shift)
            loss = F.cross_entropy(vit(inputs), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return vit.eval()


def cache_path(images: Tensor, labels: Tensor) -> Path:
    """Return the file that caches the weights made from this data, in the directory of caches.

    Raises:
        BackboneError: nothing says where that is.
    """
    try:
        root = cache_directory()
    except StorageError as error:
        raise BackboneError(f"no directory for cached weights; set XDG_CACHE_HOME ({error})") from error
    digest = hashlib.sha256(repr((ARCHITECTURE, RECIPE, VERSION)).encode())
    digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    return root / f"{NAME}-{digest.hexdigest()[:16]}.safetensors"


def _read_cache(path: Path) -> VisionTransformer | None:
    """Return the cached model, or None where there is none or it is damaged (logged; it is then made again)."""
    if not path.is_file():
        return None
    damage: object = "wrong checksum"
    try:
        vit = _loaded(str(path))
        with safe_open(str(path), framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") == fingerprint(vit):
                return vit
    except (BackboneError, SafetensorError, OSError) as error:
        damage = error
    _log.warning("the cached weights in %s are damaged and are made again: %s", path, damage)
    return None


def _write_cache(path: Path, vit: VisionTransformer) -> None:
    """Write in one step: processes that race each write the same bytes, readers see a whole file or none."""
    try:
        write_bytes(path, weights_bytes(vit, fingerprint=fingerprint(vit)), durable=False)
    except StorageError as error:
        _log.warning("the pretrained weights cannot be cached and are made each time: %s", error)


def _loaded(path: str) -> VisionTransformer:
    vit = VisionTransformer(num_classes=0, **ARCHITECTURE).eval()
    try:
        vit.load_state_dict(read_weights(path), strict=True)
    except RuntimeError as error:
        raise misfit(path, NAME, str(error)) from error
    return vit


def _normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN[0]) / STD[0]


def _shifted(images: Tensor, shift: int) -> Tensor:
    """Shift a batch (n, 1, h, w) by one random offset in [-shift, shift]; the border is repeated."""
    top, left = torch.randint(0, 2 * shift + 1, (2,)).tolist()
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    return padded[:, :, top : top + images.shape[2], left : left + images.shape[3]]


def _batches(num_images: int, batch_size: int, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(num_images)
        yield from torch.split(order[: num_images - num_images % batch_size], batch_size)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""A person's own images: ``root/<class>/*.jpg`` or ``*.png``, read as one client's samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hyperlora.data.federation import ClientData, DataError, Samples
from hyperlora.data.plans import split_by_key

SUFFIXES = (".jpg", ".jpeg", ".png")
LEAST_IMAGES = 3
MODES = {1: "L", 3: "RGB"}


def read_image_folder(
    root: Path,
    client_id: str,
    class_names: Sequence[str],
    *,
    image_size: int,
    channels: int,
    validation_fraction: float,
    test_fraction: float,
) -> ClientData:
    """Return the images below ``root`` as an unseen client, ordered and divided by a hash of every file's content.

    So the first images of a part, behind its signature, are of all classes, and no part depends on a file's name.

    Args:
        root: directory with one directory for each class; a class may be missing.
        client_id: the name of the client.
        class_names: the classes of the task, in the order of the labels.
        image_size: side in pixels that the images are resized to (bicubic).
        channels: 1 (grey) or 3 (RGB).
        validation_fraction: share held out for validation.
        test_fraction: share held out for test.

    Raises:
        DataError: a directory is no class of the task, an image cannot be read, or there are too few.
    """
    files = list(_labelled_files(root, class_names))
    if len(files) < LEAST_IMAGES:
        raise DataError(
            f"'{root}' has {len(files)} images below its class directories, expected at least {LEAST_IMAGES}; "
            f"put them as {class_names[0]}/*.jpg, with .jpg, .jpeg or .png"
        )
    keyed = sorted((_key(file), file, label) for file, label in files)
    keys = [key for key, _, _ in keyed]
    images = torch.stack([_read(file, image_size, channels) for _, file, _ in keyed])
    labels = torch.tensor([label for _, _, label in keyed], dtype=torch.int64)
    parts = split_by_key(
        keys, validation_fraction=validation_fraction, test_fraction=test_fraction, client_id=client_id
    )
    train, validation, test = (Samples(images[part], labels[part]) for part in parts)
    return ClientData(client_id, client_id, False, train, validation, test)


def _labelled_files(root: Path, class_names: Sequence[str]) -> Iterator[tuple[Path, int]]:
    if not root.is_dir():
        raise DataError(f"there is no directory '{root}'")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [path.name for path in folders if path.name not in class_names]
    if unknown:
        raise DataError(
            f"'{root}' has directories that are no class of the run: {', '.join(unknown)}; "
            f"its classes are {', '.join(class_names)}"
        )
    for folder in folders:
        label = list(class_names).index(folder.name)
        yield from ((file, label) for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES)


def _key(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def _read(file: Path, image_size: int, channels: int) -> Tensor:
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert(MODES[channels]).resize((image_size,) * 2, Image.Resampling.BICUBIC))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"the image '{file}' cannot be read: remove or repair it ({type(error).__name__})") from error
    return torch.from_numpy(pixels.reshape(image_size, image_size, channels)).permute(2, 0, 1).contiguous()

"""Tiny image trees with split lists, laid out as DomainNet and NICO++ are handed out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

DOMAINS = {
    "domainnet": ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"),
    "nico++": ("autumn", "dim", "grass", "outdoor", "rock", "water"),
}
CLASSES = ("zebra", "hot air balloon", "axe", "bat", "cat")


def png(number: int) -> bytes:
    """An 8 x 8 picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_domainnet(root: Path, train: int, test: int, lists: str = "", classes: Sequence[str] = CLASSES) -> str:
    """Write ``clipart/axe/image.png`` and so on, and ``clipart_train.txt`` in the directory ``lists``."""
    return _write(root, DOMAINS["domainnet"], ("", lists), (train, test), [one.replace(" ", "_") for one in classes])


def write_nico(root: Path, train: int, test: int, classes: Sequence[str] = CLASSES) -> str:
    """Write ``NICO_DG/autumn/hot air balloon/image.png`` and so on, and ``NICO_DG_official/autumn_train.txt``."""
    return _write(root, DOMAINS["nico++"], ("NICO_DG/", "NICO_DG_official"), (train, test), classes)


def _write(
    root: Path, domains: Sequence[str], places: tuple[str, str], counts: tuple[int, int], classes: Sequence[str]
) -> str:
    pictures = [png(number) for number in range(sum(counts))]
    (root / places[1]).mkdir(parents=True, exist_ok=True)
    for domain in domains:
        lines = []
        for number, picture in enumerate(pictures):
            label = number % len(classes)
            path = f"{places[0]}{domain}/{classes[label]}/{domain}_{number:06}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(picture)
            lines.append(f"{path} {label}\n")
        (root / places[1] / f"{domain}_train.txt").write_text("".join(lines[: counts[0]]))
        (root / places[1] / f"{domain}_test.txt").write_text("".join(lines[counts[0] :]))
    return str(root)

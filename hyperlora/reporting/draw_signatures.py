"""Panel: the map of signatures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.svg import MARKERS, SERIES, canvas, inline_svg


def project_signatures(cards: Sequence[ClientCard]) -> tuple[np.ndarray, np.ndarray]:
    """Return the two directions of largest variance of the standardised signatures.

    Returns:
        coordinates (N, 2), and the share of the variance that each direction has, (2,).
    """
    table = torch.stack([card.signature.vector() for card in cards]).double()
    table = (table - table.mean(dim=0)) / table.std(dim=0, correction=0).clamp_min(1e-6)
    left, singular, _ = torch.linalg.svd(table, full_matrices=False)
    count = min(2, singular.numel())
    points = torch.zeros(len(cards), 2, dtype=torch.float64)
    points[:, :count] = left[:, :count] * singular[:count]
    shares = torch.zeros(2, dtype=torch.float64)
    shares[:count] = singular[:count].square() / singular.square().sum().clamp_min(1e-12)
    return points.numpy(), shares.numpy()


def draw_signatures(cards: Sequence[ClientCard], name: str) -> str:
    """Return the clients in the plane, a colour and a marker for each domain, unseen ones hollow."""
    points, shares = project_signatures(cards)
    domains = sorted({card.domain for card in cards})
    with canvas(3.8) as (figure, axes):
        for index, domain in enumerate(domains):
            color, marker = SERIES[index % len(SERIES)], MARKERS[(index + index // len(SERIES)) % len(MARKERS)]
            for trains in (True, False):
                rows = [row for row, card in enumerate(cards) if card.domain == domain and card.trains == trains]
                fill = color if trains else "none"
                axes.plot(points[rows, 0], points[rows, 1], marker, ms=6.5, color=color, mfc=fill, mew=1.5, ls="none")
            axes.plot([], [], marker, color=color, label=domain)
        axes.set(
            xlabel=f"first direction ({100 * shares[0]:.0f} % of the variance)",
            ylabel=f"second direction ({100 * shares[1]:.0f} %)",
        )
        axes.margins(0.08)
        figure.legend(loc="outside upper left", ncols=min(4, len(domains)), columnspacing=1.0, handletextpad=0.2)
        return inline_svg(figure, name, "Map of the clients' signatures by domain")

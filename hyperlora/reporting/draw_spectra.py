"""Panel: singular values of the anchor, and of what the corrector carries of what the rank cut off."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator
from torch import Tensor

from hyperlora.reporting.svg import FAINT, INK, MARKERS, SERIES, canvas, inline_svg

SMALLEST = 1e-9


def draw_spectra(anchor: Mapping[str, Tensor], carried: Mapping[str, Tensor], name: str) -> str:
    """Return one line for each module kind: kept values 1 to r, then those that are carried, dashed."""
    with canvas(3.5) as (figure, axes):
        rank = 0
        for index, (kind, kept) in enumerate(anchor.items()):
            color, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
            rank = kept.numel()
            axes.plot(range(1, rank + 1), kept.tolist(), marker=marker, ms=5, color=color, label=kind)
            rest = [value for value in carried[kind].tolist() if value > SMALLEST] if kind in carried else []
            if rest:
                places = range(rank + 1, rank + 1 + len(rest))
                axes.plot(places, rest, "--", marker=marker, ms=5, color=color, mfc="none")
        if carried:
            axes.axvline(rank + 0.5, color=FAINT, lw=1)
            axes.plot([], [], "--", color=INK, label="carried")
        axes.set(xlabel="number of the singular value", ylabel="singular value of dW", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3)
        return inline_svg(figure, name, "Singular values of the anchor and of what the corrector carries")

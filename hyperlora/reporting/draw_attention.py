"""Panel: the synthesizer's attention, clients that receive by clients whose deviations are remembered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from torch import Tensor

from hyperlora.reporting.svg import FAINT, canvas, inline_svg

FADE = LinearSegmentedColormap.from_list("fade", [(0.12, 0.52, 0.82, 0.0), (0.12, 0.52, 0.82, 1.0)])
MOST_NAMED = 24


def draw_attention(
    weights: Tensor, rows: Sequence[str], columns: Sequence[str], domains: Mapping[str, str], name: str
) -> str:
    """Return the heat map; rows and columns stand by domain, then by client-id.

    Args:
        weights: (rows, columns).
        rows: client-ids that receive.
        columns: client-ids of the memory.
        domains: client-id -> domain.
        name: prefix of ids.
    """
    down, across = (_order(names, domains) for names in (rows, columns))
    table = weights[[rows.index(one) for one in down]][:, [columns.index(one) for one in across]]
    with canvas(4.3) as (figure, axes):
        image = axes.imshow(table.numpy(), cmap=FADE, vmin=0, aspect="auto", interpolation="nearest")
        _label(axes, "y", down, domains)
        _label(axes, "x", across, domains)
        axes.set(xlabel="attends to the deviation of", ylabel="client that receives")
        axes.grid(visible=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(True)
        bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=24)
        bar.set_label("attention weight")
        bar.outline.set_edgecolor(FAINT)
        return inline_svg(figure, name, "Attention of the synthesizer between clients")


def _order(names: Sequence[str], domains: Mapping[str, str]) -> list[str]:
    return sorted(names, key=lambda name: (domains.get(name, ""), name))


def _label(axes: Axes, axis: str, names: Sequence[str], domains: Mapping[str, str]) -> None:
    """Name every client where there is room, else every domain; a line parts the domains."""
    line, ticks = (axes.axhline, axes.set_yticks) if axis == "y" else (axes.axvline, axes.set_xticks)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(domains.get(name, ""), []).append(index)
    for places in list(groups.values())[1:]:
        line(places[0] - 0.5, color=FAINT, lw=0.8)
    rotation = 90 if axis == "x" else 0
    if len(names) <= MOST_NAMED:
        ticks(range(len(names)), names, rotation=rotation, fontsize=6.5)
    else:
        ticks([sum(places) / len(places) for places in groups.values()], list(groups), rotation=rotation, fontsize=8.5)

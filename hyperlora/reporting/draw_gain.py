"""Panel: what every client gains over something all clients could have had, one point for each client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hyperlora.reporting.svg import FAINT, INK, SERIES, canvas, inline_svg


def draw_gain(gain: Mapping[str, float], rows: Mapping[str, str], unseen: Sequence[str], name: str, over: str) -> str:
    """Return a strip of points for each row.

    Args:
        gain: client-id -> accuracy gained, a share.
        rows: client-id -> the row it stands in (its domain, or its run).
        unseen: clients that never train: drawn hollow.
        name: prefix of ids.
        over: what the gain is over, for the axis.
    """
    groups = list(dict.fromkeys(rows[client] for client in gain))
    with canvas(1.5 + 0.42 * len(groups)) as (figure, axes):
        axes.axvline(0, color=INK, lw=1)
        for height, group in enumerate(groups):
            members = [client for client in gain if rows[client] == group]
            offsets = np.linspace(-0.25, 0.25, len(members)) if len(members) > 1 else [0.0]
            for client, offset in zip(members, offsets, strict=True):
                hollow = client in unseen
                color = SERIES[1] if hollow else SERIES[0]
                axes.plot(100 * gain[client], height + offset, "o", ms=5, color=color, mfc="none" if hollow else color)
            mean = 100 * sum(gain[client] for client in members) / len(members)
            axes.plot([mean, mean], [height - 0.35, height + 0.35], color=INK, lw=2)
        axes.set_yticks(range(len(groups)), groups)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlabel(f"gain over {over} (percentage points)")
        axes.plot([], [], "o", ms=5, color=SERIES[0], label="seen")
        axes.plot([], [], "o", ms=5, color=SERIES[1], mfc="none", label="unseen")
        axes.plot([], [], color=INK, lw=2, label="mean")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_color(FAINT)
        figure.legend(loc="outside upper left", ncols=3)
        return inline_svg(figure, name, f"Gain of each client over {over}")

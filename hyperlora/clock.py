"""How durations are written, in the console, the report and the commands alike."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Return minutes and seconds, as ``1:05``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

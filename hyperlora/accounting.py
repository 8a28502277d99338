"""What releases with Gaussian noise cost together: the accountant of both sides, the server's and a site's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence


class PrivacyError(RuntimeError):
    """The accountant is not installed; the message is one sentence."""


def composed_epsilon(releases: Sequence[tuple[float, int]], delta: float) -> float:
    """Return the epsilon at ``delta`` of Gaussian mechanisms, as (noise multiplier, times) pairs.

    Gaussian mechanisms of multipliers z_j together are exactly one of 1/z^2 = sum 1/z_j^2 (Dong, Roth and Su, "Gaussian
    differential privacy", corollary 2.1), whose epsilon is that of Balle and Wang (2018), by Google's dp-accounting.

    Raises:
        PrivacyError: dp-accounting is not installed.
    """
    precision = sum(times / noise**2 for noise, times in releases)
    return _gaussian_epsilon(precision**-0.5, delta) if precision else 0.0


@functools.lru_cache(maxsize=1024)
def _gaussian_epsilon(noise: float, delta: float) -> float:
    try:
        import dp_accounting  # slow to import, and needed for nothing else
    except ImportError as error:
        raise PrivacyError("noise is accounted for by dp-accounting: pip install 'hyperlora[privacy]'") from error
    return float(dp_accounting.get_epsilon_gaussian(noise, delta))

"""A site's own account of what it released with noise: on its disk, over all runs, and with a budget of its own.

The run's submitter sets the noise of a run; what the site's data may be spent on altogether is the site's to say
(``epsilon-budget`` and ``delta`` in its node config).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from client_app.policy import SitePolicy, read_policy
from client_app.site import Site
from hyperlora.accounting import composed_epsilon
from hyperlora.config.section import ConfigError
from hyperlora.data.federation import DataError
from hyperlora.storage.chained_log import ChainedLog

FILE_NAME = "releases.jsonl"


class BudgetError(DataError):
    """A release would cost more than the site has left; the message is one sentence."""


class ReleaseLedger:
    """Counts every release before it is made; nothing is ever taken from it.

    Args:
        path: the file, a :class:`hyperlora.storage.chained_log.ChainedLog`.
        budget: largest epsilon over all releases; 0 counts and refuses nothing.
        delta: of that epsilon.
    """

    def __init__(self, path: Path, budget: float, delta: float) -> None:
        self.budget, self.delta, self._log = budget, delta, ChainedLog(path)

    def spent(self, *more: float) -> float:
        """Return the epsilon of all releases, and of ``more`` of these noise multipliers.

        Raises:
            ChainError: the file is not as it was written.
            PrivacyError: dp-accounting is not installed.
        """
        noises = [*(float(entry["noise"]) for entry in self._log.read()), *more]
        return composed_epsilon([(noise, 1) for noise in noises], self.delta)

    def reserve(self, kind: str, noise: float, run_id: int) -> None:
        """Count a release of a noise multiplier, which is about to be computed.

        Args:
            kind: what is released, as ``signature``.
            noise: its noise multiplier, above 0.
            run_id: Flower's id of the run that asks for it.

        Raises:
            BudgetError: it would cost more than is left; it is not counted.
            StorageError: it cannot be written down, so it must not be made.
        """
        with self._log.held():
            if self.budget and (cost := self.spent(noise)) > self.budget:
                raise BudgetError(
                    f"this site's own privacy budget is epsilon {self.budget:g} over all runs, and this {kind} would "
                    f"bring its spending to {cost:.4g}: the request is refused"
                )
            moment = datetime.now(UTC).isoformat(timespec="seconds")
            self._log.append([{"time": moment, "run": str(run_id), "kind": kind, "noise": noise}])


def open_ledger(site: Site | None, policy: SitePolicy | None = None) -> ReleaseLedger | None:
    """Return the ledger of a site; None in a simulation, and where the site has neither a place nor a budget.

    Args:
        site: its node config; None in a simulation.
        policy: where it was read already. The smaller of its ``maximum-epsilon`` and ``epsilon-budget`` holds.

    Raises:
        ConfigError: there is a budget and no place to count what is spent of it.
    """
    if site is None:
        return None
    bounds = (site.epsilon_budget, (policy or read_policy(site)).maximum_epsilon)
    budget = min((bound for bound in bounds if bound), default=0.0)
    if not (site.state_dir or budget):
        return None
    if not site.state_dir:
        raise ConfigError("a budget of epsilon needs a 'state-dir' in the node config, where releases are counted")
    return ReleaseLedger(Path(site.state_dir) / site.client_id / FILE_NAME, budget, site.delta)

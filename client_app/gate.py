"""What a site lets through: a message is judged by the site's own rules before anything is computed for it."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod

from client_app.release_ledger import open_ledger
from client_app.site import Site, read_site
from hyperlora.config.schema import RunConfig
from hyperlora.config.settings import PrivacyConfig
from hyperlora.messages.backbone import BackbonePart
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.signature import SignatureRequest
from hyperlora.messages.train import TrainRequest

Settings = Callable[[Context], RunConfig]
"""Gives the configuration of the run that a message belongs to."""


class RefusedError(ProtocolError):
    """The site does not answer this message of this run; the message is one sentence."""


def site_gate(settings: Settings) -> Mod:
    """Return a Flower mod that lets a message through to its handler where the site may answer it.

    In a simulation every message passes: its node config names no site.
    """

    def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        site = read_site(context.node_config)
        if site is not None:
            _admit(site, settings(context), message.metadata.message_type, context.run_id)
        return call_next(message, context)

    return gate


def _admit(site: Site, config: RunConfig, message_type: str, run_id: int) -> None:
    """Count what the answer will release.

    Raises:
        RefusedError: the site has a budget, and the answer would hold what no noise bounds.
        BudgetError: the site has not enough of its budget left.
    """
    ledger = open_ledger(site)
    if ledger is None:
        return
    lacking = _lacking_noise(message_type, config.privacy)
    if ledger.budget and lacking:
        raise RefusedError(
            f"this site has a budget of epsilon {ledger.budget:g}, and what has no noise has no bound: "
            f"{lacking}, so '{message_type}' is not answered"
        )
    if message_type == TrainRequest.TYPE and config.privacy.adapter_noise:
        ledger.reserve("adapter", config.privacy.adapter_noise, run_id)


def _lacking_noise(message_type: str, privacy: PrivacyConfig) -> str:
    """Return what of a run's settings leaves an answer without noise; empty where nothing does."""
    needed = {
        SignatureRequest.TYPE: ("signature_noise",),
        TrainRequest.TYPE: ("signature_noise", "adapter_noise"),
        BackbonePart.TYPE: (),
    }
    if message_type not in needed:
        return "such an answer has none"
    missing = [name.replace("_", "-") for name in needed[message_type] if not getattr(privacy, name)]
    return " and ".join(f"privacy.{name} is 0" for name in missing)

"""What a site lets through: a message is judged by the site's own rules before anything is computed for it."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable, Mod

from client_app.audit import SiteAudit
from client_app.policy import kind_of, read_policy
from client_app.release_ledger import open_ledger
from client_app.site import Site, read_site
from hyperlora.config.schema import RunConfig
from hyperlora.messages.codec import ProtocolError

Settings = Callable[[Context], RunConfig]
"""Gives the configuration of the run that a message belongs to."""


class RefusedError(ProtocolError):
    """The site does not answer this message of this run; the message is one sentence."""


def site_gate(settings: Settings) -> Mod:
    """Return a Flower mod that lets a message through to its handler where the site may answer it.

    What was asked and what became of it is in the site's audit log before a reply leaves. In a simulation every message
    passes: its node config names no site.
    """

    def gate(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        site = read_site(context.node_config)
        if site is None:
            return call_next(message, context)
        with SiteAudit.of(site, message, context.run_id) as audit:
            config = settings(context)
            audit.note(method=config.method)
            _admit(site, config, message.metadata.message_type, context.run_id)
            reply = call_next(message, context)
            audit.note_reply(reply)
        return reply

    return gate


def _admit(site: Site, config: RunConfig, message_type: str, run_id: int) -> None:
    """Judge a message by the site's policy and count what the answer will release.

    Raises:
        RefusedError: the policy speaks against it, or it would hold what no noise bounds and the site has a budget.
        BudgetError: the site has not enough of its budget left.
    """
    policy, kind = read_policy(site), kind_of(message_type)
    ledger = open_ledger(site, policy)
    objection = policy.objection(kind, config, ledger.budget if ledger else 0.0)
    if objection:
        raise RefusedError(f"this site does not answer '{kind}': {objection}")
    if ledger is not None and kind == "train" and config.privacy.adapter_noise:
        ledger.reserve("adapter", config.privacy.adapter_noise, run_id)

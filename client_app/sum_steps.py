"""How a client takes part in a sum: the five steps, and what it keeps in the node's Flower context between them.

Data and model are opened for the masked answer alone: where every message starts a process anew, the other four steps
take seconds less without them.

In a run with ``privacy.epsilon`` a client tells nothing without noise, counts what every answer costs before it is
made, and goes into no further sum where that would exceed its epsilon, whatever the server asks for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from flwr.app import ConfigRecord, Context
from torch import Tensor

from client_app.noised_sums import NoisedClient
from client_app.peers import Peers
from client_app.release_ledger import open_ledger
from client_app.runtime import ClientRuntime
from client_app.site import read_site
from client_app.sums import SummedClient
from client_app.tasks import Keeper
from hyperlora.accounting import composed_epsilon
from hyperlora.config.schema import RunConfig
from hyperlora.data.federation import DataError
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.questions import Question, layout
from hyperlora.messages.sums import SumReply, SumRequest
from hyperlora.secure_sum.fixed_point import Part, Vector
from hyperlora.secure_sum.noised_vector import NoisedVector, Unit, needed
from hyperlora.secure_sum.participant import Participant
from hyperlora.secure_sum.public_keys import PublicKeys, SecureSumError

SPENT = "precision"
"""Name of the sum of 1/z^2 over a client's answers with noise of multiplier z."""
ROUNDING = 1e-6


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SumSteps:
    """A node's side of the sums of a run.

    Attributes:
        config: the run's.
        context: the node's, which keeps a client's part between two steps.
        keeper: of adapters.
        open_client: opens data and model where a client is of this node; raises ProtocolError where it is not.
        peers: whom the site takes part with; None is anybody.
    """

    config: RunConfig
    context: Context
    keeper: Keeper
    open_client: Callable[[str], ClientRuntime]
    peers: Peers | None = None

    def answer(self, request: SumRequest) -> SumReply:
        """Return a client's answer to one step of a sum.

        Raises:
            ProtocolError: the run is not one of sums, or this client will not go on with the sum.
        """
        if self.config.privacy.mode != "sums":
            raise ProtocolError("the run is an open one (privacy.mode), and this client was asked for a step of a sum")
        try:
            return self._answer(request)
        except SecureSumError as error:
            raise ProtocolError(str(error)) from error

    def _answer(self, request: SumRequest) -> SumReply:
        place, texts, masked = f"sum {request.client_id}", dict[str, bytes](), None
        if request.step == "keys":
            one = Participant(request.client_id, self.config.privacy.least_clients)
            texts = asdict(self._vouched(request, one.keys()))
        else:
            one = self._kept(place, request.name)
            if request.step == "shares":
                if self.peers is not None:
                    self.peers.check(request.name, request.public)
                texts = one.sealed_shares(request.public)
            elif request.step == "masked":
                masked = self._masked(request, one)
            else:
                self._enough_noise(request, one)
                tell = one.agreement if request.step == "agree" else one.unmasking
                texts = tell(request.answered, request.dropped)
        self.context.state[place] = ConfigRecord({"name": request.name, "kept": one.to_bytes()})
        return SumReply(request.client_id, request.name, request.step, texts, masked)

    def _vouched(self, request: SumRequest, own: PublicKeys) -> PublicKeys:
        return self.peers.signed(request.client_id, request.name, own) if self.peers else own

    def _masked(self, request: SumRequest, one: Participant) -> Vector:
        question, participants = request.question, len(one.public)
        if question is None or request.clients < participants:
            raise ProtocolError("a masked answer needs a question, and the number of clients that were asked it")
        if question.noised != self.config.privacy.noised_sums:
            raise ProtocolError(
                f"a sum of '{question.kind}' is none of this run: privacy.epsilon is for all sums or none"
            )
        runtime = self.open_client(request.client_id)
        kind = NoisedClient if question.noised else SummedClient
        client = kind(runtime, request, self.keeper)
        form = layout(question, client.sizes())
        if isinstance(form, NoisedVector):
            self._spend(request.client_id, question)
            draw = runtime.noise("sum", request.client_id, request.name)
            told = form.encode(answer_or_zeros(client, question, form.units), draw, participants)
        else:
            told = form.encode(answer_or_zeros(client, question, form.parts))
        beside = request.server_round, runtime.model.backbone.fingerprint, self.config.digest()
        return one.masked(request.sealed, told, question.digest(request.clients, *beside))

    def _spend(self, client_id: str, question: Question) -> None:
        """Count an answer before it is made; raises ProtocolError where it would cost more than the client has."""
        privacy, place = self.config.privacy, f"spent {client_id}"
        record = self.context.state.get(place)
        before = record[SPENT] if isinstance(record, ConfigRecord) else 0.0
        assert isinstance(before, float)
        precision = before + 1 / question.noise**2
        cost = composed_epsilon([(precision**-0.5, 1)], privacy.delta)
        if cost > privacy.epsilon * (1 + ROUNDING):
            raise ProtocolError(
                f"the run promises this client an epsilon of {privacy.epsilon:g} (privacy.epsilon), and this answer "
                f"would bring its spending to {cost:.4g}: the client answers no further questions"
            )
        ledger = open_ledger(read_site(self.context.node_config))
        if ledger is not None:
            ledger.reserve("sum", question.noise, self.context.run_id)
        self.context.state[place] = ConfigRecord({SPENT: precision})

    def _kept(self, place: str, name: str) -> Participant:
        record = self.context.state.get(place)
        if not isinstance(record, ConfigRecord) or record["name"] != name:
            raise ProtocolError(f"this client has no part in the sum '{name}'")
        kept = record["kept"]
        assert isinstance(kept, bytes)
        return Participant.from_bytes(kept)

    def _enough_noise(self, request: SumRequest, one: Participant) -> None:
        """Refuse to take masks off a sum of so few that the noise of all of them is less than was promised."""
        privacy, count = self.config.privacy, len(request.answered)
        least = needed(len(one.public), privacy.least_share)
        if privacy.noised_sums and count < least:
            raise ProtocolError(
                f"{count} of {len(one.public)} clients answered, and {least} (privacy.least-share) is the least whose "
                "noise together is enough"
            )


def answer_or_zeros(
    client: SummedClient, question: Question, parts: Mapping[str, Part] | Mapping[str, Unit]
) -> dict[str, Tensor]:
    """Return the client's answer, or zeros, which add nothing, where it cannot be computed or is not finite.

    Whether an answer can be computed depends on the client's data. A malicious server could choose the public tensors
    such that a visible failure reveals something about the data, so a failure must look like an ordinary answer.

    Args:
        client: who answers.
        question: what is asked.
        parts: by name the shape of each tensor of an answer.

    Raises:
        ProtocolError: the question is not a whole one, which does not depend on data.
        DataError: the client has no data.
    """
    who = client.request.client_id, question.kind
    try:
        told = client.answer(question)
        if all(bool(torch.isfinite(one).all()) for one in told.values()):
            return told
        log.warning("client '%s' tells zeros in a sum of '%s': its answer is not finite", *who)
    except (ProtocolError, DataError):
        raise
    except Exception:
        log.exception("client '%s' tells zeros in a sum of '%s'", *who)
    return {name: torch.zeros(part.shape) for name, part in parts.items()}

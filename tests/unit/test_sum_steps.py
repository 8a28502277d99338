"""A node's side of sums: what is opened for which step, and whose keys a site with peers takes part with."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict

from client_app.peers import Peers, read_peers
from client_app.runtime import ClientRuntime
from client_app.site import Site, read_site
from client_app.sum_steps import SumSteps, answer_or_zeros
from client_app.tasks import NothingKept
from hyperlora.cli.certs import allow, node
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.data.federation import DataError
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.questions import Question
from hyperlora.messages.sums import SumRequest
from hyperlora.secure_sum.fixed_point import FixedPoint, Part
from hyperlora.secure_sum.participant import Participant
from hyperlora.secure_sum.public_keys import PublicKeys
from hyperlora.storage.allow_list import AllowList

NAMES, CONFIG = ("anna", "ben", "cleo"), RunConfig.parse({"privacy.mode": "sums", "privacy.least-clients": 3})
RUN, SUM = 7, "1.1.moments"


class OpenedError(Exception):
    """Data and model were opened."""


def opened(client_id: str) -> ClientRuntime:
    raise OpenedError


def steps_of(peers: Peers | None = None, run_id: int = RUN) -> SumSteps:
    return SumSteps(CONFIG, Context(run_id, 1, {}, RecordDict(), {}), NothingKept(), opened, peers)


def keys_of(name: str, steps: SumSteps, sum_name: str = SUM) -> PublicKeys:
    return PublicKeys(**steps.answer(SumRequest(name, 1, sum_name, "keys")).texts)


def test_data_and_model_are_opened_for_the_masked_answer_alone() -> None:
    nodes = {name: steps_of() for name in NAMES}
    public = {name: keys_of(name, one) for name, one in nodes.items()}
    asked = {name: SumRequest(name, 1, SUM, "shares", public=public) for name in NAMES}
    sealed = {name: one.answer(asked[name]).texts for name, one in nodes.items()}
    masked = SumRequest("anna", 1, SUM, "masked", clients=3, question=Question("moments", {}))
    with pytest.raises(OpenedError):
        nodes["anna"].answer(masked)
    signatures = {}
    for name, one in nodes.items():
        kept = participant(one, name)
        told = kept.masked({by: sealed[by][name] for by in NAMES if by != name}, np.zeros(3, np.uint32))
        signatures[name] = told[3:].tobytes()
        one.context.state[f"sum {name}"] = ConfigRecord({"name": SUM, "kept": kept.to_bytes()})
    agree = SumRequest("", 1, SUM, "agree", answered=signatures)
    agreed = {name: one.answer(replace(agree, client_id=name)).texts[name] for name, one in nodes.items()}
    last = replace(agree, step="unmask", answered=agreed)
    assert all(set(one.answer(replace(last, client_id=name)).texts) == set(NAMES) for name, one in nodes.items())


def participant(steps: SumSteps, name: str) -> Participant:
    record = steps.context.state[f"sum {name}"]
    assert isinstance(record, ConfigRecord)
    kept = record["kept"]
    assert isinstance(kept, bytes)
    return Participant.from_bytes(kept)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the peer key of every client's site, and the list that all sites were given."""
    home = tmp_path_factory.mktemp("sites")
    for name in (*NAMES, "stranger"):
        node(home / name)
        if name in NAMES:
            allow(home / "allowed.json", name, home / f"{name}.pub", 30)
    return home


def site(home: Path, name: str, key: str = "") -> Site:
    return Site(client_id=name, peers=str(home / "allowed.json"), peer_key=str(home / (key or name)))


@pytest.fixture
def sites(home: Path) -> dict[str, SumSteps]:
    return {name: steps_of(read_peers(site(home, name), RUN)) for name in NAMES}


def test_sites_take_part_with_keys_that_the_others_signed(sites: dict[str, SumSteps]) -> None:
    public = {name: keys_of(name, one) for name, one in sites.items()}
    for name, one in sites.items():
        assert set(one.answer(SumRequest(name, 1, SUM, "shares", public=public)).texts) == set(NAMES) - {name}


@pytest.mark.parametrize(
    "invented", ["of nobody", "unsigned", "of another sum", "of another run", "changed", "cut off"]
)
def test_a_site_takes_no_part_with_a_participant_that_the_server_invented(
    invented: str, sites: dict[str, SumSteps], home: Path
) -> None:
    public = {name: keys_of(name, one) for name, one in sites.items()}
    stranger = Participant("cleo", 3).keys()
    if invented == "of nobody":
        public["dora"] = Participant("dora", 3).keys()
    elif invented == "unsigned":
        public["cleo"] = stranger
    elif invented == "of another sum":
        public["cleo"] = keys_of("cleo", sites["cleo"], "1.2.moments")
    elif invented == "of another run":
        public["cleo"] = keys_of("cleo", steps_of(read_peers(site(home, "cleo"), RUN + 1)))
    elif invented == "changed":
        public["cleo"] = replace(public["cleo"], masks=stranger.masks)
    else:
        public["cleo"] = replace(public["cleo"], vouched=public["cleo"].vouched[:-1])
    with pytest.raises(ProtocolError, match="not signed by the site" if invented != "of nobody" else "list of peers"):
        sites["anna"].answer(SumRequest("anna", 1, SUM, "shares", public=public))


def test_a_peer_whose_permission_is_over_is_none(sites: dict[str, SumSteps]) -> None:
    public, own = {name: keys_of(name, one) for name, one in sites.items()}, sites["anna"].peers
    assert own is not None
    over = replace(own.allowed.clients["ben"], valid_until=datetime.now(UTC) - timedelta(seconds=1))
    peers = replace(own, allowed=AllowList({**own.allowed.clients, "ben": over}))
    with pytest.raises(ProtocolError, match="'ben' is not, or no longer, on this site's list"):
        replace(sites["anna"], peers=peers).answer(SumRequest("anna", 1, SUM, "shares", public=public))


def test_a_key_that_is_not_the_clients_is_refused_before_anything_is_told(home: Path) -> None:
    for key in ("ben", "stranger"):
        with pytest.raises(ConfigError, match=r"is not the key that .* has for 'anna'"):
            read_peers(site(home, "anna", key), RUN)


@pytest.mark.parametrize("key", ["nothing", "allowed.json", "anna.pub"])
def test_a_key_that_cannot_be_read_is_refused_in_one_sentence(home: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        read_peers(site(home, "anna", key), RUN)


def test_peers_need_a_key_and_a_key_needs_peers(home: Path) -> None:
    for name in ("peers", "peer-key"):
        with pytest.raises(ConfigError, match="need both"):
            read_site({"client-id": "anna", name: str(home / "anna")})
    assert read_peers(read_site({"client-id": "anna"}), RUN) is None
    assert read_peers(None, RUN) is None


class Answering:
    """A client whose answer is given."""

    request = SumRequest("anna", 1, SUM, "masked")

    def __init__(self, answer: dict[str, torch.Tensor] | Exception) -> None:
        self.given = answer

    def answer(self, question: Question) -> dict[str, torch.Tensor]:
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


PARTS = {"count": Part((1,), 1.0), "sum": Part((2,), 8.0)}


@pytest.mark.parametrize(
    "answer",
    [
        {"count": torch.ones(1), "sum": torch.tensor([1.0, math.nan])},
        {"count": torch.ones(1), "sum": torch.tensor([-math.inf, 0.0])},
        ValueError("not positive definite"),
        RuntimeError("the solver failed"),
        OverflowError("too large"),
    ],
)
def test_a_client_that_cannot_answer_tells_zeros_so_that_nobody_sees_whose_data_are_like_that(
    answer: dict[str, torch.Tensor] | Exception,
) -> None:
    told = answer_or_zeros(Answering(answer), Question("moments", {}), PARTS)  # type: ignore[arg-type]
    assert told.keys() == PARTS.keys()
    assert not any(one.any() for one in told.values())
    assert FixedPoint(PARTS, 5).encode(told).tolist() == [0, 0, 0]


@pytest.mark.parametrize("error", [ProtocolError("half a question"), DataError("no data")])
def test_what_does_not_depend_on_data_is_refused_as_ever(error: Exception) -> None:
    with pytest.raises(type(error)):
        answer_or_zeros(Answering(error), Question("moments", {}), PARTS)  # type: ignore[arg-type]


def test_a_finite_answer_is_told_as_it_is() -> None:
    answer = {"count": torch.ones(1), "sum": torch.tensor([1.0, 2.0])}
    assert answer_or_zeros(Answering(answer), Question("moments", {}), PARTS) is answer  # type: ignore[arg-type]

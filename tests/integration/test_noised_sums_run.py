"""A run of sums with noise on digits, in this process: what it costs, what it learns, and what clients refuse."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message

from benchmarks.local_grid import LocalGrid
from client_app.app import app
from client_app.runtime import open_runtime
from client_app.sum_steps import answer_step
from client_app.tasks import NothingKept
from hyperlora.accounting import composed_epsilon
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.questions import Question, public_anchor
from hyperlora.messages.sums import SumRequest
from hyperlora.secure_sum.participant import PublicKeys
from tests.integration.test_sums_run import SUMS, Recording, made, records, without_times

BARELY = 1e5
"""An epsilon with so little noise that eight clients learn something."""
NOISED: dict[str, Any] = {"privacy.epsilon": BARELY, "privacy.adapter-clip": 2.0, "hyperlora.server-step": 2.0}


@pytest.fixture(scope="module")
def noised_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording]:
    return made(tmp_path_factory.mktemp("noised") / "run", **NOISED)


def test_it_learns_and_says_what_it_cost(noised_run: tuple[Path, Recording]) -> None:
    first, last = records(noised_run[0])
    assert first["failures"] == last["failures"] == {}
    assert last["evaluation"]["seen"]["zero_step"]["mean"] > 0.4
    assert last["privacy"] == {"epsilon": pytest.approx(BARELY, rel=1e-3), "delta": 1e-5}
    assert first["privacy"]["epsilon"] < BARELY


def test_clients_take_turns(noised_run: tuple[Path, Recording]) -> None:
    times = Counter(name for one in records(noised_run[0]) for name in one["cohort"])
    assert set(times.values()) <= {1, 2}
    assert sum(times.values()) == 10


def test_a_single_answer_is_nowhere_to_be_seen(noised_run: tuple[Path, Recording]) -> None:
    for reply in noised_run[1].replies:
        config = reply.content["config"]
        assert isinstance(config, ConfigRecord)
        assert reply.metadata.message_type == "query.signature" or ("arrays" in reply.content) == (
            config["step"] == "masked"
        )


def test_the_same_seed_gives_the_same_run(noised_run: tuple[Path, Recording], tmp_path: Path) -> None:
    assert without_times(made(tmp_path / "again", **NOISED)[0]) == without_times(noised_run[0])


def test_a_budget_that_leaves_nothing_but_noise_ends_in_the_anchors_head(tmp_path: Path) -> None:
    directory, _ = made(tmp_path / "run", **NOISED | {"privacy.epsilon": 1.0, "federation.rounds": 1})
    last = records(directory)[-1]
    assert last["failures"] == {}
    assert last["method"]["head_share"] == 0.0
    assert last["privacy"]["epsilon"] == pytest.approx(1.0, rel=0.05)


class OneClient:
    """Leads one client through a sum with itself and invented others, as a server that does not keep to the plan."""

    def __init__(self, **values: Any) -> None:
        self.runtime = open_runtime(RunConfig.parse({**SUMS, **NOISED, **values}))
        self.name = self.runtime.federation.client_ids[0]
        grid = LocalGrid(app, self.runtime.config.flat(), 1)
        self.context: Context = grid._contexts[1]
        self.sums = 0

    def masked(self, question: Question) -> Any:
        self.sums += 1
        asked = SumRequest(self.name, 1, f"sum {self.sums}", "keys")
        keys = {self.name: PublicKeys(**self._step(asked).texts)}
        return keys, question

    def _step(self, request: SumRequest) -> Any:
        return answer_step(self.runtime, request, self.context, NothingKept())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"privacy.epsilon": 8.0, "privacy.exact-figures": True}, "bounds nothing"),
        ({"privacy.epsilon": 8.0, "privacy.signature-noise": 1.0}, "does not go with privacy.signature-noise"),
        ({"privacy.least-share": 0.5}, "least-share"),
    ],
)
def test_what_bounds_nothing_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        RunConfig.parse({"privacy.mode": "sums", **values})

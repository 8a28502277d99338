"""What is said while a run goes on: how far a phase is, and the time left with the evaluations to come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.clock import clock
from hyperlora.config.schema import ConfigError
from hyperlora.data.digits import digits_public
from hyperlora.data.images import image_files, read_images
from hyperlora.data.listing import Origin
from hyperlora.data.personal import Shares, read_image_folder
from hyperlora.data.tables import list_table
from hyperlora.messages.sums import SumRequest
from hyperlora.progress import counted, told_to
from models.backbones.digits_vit import pretrain
from server_app import run as server_run
from server_app.progress import Pace, ProgressGrid, phase_of
from strategies.engine.records import RoundRecord

ROOT = Path(__file__).resolve().parents[2]


def record(number: int, evaluating: float = 0.0) -> RoundRecord:
    seconds = {"evaluating": evaluating, "waiting": 3.0, "training": 99.0} if evaluating else {"waiting": 3.0}
    return RoundRecord(number, evaluation={"seen": {}} if evaluating else {}, seconds=seconds)


def test_the_time_left_has_the_evaluations_to_come_before_one_was_seen() -> None:
    pace = Pace(rounds=10, evaluate_every=5, evaluation_share=2.5)
    assert pace.left_after(record(1), now=100.0) is None
    assert pace.left_after(record(2), now=104.0) == pytest.approx(8 * 4 + 2 * 2.5 * 4)


def test_the_time_left_goes_by_the_evaluations_that_were_seen() -> None:
    pace = Pace(rounds=10, evaluate_every=4, evaluation_share=2.5)
    pace.left_after(record(3), now=100.0)
    assert pace.left_after(record(4, evaluating=30.0), now=134.0) == pytest.approx(6 * 4 + 2 * 30)
    assert pace.left_after(record(5), now=140.0) == pytest.approx(5 * (4 + 6) / 2 + 2 * 30)


def test_after_the_last_round_nothing_is_left() -> None:
    pace = Pace(rounds=2, evaluate_every=5, evaluation_share=2.5)
    pace.left_after(record(1), now=0.0)
    assert pace.left_after(record(2, evaluating=7.0), now=9.0) == 0.0


class SlowGrid(Grid):
    """Answers one message with every look."""

    def __init__(self, clock: Clock) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.clock, self.waiting = clock, list[str]()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.waiting = [str(number) for number, _ in enumerate(messages)]
        return list(self.waiting)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.clock.time += 4.0
        self.waiting.pop()
        return [Message(RecordDict(), dst_node_id=1, message_type="train")]

    def set_run(self, run: Any) -> None: ...
    def create_message(self, *arguments: Any, **named: Any) -> Any: ...
    def get_node_ids(self) -> Iterable[int]:
        return [7]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return []

    @property
    def run(self) -> Any:
        return "the run"


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_long_phase_says_how_far_it_is_and_a_short_one_nothing() -> None:
    now, said = Clock(), list[str]()
    grid = ProgressGrid(SlowGrid(now), said.append, now)
    for kind, count in (("train", 8), ("query.signature", 2)):
        ids = list(grid.push_messages([Message(RecordDict(), dst_node_id=1, message_type=kind) for _ in range(count)]))
        for _ in ids:
            grid.pull_messages(ids)
    assert said == [
        "training: 2 of 8 answered after 0:08, about 0:24 left",
        "training: 7 of 8 answered after 0:28, about 0:04 left",
    ]
    assert (grid.get_node_ids(), grid.run) == ([7], "the run")


def test_a_phase_of_a_sum_is_named_by_its_question_and_its_step() -> None:
    request = SumRequest("anna", 2, "2.1.moments", "masked")
    assert phase_of(Message(request.encode(), dst_node_id=1, message_type=request.TYPE)) == "sum of moments, masked"


def test_work_of_more_than_two_seconds_says_how_far_it_is() -> None:
    said = list[str]()

    def count(seconds: float, total: int) -> list[int]:
        time = iter(seconds * step for step in range(100))
        return list(counted(range(30), "reading images", total, now=lambda: next(time)))

    assert count(1.0, 30) == list(range(30))  # nobody listens
    with told_to(said.append):
        assert count(0.05, 30) == list(range(30))
        assert said == []
        count(1.0, 30)
        count(3.0, 0)
    assert said[:3] == [
        "reading images: 1 of 30 after 0:02, about 0:58 left",
        "reading images: 11 of 30 after 0:12, about 0:20 left",
        "reading images: 21 of 30 after 0:22, about 0:09 left",
    ]
    assert said[3] == "reading images: 0 after 0:03"
    count(3.0, 30)
    assert len(said) == 3 + 8


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperlora.progress.QUIET", 0.0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(6):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (40 * index, 0, 0)).save(path)
    return tmp_path / "photos"


@pytest.mark.usefixtures("impatient")
def test_reading_images_and_tables_is_counted(photos: Path) -> None:
    table = photos.parent / "r.csv"
    table.write_text("text,label\none,a\ntwo,b\n")
    said = list[str]()
    with told_to(said.append):
        files = image_files(photos)
        read_images(((file.read_bytes(), 0) for file in files), "all", 4, files)
        read_image_folder(photos, "me", "ab", image_size=4, channels=3, shares=Shares(0.2, 0.2))
        list_table("csv", Origin(str(table)))
    assert said == [
        f"listing files in '{photos}': 0 after 0:00",
        "reading images of 'all': 0 of 6 after 0:00",
        "reading images: 0 of 6 after 0:00",
        f"reading rows of '{table}': 0 after 0:00",
    ]


@pytest.mark.usefixtures("impatient")
def test_check_says_how_far_it_is_on_stderr(photos: Path) -> None:
    options = ["--no-cost", "-c", "data.name=folder", "-c", f"data.path={photos}", "-c", "data.partition=natural"]
    outcome = CliRunner().invoke(app, ["check", "--app-dir", str(ROOT), *options])
    assert "  reading clients: 0 of 1 after 0:00" in outcome.stderr.splitlines()
    assert "reading" not in outcome.stdout


@pytest.mark.usefixtures("impatient")
def test_making_weights_is_counted() -> None:
    images, labels = (part[:64] for part in digits_public())
    said = list[str]()
    with told_to(said.append):
        pretrain(images, labels, seed=0, epochs=1, batch_size=32, learning_rate=0.001, shift=1)
    assert said == ["making the weights of 'digits-vit', once: 0 of 2 after 0:00"]


@pytest.mark.usefixtures("impatient")
def test_the_console_of_a_run_tells_how_far_its_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> None:
        raise ConfigError(f"stopped after {list(counted('ab', 'making weights', 2))}")

    monkeypatch.setattr("server_app.run.build_model", build)
    with pytest.raises(ConfigError, match="stopped"):
        server_run.run(SlowGrid(Clock()), {"run.output-dir": str(tmp_path / "run")})
    assert "  making weights: 0 of 2 after 0:00\n" in (tmp_path / "run" / "console.log").read_text()


def test_the_clock_has_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (5.9, 65, 600)] == ["0:05", "1:05", "10:00"]

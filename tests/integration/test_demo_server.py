"""`hyperlora demo` over HTTP: what it answers, and what it refuses in one sentence."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from hyperlora.cli.main import app
from hyperlora.data.sample import sample_images
from hyperlora.web.server import MOST_BYTES, PageServer
from hyperlora.web.workbench import Workbench

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[PageServer]:
    with PageServer(Workbench.open(Path("demo")), 0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def request(
    server: PageServer, method: str, path: str, body: bytes | str = b"", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, headers or {})
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, json.loads(content) if reply.headers.get_content_type() == "application/json" else content


def images(count: int, style: str = "ink") -> list[dict[str, str]]:
    chosen = sample_images(style)[:count]
    return [{"label": str(label), "data": base64.b64encode(png).decode()} for png, label in chosen]


def personalize(server: PageServer, given: list[dict[str, str]]) -> tuple[int, Any]:
    return request(server, "POST", "/api/personalize", json.dumps({"images": given}), JSON)


def test_the_page_and_its_parts_are_served_and_fetch_nothing_from_elsewhere(server: PageServer) -> None:
    for path in ("/", "/page.js", "/page.css", "/report.css"):
        status, content = request(server, "GET", path)
        assert status == 200
        assert b"http" not in content.replace(b"http://www.w3.org/2000/svg", b"")


def test_the_clients_have_a_place_on_the_map(server: PageServer) -> None:
    status, federation = request(server, "GET", "/api/federation")
    assert status == 200
    assert len(federation["clients"]) == 20
    assert len({tuple(client["place"]) for client in federation["clients"]}) == 20
    assert federation["classes"] == list("0123456789")


def test_digits_that_no_client_had_get_an_adapter_that_beats_the_anchor(server: PageServer) -> None:
    _, sample = request(server, "GET", "/api/sample?style=ink")
    status, made = personalize(server, sample["images"])
    assert status == 200
    accuracy = {score["name"]: score["accuracy"] for score in made["scores"]}
    assert accuracy["generated"] > accuracy["anchor"] > accuracy["majority"]
    assert made["samples"]["test"] >= 30
    right = [one["said"]["generated"] == one["label"] for one in made["held_out"]]
    assert len(right) == min(made["samples"]["test"], 60)
    assert sum(right) / len(right) == pytest.approx(accuracy["generated"], abs=0.15)
    assert personalize(server, sample["images"])[1] == made


def test_it_tells_whom_the_head_leans_on_which_are_clients_that_trained(server: PageServer) -> None:
    _, made = personalize(server, images(120))
    leaning = made["leaning"]
    _, federation = request(server, "GET", "/api/federation")
    assert set(leaning["others"]) <= {client["name"] for client in federation["clients"] if client["trains"]}
    assert leaning["own"] + sum(leaning["others"].values()) == pytest.approx(1.0, abs=0.02)
    assert 0 < leaning["share"] <= 1
    _, fewer = personalize(server, images(20))
    assert 0 < fewer["leaning"]["own"] < leaning["own"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "expected at least 3 images, got 0"),
        ([{"label": "eleven", "data": ""}], "an image of class 'eleven' cannot be read"),
        ([{"label": "1", "data": "no base64"}], "cannot be read: expected a png or jpg file"),
        ([{"label": "1"}], "images.0.data cannot be used: Field required"),
        ([{"label": "1", "data": ""}] * 1001, "images cannot be used: List should have at most 1000 items"),
    ],
)
def test_images_that_cannot_be_used_are_one_sentence(server: PageServer, given: Any, sentence: str) -> None:
    status, said = personalize(server, given)
    assert status == 400
    assert sentence in said["error"]


def test_a_class_that_the_run_does_not_have_is_named(server: PageServer) -> None:
    status, said = personalize(server, [one | {"label": "eleven"} for one in images(3)])
    assert status == 400
    assert "'eleven' is no class of the run: its classes are 0, 1" in said["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"Host": "evil.example"}, 403),
        ("POST", "/api/personalize", {"Host": "evil.example", **JSON}, 403),
        ("POST", "/api/personalize", {"Content-Type": "text/plain"}, 415),
        ("POST", "/api/personalize", {"Content-Length": str(MOST_BYTES + 1), **JSON}, 413),
        ("POST", "/api/else", JSON, 404),
        ("GET", "/../config.json", {}, 404),
        ("GET", "/api/sample?style=x", {}, 400),
        ("POST", "/api/personalize", JSON, 400),
    ],
)
def test_what_is_not_for_this_page_is_refused(
    server: PageServer, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    found, said = request(server, method, path, "", headers)
    assert found == status
    assert said["error"]


def test_while_one_adapter_is_made_another_is_refused(server: PageServer) -> None:
    with server.busy:
        status, said = personalize(server, images(10))
    assert status == 503
    assert "try again in a moment" in said["error"]


def test_only_this_machine_can_reach_it(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_that_is_taken_is_one_sentence(server: PageServer) -> None:
    outcome = CliRunner().invoke(app, ["demo", "--port", str(server.server_port)])
    assert outcome.exit_code == 1
    assert f"port {server.server_port} of 127.0.0.1 cannot be used" in outcome.output
    assert "Traceback" not in outcome.output

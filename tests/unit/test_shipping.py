"""A backbone on its way from the server to a site's disk: in parts, checked, kept by fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from client_app.backbone_store import BackboneStore
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.messages.backbone import BackbonePart, BackboneReceipt, name_backbone, named_backbone
from hyperlora.messages.codec import ProtocolError
from hyperlora.messages.signature import SignatureReply, SignatureRequest
from strategies.federation.registrar import Registrar
from strategies.federation.roster import Roster
from strategies.federation.shipping import Shipment
from tests.builders import CLASSES, SIGNATURE_SIZE, make_card
from tests.sites import SiteGrid

CONTENT = bytes(range(250))
FINGERPRINT, OTHER = "a" * 64, "b" * 64
PART = BackbonePart(FINGERPRINT, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), 0, CONTENT)


def keeping_app(root: Path, spoil: Callable[[BackbonePart], BackbonePart] = lambda part: part) -> ClientApp:
    """A ClientApp that hosts a client as soon as it has the backbone."""
    app = ClientApp()

    @app.query("signature")
    def signature(message: Message, context) -> Message:
        name, wanted = context.node_config["client-id"], SignatureRequest.decode(message.content).fingerprint
        there = BackboneStore(root / name).find(wanted)
        reply = SignatureReply([make_card(name)], {}) if there else SignatureReply([], {}, needs_backbone=name)
        return Message(reply.encode(), reply_to=message)

    @app.query("backbone")
    def backbone(message: Message, context) -> Message:
        part = spoil(BackbonePart.decode(message.content))
        received = BackboneStore(root / context.node_config["client-id"]).add(part)
        return Message(BackboneReceipt(received).encode(), reply_to=message)

    return app


def ship(root: Path, *names: str, app: ClientApp | None = None) -> tuple[Roster, int]:
    """Let a roster with a shipment meet nodes; return it and how many parts were sent."""
    grid = SiteGrid({}, [{"client-id": name} for name in names])
    grid._client_app = app or keeping_app(root)
    shipment = Shipment(FINGERPRINT, lambda: CONTENT, part_bytes=100)
    registrar = Registrar(FINGERPRINT, SIGNATURE_SIZE, CLASSES, shipment)
    registrar.refresh(grid, 5.0)
    return registrar.roster, sum(message.metadata.message_type == BackbonePart.TYPE for message in grid.sent)


def test_a_backbone_arrives_in_parts_once_and_both_nodes_take_part(tmp_path: Path) -> None:
    roster, parts = ship(tmp_path, "x", "y")
    assert (list(roster.reachable()), roster.left_out, parts) == (["x", "y"], {}, 2 * 3)
    for name in ("x", "y"):
        (file,) = (tmp_path / name).iterdir()
        assert file.read_bytes() == CONTENT
    roster, parts = ship(tmp_path, "x", "y", "z")
    assert (list(roster.reachable()), parts) == (["x", "y", "z"], 3)


def test_a_file_that_was_damaged_on_the_disk_is_fetched_again(tmp_path: Path) -> None:
    ship(tmp_path, "x")
    (file,) = (tmp_path / "x").iterdir()
    file.write_bytes(CONTENT[:-1] + b"?")
    roster, parts = ship(tmp_path, "x")
    assert (list(roster.reachable()), parts) == (["x"], 3)
    assert file.read_bytes() == CONTENT


def test_bytes_that_change_on_the_way_are_not_kept_and_the_node_is_left_out(tmp_path: Path) -> None:
    app = keeping_app(tmp_path, lambda part: replace(part, data=b"?" + part.data[1:]))
    roster, _ = ship(tmp_path, "x", app=app)
    assert roster.reachable() == {}
    assert "the backbone arrived damaged: its checksum does not match" in roster.left_out["node 1"]
    assert list((tmp_path / "x").iterdir()) == []


def test_a_part_out_of_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="expected the backbone's bytes from 0 on, got those from 100 on"):
        BackboneStore(tmp_path).add(replace(PART, offset=100, data=CONTENT[100:]))


def test_a_shipment_that_broke_off_begins_anew(tmp_path: Path) -> None:
    store = BackboneStore(tmp_path)
    store.add(replace(PART, data=CONTENT[:100]))
    assert store.find(FINGERPRINT) is None
    assert store.add(PART) == len(CONTENT)
    assert store.find(FINGERPRINT) is not None
    assert store.find(OTHER) is None


def test_a_disk_that_takes_nothing_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the backbone cannot be kept in"):
        BackboneStore(tmp_path / "file").add(PART)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": "../../" + "a" * 58},
        {"checksum": "A" * 64},
        {"offset": -1},
        {"offset": 1},
        {"data": b""},
    ],
)
def test_a_part_that_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        replace(PART, **change)


def test_a_part_survives_the_wire() -> None:
    assert BackbonePart.decode(PART.encode()) == PART


def test_a_message_names_its_backbone() -> None:
    content = BackboneReceipt(3).encode()
    assert named_backbone(content) == ""
    name_backbone(content, FINGERPRINT)
    assert named_backbone(content) == FINGERPRINT
    name_backbone(content, "../x")
    with pytest.raises(ProtocolError, match="expected a SHA-256"):
        named_backbone(content)


def test_a_directory_of_transformers_is_not_shipped() -> None:
    with pytest.raises(ConfigError, match="a transformers model has a directory"):
        RunConfig.parse({"model.ship": True, "model.name": "hf:/models/mine"})

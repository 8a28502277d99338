"""A person's own samples as one client, and how far they lie from those of the clients of a run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from hyperlora.data.federation import DataError
from hyperlora.data.listing import Origin
from hyperlora.data.personal import Shares, read_image_folder, read_text_table
from hyperlora.messages.signature import ClientCard
from hyperlora.reporting.likeness import likeness
from models.personalization.signature import Signature

SHARES = Shares(validation=0.2, test=0.3)
CLASSES = ("neg", "pos")


def table(path: Path, count: int = 40) -> Path:
    path.write_text("\n".join(["text,label", *(f"review {i},{CLASSES[i % 2]}" for i in range(count))]))
    return path


def test_a_table_of_texts_is_one_client_with_three_parts(tmp_path: Path) -> None:
    client = read_text_table(table(tmp_path / "r.csv"), "me", "csv", Origin(classes=CLASSES), SHARES)
    parts = (client.train, client.validation, client.test)
    assert [len(part) > 0 for part in parts] == [True, True, True]
    texts = [text for part in parts for text in part.inputs]
    assert sorted(texts) == sorted(f"review {i}" for i in range(40))
    labels = [int(label) for part in parts for label in part.labels]
    assert labels == [int(str(text).split()[1]) % 2 for text in texts]
    assert (client.client_id, client.trains) == ("me", False)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    first = read_text_table(table(tmp_path / "a.csv"), "me", "csv", Origin(classes=CLASSES), SHARES)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]))
    second = read_text_table(tmp_path / "b.csv", "me", "csv", Origin(classes=CLASSES), SHARES)
    assert list(first.train.inputs) == list(second.train.inputs)
    assert torch.equal(first.test.labels, second.test.labels)


def test_instructions_are_read_for_a_run_on_instructions(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("\n".join(["prompt,response", *(f"say {i},{i}" for i in range(20))]))
    client = read_text_table(tmp_path / "i.csv", "me", "instructions", Origin(), SHARES)
    assert "say 3\x1f3" in [*client.train.inputs, *client.validation.inputs, *client.test.inputs]


@pytest.mark.parametrize(("name", "count"), [("r.txt", 40), ("none.csv", 0), ("r.csv", 2)])
def test_what_is_no_table_or_too_short_is_refused(tmp_path: Path, name: str, count: int) -> None:
    if count:
        table(tmp_path / name, count)
    with pytest.raises(DataError, match=r"which a run on texts takes|expected at least 3"):
        read_text_table(tmp_path / name, "me", "csv", Origin(classes=CLASSES), SHARES)


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "pos").mkdir()
    for index in range(12):
        Image.new("RGB", (9, 7), (20 * index, 3, 90)).save(tmp_path / "pos" / f"{index:02}.png")
    (tmp_path / "pos" / "bad.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        client = read_image_folder(tmp_path, "me", CLASSES, image_size=6, channels=3, shares=SHARES)
    assert len(client.train) + len(client.validation) + len(client.test) == 12
    assert "1 of 13 images cannot be read and are left out: pos/bad.png" in caplog.text


def card(name: str, mean: float) -> ClientCard:
    return ClientCard(name, "domain", True, 10, signature(mean))


def signature(mean: float) -> Signature:
    return Signature(torch.full((3,), mean), torch.ones(3), torch.tensor([0.4, 0.6]), 2.0)


def test_the_nearest_client_is_named_with_its_distance_at_the_scale_of_the_clients() -> None:
    cards = {name: card(name, mean) for name, mean in (("a", 0.0), ("b", 1.0), ("c", 3.0))}
    spread = torch.tensor([0.0, 1.0, 3.0]).std()
    near = likeness(signature(2.5), cards)
    assert near is not None
    assert near.nearest == "c"
    assert near.distance == pytest.approx(float(0.5 / spread * 0.5**0.5))  # half of the coordinates differ
    assert near.usual == pytest.approx(float(2.0 / spread * 0.5**0.5))
    assert not near.unlike


def test_data_far_from_all_clients_are_unlike_them() -> None:
    cards = {name: card(name, mean) for name, mean in (("a", 0.0), ("b", 1.0), ("c", 3.0))}
    found = [likeness(signature(mean), cards) for mean in (5.3, 5.5)]
    assert [one.unlike for one in found if one] == [False, True]
    assert likeness(signature(6.1), {"a": cards["a"], "b": cards["b"]}) is None

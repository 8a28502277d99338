"""Sets of the hub from parquet: layout, lazy decoding, damaged images, and the real PACS where there is one."""

import io
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hyperlora.data import hub_images, images
from hyperlora.data.federation import DataError, Division, Federation
from hyperlora.data.hub_images import encoded_images
from hyperlora.data.listing import Origin
from hyperlora.data.opening import list_samples, open_federation
from hyperlora.data.personal import Shares, read_image_folder
from hyperlora.data.plans import DividedFederation

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "pacs"
NAMES = ["dog", "horse", "house"]


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def open_pacs(path: str, clients: int = 2, image_size: int = 12) -> Federation:
    return open_federation("pacs", Origin(path, image_size), Division(0, clients, 0.5, 0.5, 0.15, 0.25))


def encoded(number: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, size=(10, 14, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(count: int = 60) -> dict[str, list[Any]]:
    return {
        "image": [{"bytes": encoded(i, "RGB" if i % 5 else "L"), "path": None} for i in range(2 * count)],
        "domain": ["photo"] * count + ["sketch"] * count,
        "label": [i % 3 for i in range(2 * count)],
    }


def write(directory: Path, columns: dict[str, list[Any]], **features: Any) -> str:
    kinds = {"image": datasets.Image(), "domain": datasets.Value("string")}
    kinds |= {"label": datasets.ClassLabel(names=NAMES)} | features
    table = datasets.Dataset.from_dict(columns, features=datasets.Features({c: kinds[c] for c in columns}))
    directory.mkdir()
    table.to_parquet(str(directory / "train-00000-of-00001.parquet"))
    return str(directory)


def test_clients_cover_the_table_with_resized_rgb_images(tmp_path: Path) -> None:
    federation = open_pacs(write(tmp_path / "pacs", rows()))
    assert federation.client_ids == ("photo-0", "photo-1", "sketch-0", "sketch-1")
    assert federation.class_names == tuple(NAMES)
    clients = [federation.load(client_id) for client_id in federation.client_ids]
    assert [client.trains for client in clients] == [True, False, True, False]
    samples = [s for c in clients for s in (c.train, c.validation, c.test)]
    assert sum(map(len, samples)) == 120
    assert {tuple(s.inputs.shape[1:]) for s in samples} == {(3, 12, 12)}
    assert {s.inputs.dtype for s in samples} == {torch.uint8}
    pairs = [pair for s in samples for pair in zip(s.inputs, s.labels, strict=True)]
    images = {image.numpy().tobytes(): int(label) for image, label in pairs}
    assert len(images) == 120
    assert images[pixels_of(7)] == 7 % 3


def pixels_of(number: int) -> bytes:
    with Image.open(io.BytesIO(encoded(number))) as image:
        resized = image.convert("RGB").resize((12, 12), Image.Resampling.BICUBIC)
    return np.array(resized).transpose(2, 0, 1).tobytes()


def test_nothing_is_decoded_before_a_client_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda image, size: decoded.append(1) or decode(image, size))
    federation = open_pacs(write(tmp_path / "pacs", rows()))
    assert not decoded
    first = federation.load("photo-0")
    count = len(decoded)
    assert count == len(first.train) + len(first.validation) + len(first.test) < 60
    assert federation.load("photo-0") is first
    assert len(decoded) == count


def test_the_same_bytes_are_never_in_train_and_test(tmp_path: Path) -> None:
    columns = rows()
    columns["image"][60:] = columns["image"][:60]
    federation = open_pacs(write(tmp_path / "pacs", columns))
    clients = [federation.load(client_id) for client_id in federation.client_ids]
    train = {image.numpy().tobytes() for c in clients for image in c.train.inputs}
    test = {image.numpy().tobytes() for c in clients for image in c.test.inputs}
    assert not train & test


def test_a_clients_files_in_a_folder_of_its_own_are_divided_as_they_were_in_the_set(tmp_path: Path) -> None:
    path = write(tmp_path / "pacs", rows())
    federation = open_pacs(path)
    assert isinstance(federation, DividedFederation)
    for index, (content, label) in enumerate(encoded_images("pacs", path, federation.rows("sketch-1"))):
        file = tmp_path / "own" / NAMES[label] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    own = read_image_folder(tmp_path / "own", "me", NAMES, image_size=12, channels=3, shares=Shares(0.15, 0.25))
    client = federation.load("sketch-1")
    for mine, theirs in ((own.train, client.train), (own.validation, client.validation), (own.test, client.test)):
        pairs = [
            {(image.numpy().tobytes(), int(label)) for image, label in zip(part.inputs, part.labels, strict=True)}
            for part in (mine, theirs)
        ]
        assert pairs[0] == pairs[1]
        assert len(pairs[0]) > 2


def test_a_set_of_no_images_has_no_files() -> None:
    with pytest.raises(DataError, match="'fdu-mtl' has no image files"):
        list(encoded_images("fdu-mtl", "", []))


def test_unreadable_images_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns = rows()
    for row, image in {0: b"", 1: b"no image", 2: columns["image"][2]["bytes"][:40]}.items():
        columns["image"][row] = {"bytes": image, "path": None}
    federation = open_pacs(write(tmp_path / "pacs", columns), clients=1)
    with caplog.at_level(logging.WARNING, logger="data.images"):
        client = federation.load("photo-0")
    assert len(client.train) + len(client.validation) + len(client.test) == 57
    assert "3 of 60 images of domain 'photo' are unreadable" in caplog.text


def test_a_path_that_is_no_copy_is_told_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be absolute, got 'some/where'"):
        open_pacs("some/where")
    with pytest.raises(DataError, match="no directory with PACS at '/no/such/place'"):
        open_pacs("/no/such/place")
    with pytest.raises(DataError, match="no parquet files of PACS in"):
        open_pacs(str(tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"not a parquet file")
    with pytest.raises(DataError, match="cannot be read"):
        open_pacs(str(tmp_path))


def test_other_columns_and_types_are_told_in_one_sentence(tmp_path: Path) -> None:
    columns = rows()
    without = {name: values for name, values in columns.items() if name != "domain"}
    with pytest.raises(DataError, match="column 'domain' must be Value, got none"):
        open_pacs(write(tmp_path / "a", without))
    with pytest.raises(DataError, match="column 'label' must be ClassLabel, got Value"):
        open_pacs(write(tmp_path / "b", columns, label=datasets.Value("int64")))
    columns["domain"][3] = None
    with pytest.raises(DataError, match="rows without domain or label"):
        open_pacs(write(tmp_path / "c", columns))


def test_an_unreachable_hub_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub_images, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'flwrlabs/pacs' \(ConnectionError\); .* set data.path"):
        open_pacs("")


def test_columns_of_other_sets_are_read_by_their_own_names(tmp_path: Path) -> None:
    columns = rows(30)
    cifar = {"img": columns["image"], "fine_label": columns["label"]}
    kinds = {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=NAMES)}
    listing = list_samples("cifar100", Origin(write(tmp_path / "cifar", cifar, **kinds), 12))
    assert (listing.class_names, list(listing.domains)) == (tuple(NAMES), ["all"])
    named = columns | {"domain": ["Real World"] * 30 + ["Clipart"] * 30}
    home = list_samples("office-home", Origin(write(tmp_path / "home", named), 12))
    assert sorted(home.domains) == ["Clipart", "Real_World"]
    drawn = columns | {"domain": [1] * 20 + [0] * 40}
    path = write(tmp_path / "net", drawn, domain=datasets.ClassLabel(names=["clipart", "sketch"]))
    net = list_samples("domainnet", Origin(path, 12))
    assert {name: len(held) for name, held in net.domains.items()} == {"sketch": 20, "clipart": 40}
    assert net.read("sketch", [3, 4]).inputs.shape == (2, 3, 12, 12)  # type: ignore[union-attr]


def test_a_test_split_of_parquet_files_can_be_what_clients_are_tested_on(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "nico", rows(40)))
    (path / "train-00000-of-00001.parquet").rename(path / "test-00000-of-00001.parquet")
    columns = rows(80)
    columns["image"] = [{"bytes": encoded(1000 + i), "path": None} for i in range(160)]
    Path(write(tmp_path / "more", columns), "train-00000-of-00001.parquet").rename(path / "train-00000.parquet")
    federation = open_federation("nico++", Origin(str(path), 12), Division(0, 2, 0.0, 0, 0.2, 0.3, split="official"))
    clients = [federation.load(client_id) for client_id in ("photo-0", "photo-1")]
    tested = {image.numpy().tobytes() for client in clients for image in client.test.inputs}
    assert len(tested) == 40
    assert tested >= {pixels_of(number) for number in range(40) if number % 5}
    assert sum(len(client.train) + len(client.validation) for client in clients) == 80


@pytest.mark.shared_data
def test_the_real_copy_has_four_domains_of_seven_classes() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared copy of PACS at {SHARED}")
    federation = open_pacs(str(SHARED), clients=8, image_size=32)
    assert len(federation.client_ids) == 32
    assert len(federation.class_names) == 7
    client = federation.load("photo-0")
    assert client.domain == "photo"
    assert client.train.inputs.shape == (len(client.train), 3, 32, 32)
    assert client.train.inputs.float().std() > 30

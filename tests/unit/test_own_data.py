"""Own data: folders of images and tables of texts, and what becomes of samples that are no good."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hyperlora.data.federation import DataError, Division
from hyperlora.data.images import decode_image, image_files, list_folder
from hyperlora.data.listing import Origin, number_labels
from hyperlora.data.opening import describe_data, list_samples, open_federation
from hyperlora.data.tables import list_table

DIVISION = Division(0, 1, 0, 0, 0.2, 0.2)
CLASSES = ("cat", "dog")


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (shade, 255 - shade, 90)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index in range(60):
        paint(tmp_path / "photos" / CLASSES[index % 2] / f"{index:02}.png", 3 * index)
    return tmp_path / "photos"


def write_csv(path: Path, rows: list[tuple[str, ...]], header: str = "text,label,domain") -> str:
    lines = [header, *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return str(path)


def reviews(count: int = 40) -> list[tuple[str, ...]]:
    return [(f"review {i}, of many", ("neg", "pos")[i % 2], ("books", "dvd")[i // 2 % 2]) for i in range(count)]


def test_a_folder_of_classes_is_one_domain(photos: Path) -> None:
    federation = open_federation("folder", Origin(str(photos), 6), Division(0, 3, 0, 0, 0.2, 0.2))
    assert federation.class_names == CLASSES
    assert federation.client_ids == ("all-0", "all-1", "all-2")
    clients = [federation.load(name) for name in federation.client_ids]
    assert sum(len(c.train) + len(c.validation) + len(c.test) for c in clients) == 60
    assert clients[0].train.inputs.shape[1:] == (3, 6, 6)  # type: ignore[union-attr]
    red = {int(image[0, 0, 0]): int(label) for c in clients for image, label in zip(c.train.inputs, c.train.labels, strict=True)}  # fmt: skip # noqa: E501
    assert all((shade // 3) % 2 == label for shade, label in red.items())


def test_a_folder_of_domains_can_be_one_client_each(photos: Path, tmp_path: Path) -> None:
    for domain in ("north", "south"):
        for index in range(10):
            paint(tmp_path / "sites" / domain / CLASSES[index % 2] / f"{index}.jpg", 20 * index)
    origin = Origin(str(tmp_path / "sites"), 6)
    assert describe_data("folder", origin).domains == ("north", "south")
    assert open_federation("folder", origin, Division(0, 1, 0, 0, 0.2, 0.2, "natural")).client_ids == ("north", "south")


def test_bad_images_and_unknown_classes_are_left_out_with_a_count(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "cat" / "00.png").write_bytes(b"no image")
    (photos / "cat" / "02.png").write_bytes(b"")
    (photos / "bird").mkdir()
    paint(photos / "ghost" / "a.png", 5)
    paint(photos / ".trash" / "b.png", 5)
    (photos / "cat" / "notes.txt").write_text("no image")
    with caplog.at_level(logging.WARNING):
        federation = open_federation("folder", Origin(str(photos), 6, ("cat", "dog", "bird")), DIVISION)
        client = federation.load("all-0")
    assert federation.class_names == ("cat", "dog", "bird")
    assert len(client.train) + len(client.validation) + len(client.test) == 58
    assert f"2 of 60 images of domain 'all' are unreadable and left out: {photos}/cat/00.png, {photos}/cat/02.png" in (
        caplog.text
    )
    assert "1 samples of" in caplog.text
    assert "'ghost' (1)" in caplog.text
    assert "1 of 3 classes have no sample in" in caplog.text


def test_a_client_of_one_sample_and_one_without_any_are_named(tmp_path: Path) -> None:
    paint(tmp_path / "sites" / "small" / "cat" / "a.png", 9)
    for index in range(10):
        paint(tmp_path / "sites" / "single" / "cat" / f"{index}.png", index)
        path = tmp_path / "sites" / "broken" / "dog" / f"{index}.png"
        paint(path, index)
        path.write_bytes(b"no image")
    federation = open_federation(
        "folder", Origin(str(tmp_path / "sites"), 6), Division(0, 1, 0, 0, 0.2, 0.2, "natural")
    )
    with pytest.raises(DataError, match="client 'small' has 1 samples, which leaves none to train on"):
        federation.load("small")
    with pytest.raises(DataError, match="client 'broken' has 0 samples, which leaves none to train on"):
        federation.load("broken")
    assert set(federation.load("single").train.labels.tolist()) == {0}


def test_splits_stay_when_images_are_added(photos: Path) -> None:
    before = open_federation("folder", Origin(str(photos), 6), DIVISION).load("all-0")
    for index in range(60, 85):
        paint(photos / "cat" / f"a{index}.png", 3 * index)
    list_samples.cache_clear()
    after = open_federation("folder", Origin(str(photos), 6), DIVISION).load("all-0")
    held = {image.numpy().tobytes() for image in before.test.inputs}  # type: ignore[union-attr]
    assert held <= {image.numpy().tobytes() for image in after.test.inputs}  # type: ignore[union-attr]
    assert not held & {image.numpy().tobytes() for image in after.train.inputs}  # type: ignore[union-attr]


def test_a_csv_of_texts(tmp_path: Path) -> None:
    federation = open_federation(
        "csv", Origin(write_csv(tmp_path / "r.csv", reviews())), Division(0, 1, 0, 0, 0.2, 0.2)
    )
    assert federation.class_names == ("neg", "pos")
    assert federation.client_ids == ("books-0", "dvd-0")
    train = federation.load("dvd-0").train
    assert all(isinstance(text, str) and text.endswith("of many") for text in train.inputs)
    assert [int(text.split()[1].strip(",")) % 2 for text in train.inputs] == train.labels.tolist()  # type: ignore[union-attr]


def test_jsonl_and_parquet_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [dict(zip(("text", "label", "domain"), row, strict=True)) for row in reviews()]
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "r.parquet"))
    table = list_samples("csv", Origin(write_csv(tmp_path / "r.csv", reviews())))
    for kind in ("jsonl", "parquet", "fdu-mtl"):
        other = list_samples(kind, Origin(str(tmp_path / f"r.{kind.replace('fdu-mtl', 'parquet')}")))
        assert (other.class_names, other.labels, other.domains) == (table.class_names, table.labels, table.domains)
        assert other.read("books", [0, 5]).inputs == table.read("books", [0, 5]).inputs


def test_labels_may_be_numbers_and_columns_have_other_names(tmp_path: Path) -> None:
    rows = [(f"text {i}", str(i % 11)) for i in range(33)]
    path = write_csv(tmp_path / "r.csv", rows, header="body,stars")
    columns = {"text_column": "body", "label_column": "stars"}
    assert list_samples("csv", Origin(path, **columns)).class_names == tuple(map(str, range(11)))
    listing = list_samples("csv", Origin(path, classes=("bad", "good"), **columns))
    assert [number for number in listing.labels if number >= 0] == [0, 1] * 3
    assert list(listing.domains) == ["all"]
    assert torch.equal(listing.read("all", [0, 1, 12]).labels, torch.tensor([0, 1, 1]))


def test_rows_without_text_or_label_are_left_out_with_a_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_csv(tmp_path / "r.csv", [*reviews(), ("", "pos", "dvd"), ("no label", "", "dvd"), ("  ", "neg", "")])
    with caplog.at_level(logging.WARNING):
        assert len(list_samples("csv", Origin(path)).labels) == 40
    assert f"3 rows of '{path}' have no text or no label and are left out" in caplog.text


def test_instructions_are_described_by_their_lengths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [("Name a colour.", "red", "art"), ("Name one.", "r" * 70, "art"), ("Why?", "", "art")]
    for columns in (("prompt", "response"), ("instruction", "output")):
        path = write_csv(tmp_path / f"{columns[0]}.csv", rows, header=f"{','.join(columns)},domain")
        listing = list_samples("instructions", Origin(path))
        assert listing.labels == [0, 1]
        assert listing.read("art", [0]).inputs == ["Name a colour.\x1fred"]
    assert "1 rows of" in caplog.text
    with pytest.raises(DataError, match="has no column 'instruction', only text"):
        list_samples("instructions", Origin(write_csv(tmp_path / "r.csv", reviews())))


def test_several_files_are_several_domains(tmp_path: Path) -> None:
    for name in ("north", "south"):
        write_csv(tmp_path / f"{name}.csv", [row[:2] for row in reviews(4)], header="text,label")
    assert sorted(list_samples("csv", Origin(str(tmp_path))).domains) == ["north", "south"]


@pytest.mark.parametrize(
    ("kind", "place", "sentence"),
    [
        ("folder", "", "data.name is 'folder'; set data.path to the directory"),
        ("folder", "photos", "must be absolute, got 'photos'"),
        ("folder", "{tmp}/none", "there is no directory with images at"),
        ("folder", "{tmp}/empty", "there are no images in"),
        ("folder", "{tmp}/mixed", r"all in root/domain/class/, got images 2, 3 levels deep"),
        ("csv", "", "data.name is 'csv'; set data.path to the file"),
        ("csv", "reviews.csv", "must be absolute, got 'reviews.csv'"),
        ("csv", "{tmp}/empty", "there is no csv file at"),
        (
            "csv",
            "{tmp}/other.csv",
            "row 1 of '.*other.csv' has no column 'text', only body, label; set data.text-column",
        ),
        ("csv", "{tmp}/latin.csv", "latin.csv' cannot be read as csv in UTF-8"),
        ("jsonl", "{tmp}/broken.jsonl", "broken.jsonl' cannot be read as jsonl in UTF-8"),
        ("parquet", "{tmp}/broken.jsonl", "cannot be read as parquet"),
    ],
)
def test_a_place_without_such_data_is_told_in_one_sentence(
    kind: str, place: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    paint(tmp_path / "mixed" / "cat" / "a.png", 1)
    paint(tmp_path / "mixed" / "north" / "cat" / "a.png", 1)
    write_csv(tmp_path / "other.csv", [("a", "b")], header="body,label")
    (tmp_path / "latin.csv").write_bytes("text,label\ncaf\xe9,x\n".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text("{no json\n")
    with pytest.raises(DataError, match=sentence):
        list_samples(kind, Origin(place.format(tmp=tmp_path), 6))


def test_a_server_without_data_knows_the_classes_that_it_is_told() -> None:
    info = describe_data("csv", Origin(classes=("bad", "good")))
    assert (info.class_names, info.domains) == (("bad", "good"), ())


def test_data_of_unknown_classes_only_are_told(photos: Path) -> None:
    with pytest.raises(DataError, match=r"has no sample of a known class; data.classes is 'bus,tram'"):
        list_samples("folder", Origin(str(photos), 6, ("bus", "tram")))


def test_rows_with_more_cells_than_the_header_are_left_out_and_the_first_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "r.csv"
    path.write_text("text,label\ngood,pos\nbad, really bad,neg\nbad,neg\n")
    with caplog.at_level(logging.WARNING):
        listing = list_samples("csv", Origin(str(path)))
    assert listing.class_names == ("neg", "pos")
    assert f"1 rows of '{path}' have more cells than its header and are left out, row 2 first" in caplog.text


@pytest.mark.parametrize("content", ["text,label\n", ""])
def test_a_table_without_rows_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.csv").write_text(content)
    with pytest.raises(DataError, match="has no rows"):
        list_samples("csv", Origin(str(tmp_path / "r.csv")))


def test_numbers_that_are_names_of_classes_are_no_places(caplog: pytest.LogCaptureFixture) -> None:
    names, numbers = number_labels(["1", "2", "3", "4", "5", "3"], ("1", "2", "4", "5"), "stars.csv")
    assert (names, numbers) == (("1", "2", "4", "5"), [0, 1, -1, 2, 3, -1])
    assert "'3' (2)" in caplog.text
    assert number_labels(["0", "1"], ("cat", "dog"), "places.csv")[1] == [0, 1]


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    for name in range(12):
        (tmp_path / str(name)).mkdir()
        Image.new("L", (4, 4), name).save(tmp_path / str(name) / "one.png")
    assert list_folder("folder", Origin(str(tmp_path), 8)).class_names == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('text,label\nfine,pos\n"Great film, I said,pos\nmore,neg\n', "unexpected end of data, up to line"),
        ('text,label\n"a" b,pos\n', "expected after"),
    ],
)
def test_a_quote_that_is_not_closed_is_an_error_and_swallows_nothing(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "texts.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        list_table("csv", Origin(str(tmp_path / "texts.csv"), 8))


def test_tables_of_odd_forms(tmp_path: Path) -> None:
    (tmp_path / "bom.jsonl").write_text('\ufeff{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    assert list_table("jsonl", Origin(str(tmp_path / "bom.jsonl"), 8)).class_names == ("x", "y")
    (tmp_path / "null.jsonl").write_text('{"text": "a", "label": "x"}\nnull\n')
    with pytest.raises(DataError, match=r"line 2 of .* is no object of columns: null"):
        list_table("jsonl", Origin(str(tmp_path / "null.jsonl"), 8))
    (tmp_path / "long.csv").write_text(f"text,label\n{'a' * 200_000},x\nb,y\n")
    assert list_table("csv", Origin(str(tmp_path / "long.csv"), 8)).class_names == ("x", "y")


def test_an_image_of_sixteen_bits_keeps_its_tones() -> None:
    encoded = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(encoded, "PNG")
    decoded = decode_image(encoded.getvalue(), 64)
    assert len(decoded.unique()) > 200
    assert int(decoded.max()) == 255
    wide = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)).save(wide, "TIFF")
    assert decode_image(wide.getvalue(), 16, 1).flatten().tolist() == list(range(256))


def test_folders_of_classes_may_be_links(tmp_path: Path) -> None:
    for name in ("photos/dog", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "one.png")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "dog" / "round").symlink_to(tmp_path / "photos")
    files = image_files(tmp_path / "photos")
    assert {file.parent.name for file in files} >= {"cat", "dog"}

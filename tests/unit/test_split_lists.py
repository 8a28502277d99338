"""DomainNet and NICO++ from their official lists, and the official test split over clients."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlora.data.federation import DataError, Division
from hyperlora.data.listing import Origin
from hyperlora.data.opening import describe_data, list_samples, open_federation
from hyperlora.data.plans import divide_test
from tests.official_layouts import CLASSES, DOMAINS, write_domainnet, write_nico

OFFICIAL = Division(0, 2, 0, 0, 0.2, 0.3, split="official")
NATURAL = Division(0, 1, 0, 0, 0.2, 0.3, "natural", split="official")


def all_pixels(samples: object) -> Counter[bytes]:
    return Counter(image.numpy().tobytes() for image in samples.inputs)  # type: ignore[attr-defined]


@pytest.mark.parametrize("lists", ["", "splits", "txt"])
def test_domainnet_is_read_where_its_lists_lie(lists: str, tmp_path: Path) -> None:
    listing = list_samples("domainnet", Origin(write_domainnet(tmp_path / "net", 20, 10, lists), 8))
    assert listing.class_names == ("zebra", "hot_air_balloon", "axe", "bat", "cat")
    assert {name: len(rows) for name, rows in listing.domains.items()} == dict.fromkeys(DOMAINS["domainnet"], 30)
    assert len(listing.test) == 60
    source = listing.read("real", listing.domains["real"][:7])
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert source.inputs.shape == (7, 3, 8, 8)  # type: ignore[union-attr]


def test_nico_has_spaces_in_its_classes_and_images_beside_its_lists(tmp_path: Path) -> None:
    listing = list_samples("nico++", Origin(write_nico(tmp_path / "nico", 20, 10), 8))
    assert listing.class_names == CLASSES
    assert tuple(listing.domains) == DOMAINS["nico++"]
    assert len(listing.read("water", listing.domains["water"]).labels) == 30


def test_the_first_classes_are_those_of_the_lowest_numbers(tmp_path: Path) -> None:
    origin = Origin(write_domainnet(tmp_path / "net", 20, 10), 8, first_classes=2)
    assert describe_data("domainnet", origin).class_names == ("zebra", "hot_air_balloon")
    federation = open_federation("domainnet", origin, NATURAL)
    clients = [federation.load(name) for name in federation.client_ids]
    assert [len(one.test) for one in clients] == [4] * 6
    assert {int(label) for one in clients for label in one.train.labels} == {0, 1}
    with pytest.raises(DataError, match=r"data.first-classes is 6, but the data have 5 classes"):
        list_samples("domainnet", Origin(origin.path, 8, first_classes=6))
    assert describe_data("digits", Origin(first_classes=3)).class_names == ("0", "1", "2")


def test_a_client_that_is_a_domain_is_tested_on_the_domains_official_test_list(tmp_path: Path) -> None:
    origin = Origin(write_nico(tmp_path / "nico", 20, 10), 8)
    listing, federation = list_samples("nico++", origin), open_federation("nico++", origin, NATURAL)
    client = federation.load("rock")
    official = [row for row in listing.domains["rock"] if row in listing.test]
    assert all_pixels(client.test) == all_pixels(listing.read("rock", official))
    assert len(client.train) + len(client.validation) == 20


def test_clients_of_a_domain_share_its_official_test_list(tmp_path: Path) -> None:
    origin = Origin(write_domainnet(tmp_path / "net", 60, 20), 8)
    listing, federation = list_samples("domainnet", origin), open_federation("domainnet", origin, OFFICIAL)
    clients = [federation.load(f"real-{index}") for index in (0, 1)]
    official = [row for row in listing.domains["real"] if row in listing.test]
    assert all_pixels(clients[0].test) + all_pixels(clients[1].test) == all_pixels(listing.read("real", official))
    trained = set(all_pixels(clients[0].train) + all_pixels(clients[1].train))
    assert not trained & set(all_pixels(listing.read("real", official)))


def test_by_hash_the_lists_are_one_pool(tmp_path: Path) -> None:
    origin = Origin(write_domainnet(tmp_path / "net", 60, 20), 8)
    client = open_federation("domainnet", origin, Division(0, 1, 0, 0, 0.2, 0.3)).load("real-0")
    assert len(client.train) + len(client.validation) + len(client.test) == 80
    assert len(client.test) != 20


def test_a_cap_keeps_the_test_share_in_proportion(tmp_path: Path) -> None:
    origin = Origin(write_nico(tmp_path / "nico", 60, 20), 8)
    capped = Division(0, 1, 0, 0, 0.2, 0.3, "natural", max_samples=20, split="official")
    client = open_federation("nico++", origin, capped).load("dim")
    assert (len(client.test), len(client.train) + len(client.validation)) == (5, 15)


def test_a_listed_image_that_is_not_there_is_left_out_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_nico(tmp_path / "nico", 20, 10)
    next((tmp_path / "nico" / "NICO_DG" / "dim" / "axe").iterdir()).unlink()
    with caplog.at_level(logging.WARNING):
        client = open_federation("nico++", Origin(path, 8), NATURAL).load("dim")
    assert len(client.train) + len(client.validation) + len(client.test) == 29
    assert "images of domain 'dim' are unreadable and left out" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: (root / "real_test.txt").unlink(), "there is no list 'real_test.txt' beside"),
        (lambda root: (root / "real_train.txt").write_text("real/axe/a.png\n"), "line 1 of .* is not 'domain/class"),
        (lambda root: (root / "real_train.txt").write_text("axe/a.png 3\n"), "line 1 of .* is not 'domain/class"),
        (lambda root: (root / "real_train.txt").write_text("real/axe/a.png 0\n"), "stands for class 'zebra' and for"),
        (lambda root: (root / "real").rename(root / "fake"), "no directory '.*real'"),
        (lambda root: (root / "real_train.txt").write_bytes(b"\xff\xfe\n"), "cannot be read as text in UTF-8"),
    ],
)
def test_a_broken_copy_is_told_in_one_sentence(spoil, sentence: str, tmp_path: Path) -> None:
    path = write_domainnet(tmp_path / "net", 10, 5)
    spoil(tmp_path / "net")
    with pytest.raises(DataError, match=sentence):
        list_samples("domainnet", Origin(path, 8))


def test_data_without_an_official_test_split_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.split is 'official', but 'digits' has no test split of its own"):
        open_federation("digits", Origin("", 16), OFFICIAL)
    with pytest.raises(DataError, match=r"no parquet files and no lists \{domain\}_train.txt of NICO"):
        list_samples("nico++", Origin(str(tmp_path), 8))
    with pytest.raises(DataError, match=r"is not loaded from the hub; set data.path"):
        list_samples("nico++", Origin("", 8))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=60),
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 5),
)
def test_every_test_row_of_a_trained_class_goes_to_one_client_that_trains_on_it(
    train: list[int], test: list[int], clients: int
) -> None:
    labels = train + test
    parts = [list(range(len(train)))[index::clients] for index in range(clients)]
    shares = divide_test(labels, parts, range(len(train), len(labels)))
    given_out = sorted(row for share in shares for row in share)
    assert given_out == [row for row in range(len(train), len(labels)) if labels[row] in set(train)]
    for part, share in zip(parts, shares, strict=True):
        assert {labels[row] for row in share} <= {labels[row] for row in part}
        for label in set(train):
            fair = test.count(label) * sum(labels[row] == label for row in part) / train.count(label)
            assert abs(sum(labels[row] == label for row in share) - fair) <= 1

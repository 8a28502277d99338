"""The embedded digits: four domains of one private half, and no way from test to train."""

import pytest
import torch
from torch import Tensor

from hyperlora.data import digits
from hyperlora.data.digits import DOMAINS, digits_public
from hyperlora.data.federation import ClientData, DataError, Division, Federation, Samples
from hyperlora.data.listing import Origin
from hyperlora.data.opening import open_federation


def open_digits(seed: int = 0, alpha: float = 0.5, image_size: int = 16) -> Federation:
    return open_federation("digits", Origin("", image_size), Division(seed, 5, alpha, 0.2, 0.15, 0.25))


def load_all(federation: Federation) -> list[ClientData]:
    return [federation.load(client_id) for client_id in federation.client_ids]


def fingerprints(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.fixture(scope="module")
def clients() -> list[ClientData]:
    return load_all(open_digits())


def test_clients_have_ids_domains_and_a_last_unseen_one(clients: list[ClientData]) -> None:
    federation = open_digits()
    assert federation.client_ids == tuple(sorted(f"{d}-{k}" for d in DOMAINS for k in range(5)))
    assert federation.class_names == tuple("0123456789")
    assert [client.client_id for client in clients if not client.trains] == [f"{d}-4" for d in sorted(DOMAINS)]


def test_samples_have_the_declared_types_and_shapes(clients: list[ClientData]) -> None:
    for client in clients:
        for samples in (client.train, client.validation, client.test):
            assert len(samples) > 0
            assert samples.inputs.shape == (len(samples), 1, 16, 16)
            assert samples.inputs.dtype == torch.uint8
            assert samples.labels.dtype == torch.int64


def test_each_domain_holds_the_whole_private_half_once(clients: list[ClientData]) -> None:
    public, _ = digits_public()
    for domain in DOMAINS:
        held = [c for c in clients if c.domain == domain]
        total = sum(len(s) for c in held for s in (c.train, c.validation, c.test))
        assert total == 1797 - len(public)
    clean = [s for c in clients if c.domain == "clean" for s in (c.train, c.validation, c.test)]
    assert len(set().union(*(fingerprints(s.inputs) for s in clean))) == sum(map(len, clean))


def test_no_client_holds_a_public_digit(clients: list[ClientData]) -> None:
    public = fingerprints(digits_public()[0])
    for client in clients:
        if client.domain == "clean":
            for samples in (client.train, client.validation, client.test):
                assert not public & fingerprints(samples.inputs)


def rows_of(samples: Samples, domain: str) -> set[int]:
    """Tell which digits of scikit-learn these are, by showing every digit in ``domain`` and comparing."""
    images, labels = digits._all_digits(16)
    every = list(range(len(labels)))
    shown = (DOMAINS[domain](images.float() / 255, every) * 255).round().clamp(0, 255).byte()
    row_of = {image.numpy().tobytes(): row for row, image in enumerate(shown)}
    return {row_of[image.numpy().tobytes()] for image in samples.inputs}


def test_a_test_digit_is_trained_on_by_nobody_in_any_domain(clients: list[ClientData]) -> None:
    train, tested = set(), {domain: set() for domain in DOMAINS}
    for client in clients:
        train |= rows_of(client.train, client.domain) | rows_of(client.validation, client.domain)
        tested[client.domain] |= rows_of(client.test, client.domain)
    assert not train & set().union(*tested.values())
    assert all(rows == tested["clean"] for rows in tested.values())
    assert len(tested["clean"]) > 200


def test_the_same_seed_gives_the_same_clients_and_another_one_others(clients: list[ClientData]) -> None:
    for first, second in zip(clients, load_all(open_digits()), strict=True):
        assert torch.equal(first.train.inputs, second.train.inputs)
        assert torch.equal(first.test.labels, second.test.labels)
    other = load_all(open_digits(seed=1))
    assert [len(c.train) for c in other] != [len(c.train) for c in clients]


def test_noise_belongs_to_the_digit_and_not_to_its_holder() -> None:
    noisy = [
        set().union(*(fingerprints(c.test.inputs) for c in load_all(open_digits(seed)) if c.domain == "noisy"))
        for seed in (0, 1)
    ]
    assert noisy[0] == noisy[1]


def test_domains_differ_and_other_sizes_work() -> None:
    clients = load_all(open_digits(image_size=24))
    means = {c.domain: c.train.inputs.float().mean().item() for c in clients}
    assert clients[0].train.inputs.shape[1:] == (1, 24, 24)
    assert means["inverted"] > 1.5 * means["clean"]


def test_a_client_is_kept_and_an_unknown_one_is_told() -> None:
    federation = open_digits()
    assert federation.load("clean-0") is federation.load("clean-0")
    with pytest.raises(DataError, match="no client 'clean-9'"):
        federation.load("clean-9")

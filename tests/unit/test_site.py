"""The node config of a site: what it may say, and the sentence for everything else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from client_app.site import Site, clients_of, federation_of, read_site
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.data.federation import ClientData, DataError, Samples, SingleClient

IDS = ("clean-0", "clean-1", "noisy-0")


class OneClient:
    client_ids = ("folder",)
    class_names = ("a", "b")

    def load(self, client_id: str) -> ClientData:
        samples = Samples(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))
        return ClientData(client_id, "own", True, samples, samples, samples)


def test_a_site_hosts_its_own_client_alone() -> None:
    assert clients_of({"client-id": "clean-1"}, IDS) == ["clean-1"]


def test_a_simulated_node_hosts_every_nth_client() -> None:
    assert read_site({"partition-id": 0, "num-partitions": 2}) is None
    assert clients_of({"partition-id": 0, "num-partitions": 2}, IDS) == ["clean-0", "noisy-0"]


def test_a_site_has_its_own_data_and_device_and_the_runs_other_settings() -> None:
    site = read_site({"client-id": "a", "data-path": "/mnt/a", "weights": "/mnt/w", "rank": 2, "device": "cpu"})
    assert site == Site(client_id="a", data_path="/mnt/a", weights="/mnt/w", rank=2, device="cpu")
    config = RunConfig.parse({"data.path": "/server/path", "seed": 3})
    own = site.settings(config)
    assert (own.data.path, own.model.weights, own.train.device, own.seed) == ("/mnt/a", "/mnt/w", "cpu", 3)
    assert Site(client_id="a").settings(config) == config


@pytest.mark.parametrize(
    ("node_config", "sentence"),
    [
        ({}, "names neither a 'client-id' nor a 'partition-id' with 'num-partitions'"),
        ({"partition-id": 0}, "names neither a 'client-id' nor"),
        ({"client-id": "clean-0", "partition-id": 0}, "names both 'client-id' and 'partition-id'"),
        ({"client-id": "dirty-0"}, "client 'dirty-0', which this run's data set does not have; it has clean-0, clean"),
        ({"client-id": 3}, "'client-id' takes a text|'client-id' takes a string"),
        ({"client-id": "../clean-0"}, "'client-id' must be 1 to 64 letters"),
        ({"client-id": "Anchor", "data-path": "/mnt"}, "begin with a letter or digit, and none of anchor, personal"),
        ({"client-id": "clean-0", "data_path": "/mnt"}, "unknown key 'data_path' .* did you mean 'data-path'"),
        ({"client-id": "clean-0", "data-path": "mnt"}, "'data-path' must be an absolute path, got 'mnt'"),
        ({"client-id": "clean-0", "rank": "4"}, "'rank' takes an integer, got '4'"),
        ({"client-id": "clean-0", "rank": -1}, "'rank' must be 0 or more"),
        ({"client-id": "clean-0", "device": "tpu"}, "'device' must be one of"),
        ({"partition-id": 2, "num-partitions": 2}, "must be whole numbers, got 2 and 2"),
    ],
)
def test_a_wrong_node_config_is_one_sentence(node_config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        clients_of(node_config, IDS)
    assert "\n" not in str(caught.value)


def test_data_of_a_single_client_go_by_the_sites_client_id() -> None:
    own = federation_of(Site(client_id="hospital-3", data_path="/mnt/own"), OneClient())
    assert isinstance(own, SingleClient)
    assert (own.client_ids, own.class_names) == (("hospital-3",), ("a", "b"))
    assert own.load("hospital-3").client_id == "hospital-3"
    with pytest.raises(DataError, match="holds the data of client 'hospital-3' only, not of 'hospital-4'"):
        own.load("hospital-4")


def test_without_a_data_path_the_data_set_keeps_its_names() -> None:
    source = OneClient()
    assert federation_of(Site(client_id="hospital-3"), source) is source
    assert federation_of(None, source) is source

"""What a node says of itself in its node config: which client it hosts, where its data and its own files lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from hyperlora.config.schema import RunConfig
from hyperlora.config.section import ConfigError, Rule, Scalar, Section, key, keys_of, nearest, parse_section
from hyperlora.data.federation import Federation, SingleClient
from hyperlora.messages.signature import RULE, is_client_id

SIMULATION_KEYS = ("partition-id", "num-partitions")
AbsolutePath = Annotated[str, Rule(lambda value: not value or Path(value).is_absolute(), "an absolute path")]
Delta = Annotated[float, Field(gt=0, lt=1)]
ClientName = Annotated[str, Rule(is_client_id, RULE)]


class Site(Section):
    """One client on a machine of its own, as ``flower-supernode --node-config`` describes it."""

    client_id: ClientName = key("", "the client that this node hosts")
    data_path: AbsolutePath = key("", "absolute path of its own data; empty takes its part of the run's data set")
    state_dir: AbsolutePath = key("", "absolute path of a folder for the site's caches; empty keeps none")
    weights: AbsolutePath = key("", "absolute path of its copy of the backbone's weights; empty takes model.weights")
    rank: NonNegativeInt = key(0, "largest LoRA rank that this client can train; 0 takes the run's")
    device: Literal["", "auto", "cpu", "cuda"] = key("", "device to train on; empty takes train.device")
    epsilon_budget: NonNegativeFloat = key(0.0, "largest epsilon of all that it releases over all runs; 0 is no bound")
    delta: Delta = key(1e-5, "delta of that epsilon")
    policy: AbsolutePath = key("", "absolute path of the site's policy, a TOML file; empty restricts nothing")
    peers: AbsolutePath = key("", "absolute path of the list of clients that it is in sums with; empty is anybody")
    peer_key: AbsolutePath = key("", "absolute path of the private key that the list has for this client")

    def settings(self, config: RunConfig) -> RunConfig:
        """Return the run's configuration as it holds at this site: with its own paths, device and rank.

        Raises:
            ConfigError: the run's method needs one rank for all, or the rank is above that of the run.
        """
        values = {"data.path": self.data_path, "model.weights": self.weights, "train.device": self.device}
        if self.rank:
            values["lora.ranks"] = str(self.rank)
        return config.with_values({name: value for name, value in values.items() if value})


def read_site(node_config: Mapping[str, Scalar]) -> Site | None:
    """Return the site that a node config describes, or None for a node of a simulation.

    Raises:
        ConfigError: the keys contradict each other, or one is missing, unknown or has a wrong value.
    """
    simulated = [name for name in SIMULATION_KEYS if name in node_config]
    if "client-id" not in node_config:
        if len(simulated) == len(SIMULATION_KEYS):
            return None
        raise ConfigError(
            "the node config names neither a 'client-id' nor a 'partition-id' with 'num-partitions'; "
            "start the node with --node-config 'client-id=\"site-0\"'"
        )
    if simulated:
        raise ConfigError(
            f"the node config names both 'client-id' and '{simulated[0]}'; a site has a client-id alone, "
            "a simulated node has none"
        )
    known = [entry.key for entry in keys_of(Site)]
    for name in node_config:
        if name not in known:
            raise ConfigError(f"unknown key '{name}' in the node config{nearest(name, known)}")
    site = parse_section(Site, node_config)
    if bool(site.peers) != bool(site.peer_key):
        raise ConfigError("the node config names one of 'peers' and 'peer-key': sums among known clients need both")
    return site


def clients_of(node_config: Mapping[str, Scalar], client_ids: Sequence[str]) -> list[str]:
    """Return the clients among ``client_ids`` that a node hosts.

    A site hosts its client; a simulated node every ``num-partitions``-th, from ``partition-id`` on.

    Raises:
        ConfigError: the node config is wrong, or names a client that the data set does not have.
    """
    site = read_site(node_config)
    if site is not None:
        if site.client_id not in client_ids:
            raise ConfigError(
                f"the node config names client '{site.client_id}', which this run's data set does not have; "
                f"it has {_some(client_ids)}"
            )
        return [site.client_id]
    index, count = (node_config[name] for name in SIMULATION_KEYS)
    if type(index) is not int or type(count) is not int or not 0 <= index < count:
        raise ConfigError(f"'partition-id' and 'num-partitions' must be whole numbers, got {index!r} and {count!r}")
    return list(client_ids[index::count])


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def federation_of(site: Site | None, federation: Federation) -> Federation:
    """Return what a node reads from: data of a single client under ``data-path`` go by the site's client-id."""
    if site is None or not site.data_path or len(federation.client_ids) != 1:
        return federation
    (name,) = federation.client_ids
    return SingleClient(site.client_id, partial(federation.load, name), federation.class_names)

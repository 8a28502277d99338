"""A Grid of sites in this process: nodes with a node config of their own, that come and go between rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from benchmarks.local_grid import LocalGrid, expired
from client_app.app import app as client_app


class PartlySilentGrid(LocalGrid):
    """A LocalGrid whose nodes in ``silent`` are connected and answer nothing; what they are sent is in ``sent``."""

    silent: frozenset[int] = frozenset()

    def _answer(self, message: Message) -> Message:
        silent = message.metadata.dst_node_id in self.silent
        return expired(message) if silent else super()._answer(message)

    def asked(self, node_id: int) -> int:
        """Return how many messages a node was sent."""
        return sum(message.metadata.dst_node_id == node_id for message in self.sent)


class SiteGrid(PartlySilentGrid):
    """Node i (from 1) has ``node_configs[i - 1]`` and ``public_keys[i - 1]``; ``present`` may be changed in a run."""

    def __init__(
        self,
        run_config: Mapping[str, Any],
        node_configs: Sequence[Mapping[str, Any]],
        public_keys: Sequence[bytes] = (),
    ) -> None:
        super().__init__(client_app, run_config, len(node_configs))
        self._contexts = {
            index: Context(1, index, dict(config), RecordDict(), dict(run_config))
            for index, config in enumerate(node_configs, start=1)
        }
        self.present = set(self._contexts)
        self._public_keys = dict(enumerate(public_keys, start=1))

    def get_node_ids(self) -> list[int]:
        return sorted(self.present)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=index, public_key=self._public_keys.get(index, b"")) for index in self.get_node_ids()]

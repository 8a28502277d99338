"""What every message carries: the protocol's version, in a ConfigRecord with its scalars."""

from __future__ import annotations

from typing import Any

from flwr.app import ConfigRecord, RecordDict

from protocol.records import ProtocolError, config_of, require
from protocol.wire import WIRE_DTYPES

PROTOCOL_VERSION = 1


def config_record(**entries: Any) -> ConfigRecord:
    """Return a ConfigRecord with ``entries`` and the version."""
    return ConfigRecord({"version": PROTOCOL_VERSION, **entries})


def checked_config(content: RecordDict) -> ConfigRecord:
    """Return the message's ConfigRecord; raises ProtocolError for another version."""
    config = config_of(content)
    version = require(config, "version", int)
    if version != PROTOCOL_VERSION:
        raise ProtocolError(f"the message has protocol version {version}, this side speaks {PROTOCOL_VERSION}")
    return config


def require_wire(config: ConfigRecord) -> str:
    """Return how the message's adapters travel; raises ProtocolError for a format that this side does not know."""
    wire = require(config, "wire", str)
    if wire not in WIRE_DTYPES:
        raise ProtocolError(f"adapters travel as '{wire}', this side reads {', '.join(WIRE_DTYPES)}")
    return wire

"""The ClientApp of this project: a simulated node or a site, as the run and node configuration say."""

from __future__ import annotations

from flwr.app import Context, Message

from client_app.backbone_store import backbone_store, with_shipped
from client_app.handlers import app_around
from client_app.runtime import ClientRuntime, open_runtime
from client_app.site import read_site
from hyperlora.config.schema import RunConfig
from hyperlora.messages.backbone import BackbonePart, BackboneReceipt
from hyperlora.messages.codec import ProtocolError


def configured(context: Context) -> RunConfig:
    """Return the configuration of the run that a message belongs to; raises ConfigError."""
    return RunConfig.parse(context.run_config)


def provide_runtime(context: Context, fingerprint: str) -> ClientRuntime:
    """Return the runtime of this process, with the shipped backbone of that fingerprint where the site keeps one."""
    config, site = configured(context), read_site(context.node_config)
    return open_runtime(config, with_shipped(config, site, fingerprint), context.run_id)


app = app_around(provide_runtime, configured)


@app.query("backbone")
def backbone(message: Message, context: Context) -> Message:
    """Keep a part of the backbone that the server ships."""
    store = backbone_store(configured(context), read_site(context.node_config))
    if store is None:
        raise ProtocolError("this node keeps no backbones: it has no state-dir, or weights of its own")
    return Message(BackboneReceipt(store.add(BackbonePart.decode(message.content))).encode(), reply_to=message)

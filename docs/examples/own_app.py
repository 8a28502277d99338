"""HyperLoRA in your own Flower app: your data, your model, an ordinary Strategy and three message handlers.

Six shops hold handwritten digits; half of them photograph white on black, and the last shop never trains.
An example, no benchmark: the backbone was pretrained on half of these digits.
"""

from functools import cache

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits

from client_app.keeping import NothingKept
from client_app.tasks import describe_clients, evaluate_adapter, train_start
from client_app.workplace import TokenCache, Workplace
from hyperlora.config.schema import RunConfig
from hyperlora.data.digits import digits_public
from hyperlora.data.federation import ClientData, Samples
from hyperlora.messages.evaluate import EvaluateRequest
from hyperlora.messages.signature import SignatureRequest
from hyperlora.messages.train import TrainRequest
from hyperlora.task import fresh_adapter
from models.adapters.adapted_model import AdaptedModel
from models.backbones.loading import build_backbone
from strategies import HyperLoRA

CONFIG = RunConfig.parse({"federation.clients-per-round": 4, "federation.evaluate-every": 6})


class Shops:
    """Your data: client-ids, class names, and images (n, channels, side, side) uint8 with labels per client."""

    client_ids = tuple(f"shop-{number}" for number in range(6))
    class_names = tuple("0123456789")

    def load(self, client_id: str) -> ClientData:
        number = self.client_ids.index(client_id)
        digits = load_digits()
        images = torch.from_numpy(digits.images[number::6] * 15).byte().unsqueeze(1)
        images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        images, labels = (255 - images if number % 2 else images), torch.from_numpy(digits.target[number::6])
        train, validation, test = (Samples(images[part], labels[part]) for part in PARTS)
        return ClientData(client_id, "shops", number < 5, train, validation, test)


PARTS = (slice(0, 180), slice(180, 220), slice(220, None))


@cache
def workplace() -> Workplace:
    """Your model, built alike by the server and by every client; any VisionTransformer of timm will do."""
    backbone = build_backbone(name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=digits_public)
    model = AdaptedModel(backbone, rank=4, alpha=8.0, last_blocks=2)
    return Workplace(CONFIG, model, Shops(), TokenCache(model, Shops(), limit=2**28))


client_app = ClientApp()


@client_app.query("signature")
def signature(message: Message, context: Context) -> Message:
    SignatureRequest.decode(message.content)
    own = Shops.client_ids[int(context.node_config["partition-id"])]
    return Message(describe_clients(workplace(), [own]).encode(), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    request = TrainRequest.decode(message.content, fresh_adapter(CONFIG, workplace().model))
    return Message(train_start(workplace(), request, NothingKept()).encode(), reply_to=message)


@client_app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    request = EvaluateRequest.decode(message.content, fresh_adapter(CONFIG, workplace().model))
    return Message(evaluate_adapter(workplace(), request, NothingKept()).encode(), reply_to=message)


server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = HyperLoRA(workplace().model, num_classes=10, min_clients=6, config=CONFIG)
    result = strategy.start(grid, num_rounds=6)
    print(result.evaluate_metrics_clientapp[6])

"""HyperLoRA in your own Flower app: your data, your model, one Strategy and one ClientApp.

Six shops hold handwritten digits; half of them photograph white on black, and the last shop never trains.
An example, no benchmark: the backbone was pretrained on half of these digits.
"""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from sklearn.datasets import load_digits

import hyperlora as hl

CONFIG = hl.RunConfig.parse(
    {
        "federation.clients-per-round": 4,
        "federation.evaluate-every": 5,
        "train.local-steps": 20,
        "train.learning-rate": 0.01,
        "train.adapt-steps": 10,
        "train.adapt-learning-rate": 0.001,
    }
)
PARTS = (slice(0, 180), slice(180, 220), slice(220, None))


class Shops:
    """Your data: client-ids, class names, and images (n, channels, side, side) uint8 with labels per client."""

    client_ids = tuple(f"shop-{number}" for number in range(6))
    class_names = tuple("0123456789")

    def load(self, client_id: str) -> hl.ClientData:
        number = self.client_ids.index(client_id)
        digits = load_digits()
        images = torch.from_numpy(digits.images[number::6] * 15).byte().unsqueeze(1)
        images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        images, labels = (255 - images if number % 2 else images), torch.from_numpy(digits.target[number::6])
        train, validation, test = (hl.Samples(images[part], labels[part]) for part in PARTS)
        return hl.ClientData(client_id, "shops", number < 5, train, validation, test)


def model() -> hl.AdaptedModel:
    """Your model, built alike by the server and by every client; any VisionTransformer of timm will do."""
    backbone = hl.build_backbone(
        name="digits-vit", weights="", image_size=16, num_classes=10, pretraining=hl.digits_public
    )
    return hl.AdaptedModel(backbone, rank=4, alpha=8.0, last_blocks=2)


client_app = hl.make_client_app(model, Shops(), CONFIG)
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    print("waiting for 6 shops", flush=True)
    strategy = hl.HyperLoraStrategy(model(), num_classes=10, min_clients=6, config=CONFIG)
    result = strategy.start(grid, num_rounds=15, on_round=lambda made: print("round", made.server_round, flush=True))
    print(result.evaluate_metrics_clientapp[15])

"""FedAvg as Flower's PyTorch quickstart writes it, with LoRA on the backbone; it knows nothing of this project.

As there, every message builds its model and its loader, and the images of a partition are decoded as the loader asks.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import timm
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

client = ClientApp()
server = ServerApp()


def build(config: Any) -> torch.nn.Module:
    """Return the frozen backbone with a LoRA adapter on its last blocks and a trainable head."""
    model: Any = timm.create_model(str(config["model"]), img_size=int(config["image-size"]), num_classes=7)
    weights = checkpoint_filter_fn(load_file(str(config["weights"])), model)
    model.load_state_dict(weights, strict=False)
    depth = len([name for name, _ in model.named_modules() if name.startswith("blocks.") and name.count(".") == 1])
    blocks = range(depth)[-int(config["last-blocks"]) :]
    places = [f"blocks.{block}.{kind}" for block in blocks for kind in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    lora = LoraConfig(
        r=int(config["rank"]), lora_alpha=int(config["alpha"]), target_modules=places, modules_to_save=["head"]
    )
    return get_peft_model(model, lora)


def loader(config: Any, partition: int, partitions: int) -> DataLoader[Any]:
    """Return the partition's images in random order, as many as its local steps need."""
    size = (int(config["image-size"]),) * 2
    images = ImageFolder(str(config["data"]), Compose([Resize(size), ToTensor(), Normalize([0.5] * 3, [0.5] * 3)]))
    own = Subset(images, list(range(partition, len(images), partitions)))
    batch = int(config["batch"])
    chosen = RandomSampler(own, replacement=True, num_samples=batch * int(config["steps"]))
    return DataLoader(own, batch_size=batch, sampler=chosen)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train the received adapter on this partition."""
    config, node = context.run_config, context.node_config
    model = build(config)
    set_peft_model_state_dict(model, message.content.array_records["arrays"].to_torch_state_dict())
    batches = loader(config, int(node["partition-id"]), int(node["num-partitions"]))
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=float(config["learning-rate"]), weight_decay=0.0)
    began = time.perf_counter()
    for images, labels in batches:
        optimizer.zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
    metrics = MetricRecord({"seconds": time.perf_counter() - began, "num-examples": 1})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg and write when each round ended and how long its clients trained."""
    config = context.run_config
    ended: list[float] = []
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=int(config["cohort"]))
    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(build(config))),
        num_rounds=int(config["rounds"]),
        evaluate_fn=lambda server_round, arrays: ended.append(time.time()),
    )
    seconds = [one["seconds"] for _, one in sorted(result.train_metrics_clientapp.items())]
    Path(str(config["result"])).write_text(json.dumps({"ended": ended, "seconds": seconds}), encoding="utf-8")

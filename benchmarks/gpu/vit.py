"""Local training steps of a vision transformer: as a client of the product makes them, and PEFT's model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.gpu.bench import Bench, Case, Figures, training_work
from models.adapters.adapted_model import AdaptedModel
from models.adapters.optimizers import OptimizerSpec
from models.adapters.peft_files import lora_config
from models.adapters.training import LocalTrainer, TokenSet
from models.backbones.backbone import Backbone

RANK, CLASSES, RATE = 16, 10, 1e-3
NAME, SIDE, BATCHES = "vit_base_patch16_224", 224, (16, 64, 128)
TINY_NAME, TINY_SIDE, TINY_BATCHES = "test_vit", 32, (2,)


def cases(bench: Bench) -> Iterator[Case]:
    """Yield steps of every batch size and precision, the product's and then PEFT's."""
    side = TINY_SIDE if bench.tiny else SIDE
    whole = random_backbone(bench, side)
    for precision in ("bfloat16", "float32"):
        for batch in TINY_BATCHES if bench.tiny else BATCHES:
            for who, steps in {"product": product_steps, "PEFT alone": plain_steps}.items():
                yield (
                    f"{who}, batch {batch}, {precision}",
                    partial(_measured, bench, whole, steps, batch, precision, side),
                )


def _measured(
    bench: Bench, whole: Backbone, steps: Callable[..., Any], batch: int, precision: str, side: int
) -> Figures:
    backbone = replace(whole, module=copy.deepcopy(whole.module))
    made, network = steps(bench, backbone, batch, precision, side)
    tokens = backbone.num_tokens
    work = training_work(
        network,
        rows=batch * tokens,
        head_rows=batch,
        length=tokens,
        width=backbone.embed_dim,
        blocks=backbone.num_blocks,
    )
    return bench.step_figures(made, work=work, items=batch, unit="samples/s")


def product_steps(
    bench: Bench, backbone: Backbone, batch: int, precision: str, side: int
) -> tuple[Callable[[int], object], nn.Module]:
    """Return what makes steps as a client does, its tokens in the computer's own memory, and the network."""
    model = AdaptedModel(backbone, rank=RANK, alpha=2.0 * RANK, last_blocks=backbone.num_blocks)
    model.to(bench.device, half=precision == "bfloat16")
    images, labels = random_samples(2 * batch, side)
    samples = TokenSet(model.embed(backbone.prepare(images)).cpu(), labels)
    optimizer = OptimizerSpec("adamw", RATE, 0.0)
    trainer = LocalTrainer(model, samples, optimizer=optimizer, batch_size=batch, seed=0)
    return trainer.run, model.network


def plain_steps(
    bench: Bench, backbone: Backbone, batch: int, precision: str, side: int
) -> tuple[Callable[[int], object], nn.Module]:
    """Return what makes steps in the shortest loop that there is, one batch on the device all the time."""
    from peft import get_peft_model

    config = lora_config(backbone, rank=RANK, alpha=2.0 * RANK, last_blocks=backbone.num_blocks, rslora=False)
    model = get_peft_model(backbone.module, config).to(bench.device)
    images, labels = random_samples(batch, side)
    inputs, labels = backbone.prepare(images).to(bench.device), labels.to(bench.device)
    half = precision == "bfloat16"

    def loss() -> torch.Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            logits = model(inputs)
        return F.cross_entropy(logits.float(), labels)

    return plain_loop(model, loss), model


def plain_loop(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[int], object]:
    """Return a loop of AdamW on what of ``model`` is trained."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=RATE, fused=True)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss())
            optimizer.step()

    return run


def random_samples(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of noise (n, 3, side, side) uint8 and labels (n,)."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=chance, dtype=torch.uint8)
    return images, torch.randint(0, CLASSES, (count,), generator=chance)


def random_weights(scratch: Path, name: str, side: int) -> Path:
    """Return a file with weights of a timm model drawn at random, which take as long to compute with as others."""
    import timm
    from safetensors.torch import save_file

    path = scratch / f"{name}.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            save_file(timm.create_model(name, pretrained=False, num_classes=0, img_size=side).state_dict(), path)
    return path


def random_backbone(bench: Bench, side: int) -> Backbone:
    """Return the vision transformer of this size with random weights and a head of zeros."""
    from models.backbones.loading import build_backbone

    name = TINY_NAME if bench.tiny else NAME
    weights = str(random_weights(bench.scratch, name, side))
    return build_backbone(name=name, weights=weights, image_size=side, num_classes=CLASSES)

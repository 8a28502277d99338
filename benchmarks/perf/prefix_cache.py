"""Local training with the frozen prefix kept (``client_app.token_cache.TokenCache``) and computed every time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.perf.measure import Comparison, in_turns
from models.adapters.adapted_model import AdaptedModel
from models.adapters.adapter import Adapter
from models.adapters.optimizers import OptimizerSpec
from models.adapters.training import LocalTrainer, TokenSet
from models.backbones.loading import build_backbone

NAME, IMAGE_SIZE, CLASSES, SAMPLES, STEPS, BATCH, LAST_BLOCKS = "deit_tiny_patch16_224", 96, 7, 64, 5, 16, 4
TOLERANCE = 1e-5


@dataclass(frozen=True)
class _Prefix:
    """Tokens that are computed whenever they are asked for."""

    model: AdaptedModel
    images: Tensor

    @torch.no_grad()
    def __getitem__(self, batch: Any) -> Tensor:
        prepared = self.model.backbone.prepare(self.images[batch])
        return self.model.embed(prepared)


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the comparison of one client's local training; the tokens are kept from an earlier round.

    Raises:
        ValueError: the two do not train the same adapter.
    """
    model = _model()
    images = torch.randint(0, 256, (SAMPLES, 3, IMAGE_SIZE, IMAGE_SIZE), generator=_chance(), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=_chance())
    computed = TokenSet(cast(Tensor, _Prefix(model, images)), labels)
    kept = TokenSet(computed.tokens[torch.arange(SAMPLES)], labels)
    without, within = (_trained(model, one).tensors() for one in (computed, kept))
    difference = max(float((without[name] - within[name]).abs().max()) for name in without)
    if difference > TOLERANCE:
        raise ValueError(f"the adapters trained with and without kept tokens differ by {difference:g}")
    seconds = in_turns({"without": lambda: _trained(model, computed), "with": lambda: _trained(model, kept)}, repeats)
    case = f"{STEPS} local steps, DeiT-tiny, {IMAGE_SIZE} px, LoRA on 4 of 12 blocks, tokens kept"
    reference = f"prefix computed every step (adapters differ by {difference:.0e})"
    ratio = seconds["without"] / seconds["with"]
    yield Comparison(
        "prefix_cache", case, reference, seconds["without"], seconds["with"], "s", ratio, "at least 2", repeats
    )


def _trained(model: AdaptedModel, samples: TokenSet) -> Adapter:
    model.load(model.initialise(0))
    LocalTrainer(model, samples, optimizer=OptimizerSpec("adamw", 1e-3, 0.0), batch_size=BATCH, seed=0).run(STEPS)
    return model.extract()


def _model() -> AdaptedModel:
    """Return DeiT-tiny with weights drawn at random, which take as long to compute with as trained ones."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        path = Path(folder) / "random.safetensors"
        save_file(timm.create_model(NAME, pretrained=False).state_dict(), path)
        backbone = build_backbone(name=NAME, weights=str(path), image_size=IMAGE_SIZE, num_classes=CLASSES)
    return AdaptedModel(backbone, rank=4, alpha=8.0, last_blocks=LAST_BLOCKS)


def _chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)

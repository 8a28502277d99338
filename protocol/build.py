"""What server and clients must build alike from one configuration: the backbone with its adapter, and the data."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from data.catalog import data_set_info
from data.digits import digits_public
from data.federation import Federation, open_federation
from protocol.config import DataConfig, LoraConfig, ModelConfig

if TYPE_CHECKING:
    from models.adapted_model import AdaptedModel


def build_model(data: DataConfig, model: ModelConfig, lora: LoraConfig) -> AdaptedModel:
    """Build the frozen backbone and put LoRA modules and a head for the data set's classes on it.

    Raises:
        BackboneError, AdapterError: the configuration asks for what the backbone cannot do.
    """
    from models.adapted_model import AdaptedModel  # brings PEFT and transformers, slow to import
    from models.backbone_loading import build_backbone  # brings timm

    backbone = build_backbone(
        name=model.name,
        weights=model.weights,
        image_size=model.image_size,
        num_classes=len(data_set_info(data.name).class_names),
        pretraining=digits_public,
    )
    return AdaptedModel(backbone, rank=lora.rank, alpha=lora.alpha, last_blocks=lora.last_blocks)


def build_federation(data: DataConfig, *, image_size: int, seed: int) -> Federation:
    """Open the data set and divide it among its clients, the same way in every process.

    Raises:
        DataError: the data are not there or cannot be divided as asked.
    """
    return open_federation(
        name=data.name,
        path=data.path,
        seed=seed,
        clients_per_domain=data.clients_per_domain,
        dirichlet_alpha=data.dirichlet_alpha,
        unseen_fraction=data.unseen_fraction,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        image_size=image_size,
    )


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all ``parts`` and on nothing else (no process, no machine)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

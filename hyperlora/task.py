"""What server and clients must build alike from one configuration: the backbone with its adapter, and the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hyperlora.config.lora import LoraConfig
from hyperlora.config.settings import DataConfig, ModelConfig
from hyperlora.data.federation import DataSetInfo, Division, Federation
from hyperlora.data.listing import Origin
from hyperlora.data.opening import OWN_DATA, describe_data, open_federation

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel
    from models.backbones.backbone import Backbone

log = logging.getLogger(__name__)


def build_model(
    data: DataConfig, model: ModelConfig, lora: LoraConfig, class_names: Sequence[str] = ()
) -> AdaptedModel:
    """Build the frozen backbone and put LoRA modules and a head for the data set's classes on it.

    Raises:
        BackboneError, AdapterError: the configuration asks for what the backbone cannot do.
        DataError: the classes have to be read from the data, and cannot.
    """
    from models.adapters.adapted_model import AdaptedModel  # brings PEFT and transformers, slow to import

    backbone = _backbone(data, model, class_names)
    return AdaptedModel(
        backbone,
        rank=lora.rank,
        alpha=lora.alpha,
        last_blocks=lora.last_blocks,
        rslora=lora.rslora,
        kind=lora.adapter,
        active=lora.active,
    )


def backbone_file(data: DataConfig, model: ModelConfig) -> bytes:
    """Return the frozen backbone without its head as a safetensors file, to be shipped.

    Raises:
        BackboneError, DataError: as :func:`build_model`.
    """
    from models.backbones.weights import weights_bytes

    return weights_bytes(_backbone(data, model).module)


def _backbone(data: DataConfig, model: ModelConfig, class_names: Sequence[str] = ()) -> Backbone:
    from hyperlora.data.digits import digits_public
    from models.backbones.loading import build_backbone  # brings timm

    class_names = tuple(class_names) or data_set_info(data).class_names
    return build_backbone(
        name=model.name,
        weights=model.weights,
        image_size=model.image_size,
        num_classes=len(class_names),
        max_length=model.max_length,
        class_names=class_names,
        prompt=model.prompt,
        revision=model.revision,
        pretraining=digits_public,
        text_tower=model.text_tower,
    )


def build_federation(data: DataConfig, *, image_size: int, seed: int) -> Federation:
    """Open the data set and divide it among its clients, the same way in every process.

    Raises:
        DataError: the data are not there or cannot be divided as asked.
    """
    division = Division(
        seed=seed,
        clients_per_domain=data.clients_per_domain,
        dirichlet_alpha=data.dirichlet_alpha,
        unseen_fraction=data.unseen_fraction,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        partition=data.partition,
        classes_per_client=data.classes_per_client,
        max_samples=data.max_samples,
        split=data.split,
    )
    return open_federation(data.name, _origin(data, image_size), division)


def data_set_info(data: DataConfig) -> DataSetInfo:
    """Return the domains and classes of the data; reads them where they are not in the catalogue.

    Raises:
        DataError: the data have to be read, and cannot.
    """
    return describe_data(data.name, _origin(data, image_size=1))


def expected_clients(data: DataConfig, *, training: bool = False) -> int:
    """Return how many clients a simulation divides the data over, or how many of them train."""
    domains, clients = len(data_set_info(data).domains), data.clients_per_domain
    if data.partition == "natural":
        domains, clients = 1, domains
    return domains * (clients - round(data.unseen_fraction * clients) if training else clients)


def cohort_size(data: DataConfig, wanted: int) -> int:
    """Return how many clients a round has: ``wanted``, or all that train where own data make fewer of them."""
    training = expected_clients(data, training=True)
    if data.name not in OWN_DATA or training >= wanted or not training:
        return wanted
    log.warning("federation.clients-per-round is %d, but the data make %d clients that train", wanted, training)
    return training


def _origin(data: DataConfig, image_size: int) -> Origin:
    classes = tuple(name.strip() for name in data.classes.split(",") if name.strip())
    columns = (data.text_column, data.label_column, data.domain_column)
    return Origin(data.path, image_size, classes, *columns, data.first_classes, data.revision)

"""A client's samples behind the frozen prefix of the backbone, computed once and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from client_app.embedding_cache import EmbeddingCache
from client_app.site_store import SiteStore, cache_key, digest_of
from hyperlora.config.settings import SignatureConfig
from hyperlora.data.federation import Federation, Samples
from models.adapters.training import TokenSet
from models.backbones.backbone import Backbone, Inputs
from models.personalization.signature import Signature

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

PREFIX_BATCH = 64


class TokenCache:
    """Samples behind the frozen prefix of the backbone, kept until ``limit`` bytes are exceeded (oldest go first).

    With a ``disk`` of the site, or with what the machine has ``embedded`` before, they are read from there and written
    there too, save where ``limit`` is 0.
    """

    def __init__(
        self,
        model: AdaptedModel,
        federation: Federation,
        limit: int,
        disk: SiteStore | None = None,
        embedded: EmbeddingCache | None = None,
    ) -> None:
        self._model, self._federation, self._limit, self.disk = model, federation, limit, disk
        self._embedded = embedded
        self._kept: OrderedDict[tuple[str, str], TokenSet] = OrderedDict()
        self.signatures: dict[tuple[str, SignatureConfig, tuple[float, ...]], Signature] = {}

    def get(self, client_id: str, split: str) -> TokenSet:
        """Return one split (train, validation or test) of a client, computed at the first call."""
        place = (client_id, split)
        if place not in self._kept:
            self._kept[place] = self._find(split, getattr(self._federation.load(client_id), split))
            self._evict()
        self._kept.move_to_end(place)
        return self._kept[place]

    def key(self, samples: Samples, *settings: object) -> str:
        """Return what anything computed from ``samples`` with the frozen backbone is kept under.

        A transform counts with its repr: the length that texts are cut to, the size of images.
        """
        backbone = self._model.backbone
        shape = (backbone.name, backbone.num_heads, backbone.num_tokens, repr(backbone.transform))
        return cache_key(digest_of(samples), backbone.fingerprint, shape, self._model.first_block, *settings)

    def _find(self, split: str, samples: Samples) -> TokenSet:
        if not len(samples) or not self._limit:
            return self._embed(samples)
        if self.disk is not None:
            return self.disk.cached(f"tokens-{split}", self.key(samples), lambda: self._embed(samples))
        if self._embedded is not None:
            weight = next(self._model.backbone.module.parameters())
            key = self.key(samples, weight.dtype, weight.device.type, torch.__version__)
            return self._embedded.cached(key, lambda: self._embed(samples))
        return self._embed(samples)

    @torch.no_grad()
    def _embed(self, samples: Samples) -> TokenSet:
        if not len(samples):
            return TokenSet(torch.empty(0), samples.labels)
        backbone = self._model.backbone
        parts, targets = [], []
        for inputs, labels in zip(
            input_batches(backbone, samples.inputs), torch.split(samples.labels, PREFIX_BATCH), strict=True
        ):
            parts.append(self._model.embed(inputs).cpu())
            targets.append(backbone.targets(inputs, labels))
        return TokenSet(torch.cat(parts), torch.cat(targets))

    def _evict(self) -> None:
        size = sum(one.tokens.nbytes for one in self._kept.values())
        while size > self._limit and len(self._kept) > 1:
            size -= self._kept.popitem(last=False)[1].tokens.nbytes


def input_batches(backbone: Backbone, inputs: Inputs) -> Iterator[torch.Tensor]:
    """Yield transformed batches: images are normalised one batch at a time, texts padded to one length for all."""
    if isinstance(inputs, torch.Tensor):
        yield from (backbone.prepare(images) for images in torch.split(inputs, PREFIX_BATCH))
    else:
        yield from torch.split(backbone.prepare(inputs), PREFIX_BATCH)

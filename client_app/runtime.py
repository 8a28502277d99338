"""What a client process keeps between messages: the backbone, the data and the frozen prefix's output.

In simulation one process works for many clients, so everything here is either common to all of them (backbone) or
kept under a client's name (data, tokens). In deployment a process serves one message and the caches start empty; a
site with a ``state-dir`` then finds them on its disk.
"""

from __future__ import annotations

import functools
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from client_app.embedding_cache import EmbeddingCache, open_embedding_cache
from client_app.release_ledger import ReleaseLedger, open_ledger
from client_app.site import Site, federation_of
from client_app.site_store import SiteStore, cache_key, digest_of
from hyperlora.config.methods import find_method
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.config.settings import DataConfig, LoraConfig, ModelConfig, SignatureConfig
from hyperlora.data.federation import ClientData, DataError, Federation, Samples
from hyperlora.noise import Draw, secret_noise, simulated_noise
from hyperlora.seeds import derive_seed
from hyperlora.task import build_federation, build_model
from models.adapters.adapter import Adapter
from models.adapters.training import TokenSet
from models.backbones.backbone import Backbone, Inputs
from models.personalization.prior import add_prior
from models.personalization.signature import Signature, class_frequencies, compute_signature, private_signature
from strategies.methods.base.client import ClientHalf

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel
    from models.backbones.backbone import Backbone

PREFIX_BATCH = 64
UNTOLD_EXAMPLES = 100
"""What every client tells in place of its number of samples where that stays with it; smoothing is of this size too."""
LEAST_SHARED_WORK = 50_000_000
log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class ClientRuntime:
    """The backbone with its adapter, the data and the tokens of one process, under one run's configuration.

    ``at_site`` has no default: noise that a seed repeats is for simulations alone. ``ledger`` counts what a site
    releases in the run ``run_id``.
    """

    config: RunConfig
    model: AdaptedModel
    federation: Federation
    cache: TokenCache
    at_site: bool
    ledger: ReleaseLedger | None = None
    run_id: int = 0

    def client(self, client_id: str) -> ClientData:
        """Return the data of a client; raises DataError where it has none."""
        return self.federation.load(client_id)

    def tokens(self, client_id: str, split: str) -> TokenSet:
        """Return one split (train, validation or test) behind the frozen prefix."""
        return self.cache.get(client_id, split)

    def frequencies(self, client_id: str) -> torch.Tensor:
        """Return the smoothed class frequencies of the client's training samples, shape (classes,)."""
        labels, smoothing = self.client(client_id).train.labels, self.config.signature.smoothing
        return class_frequencies(labels, len(self.federation.class_names), smoothing)

    def signature(self, client_id: str) -> Signature:
        """Describe the client's training samples with the frozen backbone; computed once per client and kept."""
        place = (client_id, self.config.signature, self._noise_of_signature)
        if place not in self.cache.signatures:
            self.cache.signatures[place] = self._recall(client_id)
        return self.cache.signatures[place]

    def told_examples(self, client_id: str) -> int:
        """Return the number of training samples that a client tells; the same for all where it is kept back."""
        return UNTOLD_EXAMPLES if self.config.privacy.keeps_counts else len(self.client(client_id).train)

    def with_prior(self, client_id: str, adapter: Adapter) -> Adapter:
        """Return the adapter as the client uses it: with its own class prior in the bias of the head."""
        return add_prior(adapter, self.frequencies(client_id), self.config.prior_strength)

    @functools.cached_property
    def client_half(self) -> ClientHalf:
        """What the clients of the run's method do with the adapters they are sent."""
        module = find_method(self.config.method).load("client")
        half: ClientHalf = ClientHalf() if module is None else module.build(self.config)
        return half

    def keep_adapter(self, adapter: Adapter) -> None:
        """Leave ``adapter`` on the site's disk as a PEFT directory, if the site has a ``state-dir``."""
        if self.cache.disk is not None:
            self.cache.disk.keep_adapter(lambda directory: self.model.save(adapter, directory))

    def noise(self, *purpose: str | int) -> Draw:
        """Return where noise comes from: the operating system at a site, in a simulation the run's seed and purpose."""
        if self.at_site:
            return secret_noise
        return simulated_noise(derive_seed(self.config.seed, "noise", *purpose))

    def _require_memory(self) -> None:
        """Raise ConfigError at a site that would draw new noise for every message, which averaging takes off."""
        if self.at_site and self.config.privacy.signature_noise:
            raise ConfigError(
                "privacy.signature-noise needs a 'state-dir' in the node config: noise is drawn once only"
            )

    def _recall(self, client_id: str) -> Signature:
        if self.cache.disk is None:
            self._require_memory()
            return self._describe(client_id)
        train, noise = self.client(client_id).train, self._noise_of_signature
        if not noise:
            key = self.cache.key(train, self.config.signature)
            return self.cache.disk.cached("signature", key, lambda: self._describe(client_id))
        classes, backbone = len(self.federation.class_names), self.model.backbone.fingerprint
        key = cache_key(digest_of(train), backbone, classes, self.config.signature, noise)
        return self.cache.disk.cached(f"signature-{key}", key, lambda: self._released(client_id), release=True)

    def _released(self, client_id: str) -> Signature:
        """Count a new noised signature at the site, then make it."""
        if self.ledger is not None:
            self.ledger.reserve("signature", self.config.privacy.signature_noise, self.run_id)
        return self._describe(client_id)

    @property
    def _noise_of_signature(self) -> tuple[float, ...]:
        """What of ``privacy`` a signature is made with; nothing else may draw its noise anew. Empty without noise."""
        own = self.config.privacy
        return (own.signature_noise, own.signature_clip, float(own.keeps_counts)) if own.signature_noise else ()

    def _describe(self, client_id: str) -> Signature:
        train = self.tokens(client_id, "train")
        tokens = train.tokens[: self.config.signature.max_samples]
        parts = torch.split(tokens, PREFIX_BATCH)
        features = [self.model.frozen_features(part.to(self.model.device)) for part in parts]
        labels, privacy = self.client(client_id).train.labels, self.config.privacy
        classes, smoothing = len(self.federation.class_names), self.config.signature.smoothing
        if not privacy.signature_noise:
            return compute_signature(torch.cat(features).cpu(), labels, num_classes=classes, smoothing=smoothing)
        try:
            return private_signature(
                torch.cat(features).cpu(),
                labels,
                num_classes=classes,
                smoothing=smoothing,
                clip=privacy.signature_clip,
                noise=privacy.signature_noise,
                draw=self.noise(client_id, "signature"),
                told_examples=self.told_examples(client_id),
            )
        except ValueError as error:
            raise DataError(f"client '{client_id}' takes no part: {error}") from error


def input_batches(backbone: Backbone, inputs: Inputs) -> Iterator[torch.Tensor]:
    """Yield transformed batches: images are normalised one batch at a time, texts padded to one length for all."""
    if isinstance(inputs, torch.Tensor):
        yield from (backbone.prepare(images) for images in torch.split(inputs, PREFIX_BATCH))
    else:
        yield from torch.split(backbone.prepare(inputs), PREFIX_BATCH)


def open_runtime(config: RunConfig, site: Site | None = None, run_id: int = 0) -> ClientRuntime:
    """Return this process's runtime, at ``site`` or in a simulation; what does not depend on the method is kept.

    Args:
        config: the run's.
        site: where the process is; None in a simulation.
        run_id: Flower's id of the run, for the site's ledger.
    """
    config = site.settings(config) if site else config
    train = config.train
    megabytes = (train.prefix_cache_mb, train.embedding_cache_mb)
    parts = _open_parts(config.data, config.model, config.lora, config.seed, train.device, megabytes, site)
    torch.set_num_threads(worthwhile_threads(parts[0].backbone, config.train.batch_size))
    return ClientRuntime(config, *parts, at_site=site is not None, ledger=open_ledger(site), run_id=run_id)


@functools.lru_cache(maxsize=2)
def _open_parts(
    data: DataConfig,
    model: ModelConfig,
    lora: LoraConfig,
    seed: int,
    device: str,
    megabytes: tuple[int, int],
    site: Site | None,
) -> tuple[AdaptedModel, Federation, TokenCache]:
    adapted = _open_model(data, model, lora, device)
    federation = federation_of(site, build_federation(data, image_size=model.image_size, seed=seed))
    disk = SiteStore(Path(site.state_dir), site.client_id) if site and site.state_dir else None
    in_memory, on_disk = megabytes
    embedded = None if site else open_embedding_cache(on_disk)
    return adapted, federation, TokenCache(adapted, federation, in_memory * 2**20, disk, embedded)


@functools.lru_cache(maxsize=2)
def _open_model(data: DataConfig, model: ModelConfig, lora: LoraConfig, device: str) -> AdaptedModel:
    adapted = build_model(data, model, lora)
    adapted.to(choose_device(device))
    log.info("clients of this process train on %s with up to %d thread(s)", adapted.device, available_threads())
    return adapted


def available_threads() -> int:
    """Return the cores this process has to itself: Ray's share in a simulation, else all that it may run on."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdigit() and int(share) > 0 else len(os.sched_getaffinity(0))


def worthwhile_threads(backbone: Backbone, batch_size: int) -> int:
    """Return the threads to train with: all that there are, or one where products are too small to be shared."""
    return available_threads() if backbone.matmul_work(batch_size) >= LEAST_SHARED_WORK else 1


def choose_device(wanted: str) -> torch.device:
    """Return the device to train on.

    Raises:
        ConfigError: ``cuda`` is wanted and this process is given no GPU.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "train.device is 'cuda', but no GPU is visible to this client "
            "(in a simulation set --gpus-per-client above 0)"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)

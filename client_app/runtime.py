"""What a client process keeps between messages: the backbone, the data and the tokens of its clients.

In simulation one process works for many clients, so everything here is either common to all of them (backbone) or
kept under a client's name (data, tokens). In deployment a process serves one message and the caches start empty; a
site with a ``state-dir`` then finds them on its disk.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from client_app.device import available_threads, choose_device, worthwhile_threads
from client_app.embedding_cache import open_embedding_cache
from client_app.release_ledger import ReleaseLedger, open_ledger
from client_app.site import Site, federation_of
from client_app.site_store import SiteStore, cache_key, digest_of
from client_app.token_cache import PREFIX_BATCH, TokenCache
from hyperlora.config.lora import LoraConfig
from hyperlora.config.methods import find_method
from hyperlora.config.schema import ConfigError, RunConfig
from hyperlora.config.settings import DataConfig, ModelConfig
from hyperlora.data.federation import ClientData, DataError, Federation
from hyperlora.noise import Draw, secret_noise, simulated_noise
from hyperlora.seeds import derive_seed
from hyperlora.task import build_federation, build_model
from models.adapters.adapter import Adapter
from models.adapters.training import TokenSet
from models.personalization.prior import add_prior
from models.personalization.signature import Signature, class_frequencies, compute_signature, private_signature
from strategies.methods.base.client import ClientHalf

if TYPE_CHECKING:
    from models.adapters.adapted_model import AdaptedModel

HIDDEN_EXAMPLES = 100
"""Sample count that every client reports if it keeps the true one private; frequencies are smoothed as for so many."""
log = logging.getLogger(__name__)


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

    def reported_examples(self, client_id: str) -> int:
        """Return the number of training samples that a client tells; the same for all where it is kept back."""
        return HIDDEN_EXAMPLES if self.config.privacy.keeps_counts else len(self.client(client_id).train)

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
        """Leave ``adapter`` on the site's disk as a PEFT directory, if the site has a ``state-dir`` and PEFT a form."""
        if self.cache.disk is not None and self.config.lora.has_peft_form:
            self.cache.disk.keep_adapter(lambda directory: self.model.save(adapter, directory))

    def noise(self, *purpose: str | int) -> Draw:
        """Return where noise comes from: the operating system at a site, in a simulation the run's seed and purpose."""
        if self.at_site:
            return secret_noise
        return simulated_noise(derive_seed(self.config.seed, "noise", *purpose))

    def _require_memory(self) -> None:
        """Raise ConfigError at a site without a state-dir: new noise in every message could be averaged away."""
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
        """The privacy settings a signature depends on: only a change of these draws new noise. Empty without noise."""
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
                reported_examples=self.reported_examples(client_id),
            )
        except ValueError as error:
            raise DataError(f"client '{client_id}' takes no part: {error}") from error


def open_runtime(config: RunConfig, site: Site | None = None, run_id: int = 0) -> ClientRuntime:
    """Return this process's runtime, at ``site`` or in a simulation; what does not depend on the method is kept.

    Args:
        config: the run's.
        site: where the process is; None in a simulation.
        run_id: Flower's id of the run, for the site's ledger.
    """
    config = site.settings(config) if site else config
    train = config.train
    megabytes, computing = (train.prefix_cache_mb, train.embedding_cache_mb), (train.device, train.precision)
    parts = _open_parts(config.data, config.model, config.lora, config.seed, computing, megabytes, site)
    torch.set_num_threads(worthwhile_threads(parts[0].backbone, config.train.batch_size))
    return ClientRuntime(config, *parts, at_site=site is not None, ledger=open_ledger(site), run_id=run_id)


@functools.lru_cache(maxsize=2)
def _open_parts(
    data: DataConfig,
    model: ModelConfig,
    lora: LoraConfig,
    seed: int,
    computing: tuple[str, str],
    megabytes: tuple[int, int],
    site: Site | None,
) -> tuple[AdaptedModel, Federation, TokenCache]:
    adapted = _open_model(data, model, lora, *computing)
    federation = federation_of(site, build_federation(data, image_size=model.image_size, seed=seed))
    disk = SiteStore(Path(site.state_dir), site.client_id) if site and site.state_dir else None
    in_memory, on_disk = megabytes
    embedded = None if site else open_embedding_cache(on_disk)
    return adapted, federation, TokenCache(adapted, federation, in_memory * 2**20, disk, embedded)


@functools.lru_cache(maxsize=2)
def _open_model(data: DataConfig, model: ModelConfig, lora: LoraConfig, device: str, precision: str) -> AdaptedModel:
    adapted = build_model(data, model, lora)
    adapted.to(choose_device(device), half=precision == "bfloat16")
    log.info("clients of this process train on %s with up to %d thread(s)", adapted.device, available_threads())
    return adapted

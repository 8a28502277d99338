"""The sections of settings that every run has; those of a method are in its own ``config.py``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from hyperlora.config.methods import METHODS, find_method
from hyperlora.config.section import ConfigError, Fraction, PositiveInt, Rule, Section, StepList, key, names_out_of

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig

DataName = Literal[
    "digits", "folder", "csv", "jsonl", "parquet", "instructions",
    "pacs", "office-home", "domainnet", "nico++", "cifar100", "fdu-mtl",
]  # fmt: skip
WireDtype = Literal["float32", "float16", "int8", "int4"]
WIRE_DTYPES: tuple[WireDtype, ...] = get_args(WireDtype)
SINKS = ("tensorboard", "wandb", "mlflow")

Prompt = Annotated[str, Rule(lambda value: value.count("{}") == 1, "a text with one {} in it")]
Commit = Annotated[
    str,
    Rule(lambda value: bool(re.fullmatch("([0-9a-f]{40})?", value)), "the 40 hexadecimal digits of a commit, or empty"),
]
SinkList = Annotated[str, names_out_of(SINKS, instead="auto")]
StepsOrSame = Annotated[int, Field(ge=-1)]


class DataConfig(Section):
    """Which data the clients hold and how a simulation divides it."""

    name: DataName = key("digits", "built-in digits, a format of your own data (folder, csv, ...) or a public data set")
    path: str = key(
        "", "absolute path of your own data or of a local copy; empty downloads a public data set from the hub"
    )
    revision: Commit = key(
        "", "commit of a data set's repository on the hub; empty takes the commit pinned here, if there is one"
    )
    classes: str = key("", "names of the classes, separated by commas; empty takes all classes found in the data")
    first_classes: NonNegativeInt = key(0, "number of classes to use, those with the lowest labels; 0 uses all")
    text_column: str = key("text", "table column with the texts")
    label_column: str = key("label", "table column with the class labels")
    domain_column: str = key("domain", "table column with the domains; optional")
    partition: Literal["dirichlet", "iid", "pathological", "natural"] = key(
        "dirichlet", "how a domain's samples are divided over clients"
    )
    split: Literal["hash", "official"] = key(
        "hash",
        "how a client's test samples are chosen: by a hash of each sample (hash), or from the data set's own test split"
        " (official)",
    )
    classes_per_client: PositiveInt = key(2, "classes per client if data.partition is pathological")
    max_samples: NonNegativeInt = key(0, "maximum number of samples per client, the rest is ignored; 0 sets no limit")
    clients_per_domain: PositiveInt = key(5, "number of clients that each domain is divided among")
    dirichlet_alpha: NonNegativeFloat = key(
        0.5, "concentration of the Dirichlet label skew within a domain; 0 divides evenly"
    )
    unseen_fraction: Fraction = key(0.2, "share of each domain's clients that never train")
    validation_fraction: Fraction = key(0.15, "share of a client's samples held out for validation")
    test_fraction: Fraction = key(0.25, "share of a client's samples held out for its own test")


class ModelConfig(Section):
    """The frozen backbone that all parties share."""

    name: str = key("digits-vit", "digits-vit (embedded), a timm model, or hf: and a hub name or absolute directory")
    weights: str = key("", "absolute path of a safetensors file or, for hf:, a directory; empty takes the model's own")
    revision: Commit = key("", "commit of the weights' repository on the hub; empty takes the newest")
    image_size: PositiveInt = key(16, "side of square images in pixels")
    max_length: PositiveInt = key(128, "most tokens of a text; longer ones are truncated")
    prompt: Prompt = key("a photo of a {}.", "text of a class for CLIP, {} is its name")
    text_tower: bool = key(False, "also adapt the text tower of CLIP or SigLIP, and let it compute the head")
    ship: bool = key(
        False, "send the backbone's weights once to every site with a state-dir; for digits-vit and timm models"
    )

    def check(self, config: RunConfig) -> None:
        """Refuse to send a model that is a directory."""
        if self.ship and self.name.startswith("hf:"):
            raise ConfigError(
                "model.ship sends a single safetensors file, but a transformers model has a directory: "
                "copy it to the sites and set 'weights' in their node config"
            )


class TrainConfig(Section):
    """Local training: steps and optimiser in training rounds, and for a client's own fine-tuning afterwards."""

    local_steps: NonNegativeInt = key(10, "optimiser steps K a client makes per round")
    batch_size: PositiveInt = key(16, "samples per local step")
    optimizer: Literal["adamw", "sgd", "lora+", "lora-pro", "altlora"] = key("adamw", "local optimiser")
    lora_plus_ratio: Annotated[float, Field(ge=1)] = key(
        16.0, "learning rate of lora_B over that of lora_A where train.optimizer is lora+"
    )
    learning_rate: PositiveFloat = key(3e-3, "local learning rate")
    adapt_steps: StepsOrSame = key(
        -1, "local steps with which a client fine-tunes the adapter it received for use; -1 takes train.local-steps"
    )
    adapt_learning_rate: NonNegativeFloat = key(
        0.0, "learning rate of the train.adapt-steps; 0 takes train.learning-rate"
    )
    weight_decay: NonNegativeFloat = key(0.0, "local weight decay")
    prefix_cache_mb: NonNegativeInt = key(
        1024, "maximum MiB of activations of the frozen blocks that a client process keeps in memory"
    )
    embedding_cache_mb: NonNegativeInt = key(
        4096, "maximum MiB of these activations that a simulation keeps on disk for later runs; 0 keeps none"
    )
    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "auto, cpu or cuda; cuda fails where no GPU is given to the client"
    )
    precision: Literal["float32", "bfloat16"] = key(
        "float32", "precision of matrix products in local training and evaluation; weights and messages stay float32"
    )

    @property
    def steps_of_use(self) -> int:
        """Optimiser steps of a client that adapts an adapter to use it."""
        return self.local_steps if self.adapt_steps < 0 else self.adapt_steps

    @property
    def rate_of_use(self) -> float:
        """Learning rate of a client that adapts an adapter to use it."""
        return self.adapt_learning_rate or self.learning_rate


class PriorConfig(Section):
    """The class prior of a client in the bias of its head."""

    use: Literal["method", "on", "off"] = key(
        "method", "whether clients add their class prior to the head's bias: on, off, or as the method says (method)"
    )
    gamma: NonNegativeFloat = key(1.0, "weight of the log class frequencies in the head's bias")


class SignatureConfig(Section):
    """The signature: summary statistics that a client sends of its data."""

    max_samples: PositiveInt = key(512, "maximum number of training samples that a signature is computed from")
    smoothing: PositiveFloat = key(1.0, "pseudo-count added to every class frequency")


class FederationConfig(Section):
    """Rounds, cohorts and deadlines."""

    rounds: PositiveInt = key(30, "training rounds")
    clients_per_round: PositiveInt = key(8, "clients in the cohort of a round")
    domain_rounds: NonNegativeInt = key(
        0, "rounds in a row in which only one domain's clients train, then the next one's; 0 samples from all domains"
    )
    evaluate_every: PositiveInt = key(5, "rounds between evaluations; the last round is always evaluated")
    evaluate_clients: NonNegativeInt = key(
        0, "clients sampled for each evaluation; the last one always covers all clients, and with 0 every one does"
    )
    evaluate_steps: StepList = key(
        "",
        "numbers of local steps after which clients are scored, as 0,1,5; 0 and train.adapt-steps are always included",
    )
    allowed_clients: str = key(
        "", "absolute path, at the server, of the list of clients and their node keys; empty admits every node"
    )
    clients_per_node: PositiveInt = key(
        1, "most clients that one SuperNode may speak for; the nodes of a simulation host any number"
    )
    min_clients: NonNegativeInt = key(0, "clients to wait for before round 1; 0 means all that the data set defines")
    min_replies: PositiveInt = key(1, "minimum number of usable replies; a round with fewer changes nothing")
    replies_per_round: NonNegativeInt = key(
        0,
        "replies after which a round ends (FedBuff); later replies count in a later round, with less weight the later"
        " they are; 0 waits for all clients",
    )
    join_timeout: PositiveFloat = key(
        120.0, "seconds to wait for federation.min-clients, and later if no training client is connected"
    )
    round_timeout: PositiveFloat = key(600.0, "seconds after which a missing reply is given up")

    def check(self, config: RunConfig) -> None:
        """Refuse to need more replies than clients are asked, and late ones where the method cannot use them."""
        if self.min_replies > self.clients_per_round:
            raise ConfigError(
                f"federation.min-replies is {self.min_replies}, "
                f"but a round has only {self.clients_per_round} clients (federation.clients-per-round)"
            )
        if self.replies_per_round and not self.min_replies <= self.replies_per_round <= self.clients_per_round:
            raise ConfigError(
                f"federation.replies-per-round is {self.replies_per_round}, it must lie between federation.min-replies "
                f"{self.min_replies} and federation.clients-per-round {self.clients_per_round}"
            )
        if self.replies_per_round and not find_method(config.method).takes_late:
            able = ", ".join(name for name, info in METHODS.items() if info.takes_late)
            raise ConfigError(
                f"federation.replies-per-round works with {able}: '{config.method}' averages whole adapters"
            )


class DefenceConfig(Section):
    """What the server does about outliers among the client updates."""

    norm_rule: Literal["clip", "reject", "off"] = key(
        "clip", "what to do with an update whose norm is far above the others': clip, reject or off"
    )
    factor: PositiveFloat = key(
        5.0, "the norm bound is median + factor * max(1.4826 MAD, 0.2 median) of all clients' last update norms"
    )
    aggregation: Literal["mean", "median", "trimmed"] = key(
        "mean", "mean, median (geometric median) or trimmed (mean without the updates farthest from that median)"
    )
    trim: Fraction = key(0.3, "fraction of the cohort that defence.aggregation = trimmed leaves out")


class PrivacyConfig(Section):
    """Differential privacy at the clients; the accountant is in :mod:`hyperlora.accounting`."""

    signature_noise: NonNegativeFloat = key(
        0.0, "noise multiplier of signatures (sensitivity: one sample replaced); 0 adds no noise"
    )
    signature_clip: PositiveFloat = key(1.0, "root mean square to which the features of a sample are clipped")
    adapter_noise: NonNegativeFloat = key(
        0.0, "noise multiplier of trained adapters (sensitivity: a client's data replaced); 0 adds no noise"
    )
    adapter_clip: PositiveFloat = key(1.0, "L2 norm to which a client's update is clipped before noise is added")
    delta: Annotated[float, Field(gt=0, lt=1)] = key(1e-5, "delta of the (epsilon, delta) privacy guarantee")
    epsilon: NonNegativeFloat = key(
        0.0,
        "privacy budget of each client: a client that has spent it trains no more; 0 sets no limit. With privacy.mode "
        "= sums the noise on the sums is chosen such that the whole run costs this epsilon",
    )
    exact_figures: bool = key(
        False,
        "send sample counts and scores without noise, for measurements in a simulation; epsilon does not cover them",
    )
    mode: Literal["open", "sums"] = key(
        "open", "what the server sees: every client's messages (open), or only sums by secure aggregation (sums)"
    )
    least_clients: Annotated[int, Field(ge=3)] = key(
        5, "minimum number of clients in a secure sum; a client takes part in no smaller one"
    )
    least_share: Annotated[float, Field(gt=0.5, le=1.0)] = key(
        0.8, "minimum fraction of clients whose answers must be in a sum with noise; their noise alone is enough"
    )

    @property
    def noised_sums(self) -> bool:
        """Whether the server gets nothing but sums with noise."""
        return self.mode == "sums" and self.epsilon > 0

    @property
    def keeps_counts(self) -> bool:
        """Whether clients keep their number of samples to themselves: the signature has noise."""
        return self.signature_noise > 0 and not self.exact_figures

    @property
    def keeps_scores(self) -> bool:
        """Whether clients keep losses and accuracies of training and evaluations to themselves: adapters have noise."""
        return self.adapter_noise > 0 and not self.exact_figures

    @property
    def noised(self) -> bool:
        """Whether signatures or adapters have noise, so that what has none (class statistics, inputs) stays."""
        return self.signature_noise > 0 or self.adapter_noise > 0

    def check(self, config: RunConfig) -> None:
        """Refuse a budget for what is sent without noise, and what no sum over clients does."""
        if self.mode == "sums":
            _require_sums(config)
        if self.epsilon and self.exact_figures:
            raise ConfigError("privacy.epsilon bounds nothing with privacy.exact-figures: exact figures have no bound")
        if self.epsilon and self.mode == "open" and not (self.adapter_noise and self.signature_noise):
            raise ConfigError(
                "privacy.epsilon needs privacy.signature-noise and privacy.adapter-noise: "
                "what is sent without noise has no bound"
            )


def _require_sums(config: RunConfig) -> None:
    """Raise ConfigError where a run cannot be one of sums."""
    if config.method != "hyperlora":
        raise ConfigError(f"privacy.mode = sums is made by method = hyperlora, and this run's is '{config.method}'")
    federation, lora, least = config.federation, config.lora, config.privacy.least_clients
    if federation.clients_per_round < least:
        raise ConfigError(
            f"federation.clients-per-round is {federation.clients_per_round}, and privacy.least-clients is {least}: "
            "no round would have a sum"
        )
    against = {
        "privacy.signature-noise or privacy.adapter-noise": config.privacy.noised,
        "lora.start = eva": lora.start == "eva",
        "lora.ranks": bool(lora.client_ranks),
        "lora.budget": bool(lora.client_budgets),
        "federation.domain-rounds": federation.domain_rounds > 0,
        "federation.replies-per-round": federation.replies_per_round > 0,
        "federation.evaluate-clients": federation.evaluate_clients > 0,
        "a text tower": config.model.text_tower,
        "data.name = instructions": config.data.name == "instructions",
    }
    for name, on in against.items():
        if on:
            raise ConfigError(f"privacy.mode = sums does not go with {name}")


class WireConfig(Section):
    """How adapters travel."""

    dtype: WireDtype = key("float32", "numbers of adapters in messages: float32, float16, int8 or int4")


class RunDirectoryConfig(Section):
    """Where results go."""

    output_dir: str = key("", "absolute path of the run directory; empty makes a new one under ~/hyperlora-runs")
    resume: bool = key(False, "resume from the last checkpoint in run.output-dir")
    checkpoint_every: NonNegativeInt = key(
        1, "rounds between checkpoints; the last round always writes one; 0 writes none at all"
    )
    checkpoints_kept: PositiveInt = key(2, "number of newest checkpoints to keep")
    signing_key: str = key(
        "",
        "path of an Ed25519 key (PEM) that signs checkpoints; a run resumes only from signed ones; empty signs none",
    )
    sinks: SinkList = key(
        "auto", "where live metrics go besides metrics.jsonl: auto (TensorBoard if installed), names, or empty"
    )

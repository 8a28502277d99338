"""The run configuration: every key, its type, its default and its meaning, parsed and checked once.

Flower hands an app a flat mapping such as ``{"lora.rank": 4}``. :meth:`RunConfig.parse` turns it into
frozen dataclasses; from there on values travel as plain arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hyperlora.config.methods import METHODS
from hyperlora.config.parsing import (
    AT_LEAST_ONE,
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    Check,
    ConfigError,
    ConfigKey,
    Scalar,
    build,
    checked,
    flatten,
    key,
    keys_of,
    nearest,
    one_of,
)

__all__ = ["PATH_KEYS", "ConfigError", "ConfigKey", "RunConfig", "Scalar", "config_keys"]

DATA = (
    "digits", "folder", "csv", "jsonl", "parquet", "instructions",
    "pacs", "office-home", "domainnet", "nico++", "cifar100", "fdu-mtl",
)  # fmt: skip
PROMPT: Check = (lambda value: value.count("{}") == 1, "a text with one {} in it")
PARTITIONS = ("dirichlet", "iid", "pathological", "natural")
SPLITS = ("hash", "official")
WIRE_DTYPES = ("float32", "float16", "int8")
GRADIENT_KINDS = ("off", "sketch", "adapter")
NORM_RULES = ("clip", "reject", "off")
AGGREGATIONS = ("mean", "median", "trimmed")
GENERATOR_KINDS = ("atoms", "mlp", "attention", "heads")
LEARNABLE = ("attention", "trust", "strength", "gates")
LEARNABLE_LIST: Check = (
    lambda value: all(part in LEARNABLE for part in value.split(",") if value),
    "names out of attention, trust, strength and gates, separated by commas",
)
COMMIT: Check = (
    lambda value: not value or (len(value) == 40 and set(value) <= set("0123456789abcdef")),
    "the 40 hexadecimal digits of a commit, or empty",
)
SINKS = ("tensorboard", "wandb", "mlflow")
SINK_LIST: Check = (
    lambda value: value == "auto" or all(part in SINKS for part in value.split(",") if value),
    "auto, or names out of tensorboard, wandb and mlflow, separated by commas",
)
PATH_KEYS = ("data.path", "model.weights", "run.output-dir", "federation.allowed-clients")
STEP_LIST: Check = (
    lambda value: all(part.strip().isdigit() for part in value.split(",") if value),
    "numbers separated by commas",
)


@dataclass(frozen=True)
class DataConfig:
    """Which data the clients hold and how a simulation divides it."""

    name: str = key("digits", "digits (embedded), a kind of own data (folder, csv, ...) or a known set", one_of(*DATA))
    path: str = key("", "absolute path of own data or a local copy; empty loads a known set from the hub")
    revision: str = key(
        "", "commit of a known set's repository on the hub; empty takes the commit that is known for it", COMMIT
    )
    classes: str = key("", "names of the classes, separated by commas; empty takes those that the data have")
    first_classes: int = key(0, "classes that are used, those of the lowest labels; 0 is all", NOT_NEGATIVE)
    text_column: str = key("text", "column of the texts in a table")
    label_column: str = key("label", "column of their classes")
    domain_column: str = key("domain", "column of their domains, which a table need not have")
    partition: str = key("dirichlet", "how a domain's samples are divided over clients", one_of(*PARTITIONS))
    split: str = key(
        "hash",
        "parts of a client by a hash of each sample, or tested on the set's official test split",
        one_of(*SPLITS),
    )
    classes_per_client: int = key(2, "classes of a client where data.partition is pathological", AT_LEAST_ONE)
    max_samples: int = key(0, "most samples of a client, the others are left alone; 0 is all", NOT_NEGATIVE)
    clients_per_domain: int = key(5, "clients that share one domain's samples", AT_LEAST_ONE)
    dirichlet_alpha: float = key(0.5, "label skew inside a domain; 0 divides evenly", NOT_NEGATIVE)
    unseen_fraction: float = key(0.2, "share of each domain's clients that never train", BELOW_ONE)
    validation_fraction: float = key(0.15, "share of a client's samples held out for validation", BELOW_ONE)
    test_fraction: float = key(0.25, "share of a client's samples held out for its own test", BELOW_ONE)


@dataclass(frozen=True)
class ModelConfig:
    """The frozen backbone that all parties share."""

    name: str = key("digits-vit", "digits-vit (embedded), a timm model, or hf: and a hub name or absolute directory")
    weights: str = key("", "absolute path of a safetensors file or, for hf:, a directory; empty takes the model's own")
    revision: str = key("", "commit of the weights' repository on the hub; empty takes the newest", COMMIT)
    image_size: int = key(16, "side of square images in pixels", AT_LEAST_ONE)
    max_length: int = key(128, "most tokens of a text; longer ones are truncated", AT_LEAST_ONE)
    prompt: str = key("a photo of a {}.", "text of a class for CLIP, {} is its name", PROMPT)
    text_tower: bool = key(False, "adapt the text tower of CLIP or SigLIP too and have it make the head")
    ship: bool = key(False, "send the backbone to sites with a state-dir, once; for digits-vit and timm models")


@dataclass(frozen=True)
class LoraConfig:
    """The shape of the adapter."""

    rank: int = key(4, "rank r of every adapted module", AT_LEAST_ONE)
    ranks: str = key(
        "", "ranks of the clients in turn, as 2,4; empty gives rank to all, none may be above it", STEP_LIST
    )
    alpha: float = key(8.0, "numerator of scaling = alpha / rank", POSITIVE)
    last_blocks: int = key(2, "number of last transformer blocks that are adapted", AT_LEAST_ONE)

    @property
    def client_ranks(self) -> tuple[int, ...]:
        """The ranks that clients take in turn; empty where all have ``rank``."""
        return tuple(int(part) for part in self.ranks.split(",") if part)


@dataclass(frozen=True)
class TrainConfig:
    """The local budget and the local optimiser."""

    local_steps: int = key(10, "optimiser steps K a client makes per round", NOT_NEGATIVE)
    batch_size: int = key(16, "samples per local step", AT_LEAST_ONE)
    optimizer: str = key("adamw", "local optimiser", one_of("adamw", "sgd"))
    learning_rate: float = key(3e-3, "local learning rate", POSITIVE)
    weight_decay: float = key(0.0, "local weight decay", NOT_NEGATIVE)
    prefix_cache_mb: int = key(1024, "most MiB of frozen-prefix activations a client process keeps", NOT_NEGATIVE)
    device: str = key(
        "auto",
        "auto, cpu or cuda; cuda fails where no GPU is given to the client",
        one_of("auto", "cpu", "cuda"),
    )


@dataclass(frozen=True)
class PriorConfig:
    """The class prior of a client in the bias of its head."""

    use: str = key("method", "method (as the method declares), on or off", one_of("method", "on", "off"))
    gamma: float = key(1.0, "strength of the log class frequencies", NOT_NEGATIVE)


@dataclass(frozen=True)
class SignatureConfig:
    """What a client tells of its data."""

    max_samples: int = key(512, "most local training samples behind one signature", AT_LEAST_ONE)
    smoothing: float = key(1.0, "pseudo-count added to every class frequency", POSITIVE)


@dataclass(frozen=True)
class FederationConfig:
    """Rounds, cohorts and deadlines."""

    rounds: int = key(30, "training rounds", AT_LEAST_ONE)
    clients_per_round: int = key(8, "clients in the cohort of a round", AT_LEAST_ONE)
    evaluate_every: int = key(5, "rounds between evaluations; the last round is always evaluated", AT_LEAST_ONE)
    evaluate_steps: str = key(
        "", "numbers of local steps after which a client is scored, as 0,1,5; 0 and K are always among them", STEP_LIST
    )
    allowed_clients: str = key(
        "", "absolute path, at the server, of the list of clients and their node keys; empty lets every node in"
    )
    min_clients: int = key(0, "clients to wait for before round 1; 0 means all that the data set defines", NOT_NEGATIVE)
    min_replies: int = key(1, "usable replies without which a round changes nothing", AT_LEAST_ONE)
    join_timeout: float = key(120.0, "seconds to wait for them", POSITIVE)
    round_timeout: float = key(600.0, "seconds after which a missing reply is given up", POSITIVE)


@dataclass(frozen=True)
class DefenceConfig:
    """What the server does about updates that lie apart from the cohort's."""

    norm: str = key("clip", "a movement far longer than the others': clip, reject or off", one_of(*NORM_RULES))
    factor: float = key(
        5.0, "how far: the bound is median + factor * max(1.4826 MAD, 0.2 median) of all clients' last norms", POSITIVE
    )
    aggregation: str = key(
        "mean",
        "mean, median (weights of the geometric median) or trimmed (those farthest from it are left out)",
        one_of(*AGGREGATIONS),
    )
    trim: float = key(0.3, "share of a cohort that trimmed leaves out", BELOW_ONE)


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy at the clients; the accountant is in :mod:`strategies.engine.privacy_ledger`."""

    signature_noise: float = key(
        0.0, "noise on signatures, in units of their sensitivity to one sample; 0 is none", NOT_NEGATIVE
    )
    signature_clip: float = key(1.0, "root mean square that the features of a sample are clipped to", POSITIVE)
    adapter_noise: float = key(
        0.0, "noise on trained adapters, in units of their sensitivity to a client's data; 0 is none", NOT_NEGATIVE
    )
    adapter_clip: float = key(1.0, "L2 norm that a client's movement is clipped to where there is noise", POSITIVE)
    delta: float = key(1e-5, "delta of the privacy that the accountant tells", POSITIVE)
    epsilon: float = key(
        0.0, "budget of a client: when it is spent, the client trains no more; 0 is none", NOT_NEGATIVE
    )


@dataclass(frozen=True)
class WireConfig:
    """How adapters travel."""

    dtype: str = key("float32", "numbers of adapters in messages: float32, float16 or int8", one_of(*WIRE_DTYPES))


@dataclass(frozen=True)
class HyperLoraConfig:
    """The server side of method = hyperlora: the synthesizer and what it learns from."""

    temperature: float = key(0.3, "temperature of the attention over the memory, before it is learned", POSITIVE)
    self_logit: float = key(0.0, "added to the attention logit of a client's own deviation, before it is learned")
    strength: float = key(
        1.0, "factor on the attended deviations, before it is learned; 0 is no synthesizer", NOT_NEGATIVE
    )
    server_step: float = key(1.0, "step of the anchor along the averaged movements", POSITIVE)
    gradient: str = key("sketch", "what train replies tell of the validation gradient", one_of(*GRADIENT_KINDS))
    sketch_size: int = key(256, "numbers of a sketched gradient per module kind and head", AT_LEAST_ONE)
    learn: str = key("gates", "which of attention, trust, strength and gates are learned", LEARNABLE_LIST)
    learning_rate: float = key(0.05, "of what is learned; 0 keeps everything as it is", NOT_NEGATIVE)
    memory_limit: int = key(0, "clients whose deviations stay in RAM, the others lie on disk; 0 is all", NOT_NEGATIVE)
    merge_own: bool = key(False, "clients merge their start with their own last adapter at use (Potara's gate)")
    rehearse: int = key(
        16,
        "clients that score before an evaluation how strongly newcomers should be personalised; 0 is none",
        NOT_NEGATIVE,
    )
    shuffle_signatures: bool = key(False, "describe clients by each other's signatures (an ablation)")


@dataclass(frozen=True)
class GeneratorConfig:
    """The hypernetwork of method = hyperlora."""

    kind: str = key("atoms", "variant of the generator, or off", one_of("off", *GENERATOR_KINDS))
    rank: int = key(16, "learned atoms (or rank) per module", AT_LEAST_ONE)
    hidden: int = key(64, "width of its hidden layers", AT_LEAST_ONE)
    inputs: int = key(16, "numbers that a signature is reduced to", AT_LEAST_ONE)
    steps: int = key(20, "optimiser steps of its distillation per round", NOT_NEGATIVE)
    learning_rate: float = key(0.01, "of its distillation", POSITIVE)
    virtual: int = key(48, "mixed and noised signatures per distillation", NOT_NEGATIVE)
    newcomer_share: float = key(
        0.0, "least share of the generator in the start of a client that never trained", BELOW_ONE
    )
    noise: float = key(0.2, "standard deviation of their noise, in standardised units", NOT_NEGATIVE)


@dataclass(frozen=True)
class CorrectorConfig:
    """The corrector of method = hyperlora."""

    rank: int = key(8, "most rank that is carried of what truncation cut off; 0 is no corrector", NOT_NEGATIVE)


@dataclass(frozen=True)
class RivalsConfig:
    """Settings of single rival methods."""

    lora_fair_form: str = key("closed", "of method = lora-fair: closed or iterative", one_of("closed", "iterative"))
    lora_fair_lambda: float = key(0.01, "weight of its penalty on the correction of B", NOT_NEGATIVE)
    hyperflora_learning_rate: float = key(0.01, "of the hypernetwork of method = hyperflora", POSITIVE)


@dataclass(frozen=True)
class RunDirectoryConfig:
    """Where results go."""

    output_dir: str = key("", "absolute path of the run directory; empty makes a new one under ~/hyperlora-runs")
    resume: bool = key(False, "go on from the last checkpoint in run.output-dir")
    checkpoint_every: int = key(
        1, "rounds between checkpoints; the last round always has one; 0 makes none", NOT_NEGATIVE
    )
    checkpoints_kept: int = key(2, "newest checkpoints that are kept", AT_LEAST_ONE)
    sinks: str = key(
        "auto",
        "where live metrics go besides metrics.jsonl: auto (TensorBoard where it is installed), names, or empty",
        SINK_LIST,
    )


@dataclass(frozen=True)
class RunConfig:
    """One run, complete and checked."""

    method: str = key("hyperlora", "federated LoRA method", one_of(*METHODS))
    seed: int = key(0, "seed of data division, cohorts, initial factors and local batches", NOT_NEGATIVE)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    signature: SignatureConfig = field(default_factory=SignatureConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    defence: DefenceConfig = field(default_factory=DefenceConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    hyperlora: HyperLoraConfig = field(default_factory=HyperLoraConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    corrector: CorrectorConfig = field(default_factory=CorrectorConfig)
    rivals: RivalsConfig = field(default_factory=RivalsConfig)
    run: RunDirectoryConfig = field(default_factory=RunDirectoryConfig)

    @classmethod
    def parse(cls, values: Mapping[str, Scalar]) -> RunConfig:
        """Build the configuration from Flower's flat mapping; keys that are absent keep their default.

        Raises:
            ConfigError: for an unknown key, a value of another type or outside its range.
        """
        known = {entry.key: entry for entry in config_keys()}
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown configuration key '{name}'{nearest(name, known)}")
        parsed = {name: checked(known[name], value) for name, value in values.items()}
        config: RunConfig = build(cls, parsed)
        config.check_ranks()
        if config.model.ship and config.model.name.startswith("hf:"):
            raise ConfigError(
                "model.ship sends one safetensors file, a transformers model has a directory: "
                "copy it to the sites and name it by 'weights' in their node config"
            )
        config.check_quorum()
        config.check_privacy()
        return config

    def check_quorum(self) -> None:
        """Raise ConfigError where more replies are needed than clients are asked."""
        needed, asked = self.federation.min_replies, self.federation.clients_per_round
        if needed > asked:
            raise ConfigError(
                f"federation.min-replies is {needed}, but federation.clients-per-round asks {asked} clients for one"
            )

    def check_privacy(self) -> None:
        """Raise ConfigError where something would leave a client without the noise that was asked for."""
        own = self.privacy
        if own.adapter_noise and self.method == "hyperlora" and self.hyperlora.gradient != "off":
            raise ConfigError(
                "privacy.adapter-noise needs hyperlora.gradient = 'off': what is told of the gradient carries no noise"
            )
        if own.epsilon and not (own.adapter_noise and own.signature_noise):
            raise ConfigError(
                "privacy.epsilon needs privacy.signature-noise and privacy.adapter-noise: "
                "what is sent without noise has no bound"
            )

    def check_ranks(self) -> None:
        """Raise ConfigError where clients shall have ranks that the method or the model cannot give them."""
        ranks = self.lora.client_ranks
        if any(not 1 <= one <= self.lora.rank for one in ranks):
            raise ConfigError(f"lora.ranks '{self.lora.ranks}' must lie between 1 and lora.rank {self.lora.rank}")
        if ranks and not METHODS[self.method].any_rank:
            able = ", ".join(name for name, info in METHODS.items() if info.any_rank)
            raise ConfigError(f"method '{self.method}' needs one rank for all clients; lora.ranks works with {able}")

    @property
    def prior_strength(self) -> float:
        """Gamma, the strength of the log class frequencies in the head's bias; 0 where the prior is off."""
        on = METHODS[self.method].uses_prior if self.prior.use == "method" else self.prior.use == "on"
        return self.prior.gamma if on else 0.0

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Numbers of local steps after which an evaluation scores, in order, with 0 and K among them."""
        asked = {int(part) for part in self.federation.evaluate_steps.split(",") if part}
        return tuple(sorted({0, self.train.local_steps} | {one for one in asked if one <= self.train.local_steps}))

    def flat(self) -> dict[str, Scalar]:
        """Return the flat mapping that :meth:`parse` accepts, every key present."""
        return dict(flatten(self))

    def public(self) -> dict[str, Scalar]:
        """Return :meth:`flat` without paths of a machine: what may stand in what is handed on."""
        return {name: value for name, value in self.flat().items() if name not in PATH_KEYS}


def config_keys() -> Iterator[ConfigKey]:
    """Yield every configuration key in the order of its declaration."""
    yield from keys_of(RunConfig)

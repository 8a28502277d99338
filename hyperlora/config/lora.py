"""The section ``lora``: the shape of the adapter, and what of it clients may have apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import PositiveFloat

from hyperlora.config.methods import METHODS, find_method
from hyperlora.config.section import ConfigError, PositiveInt, Rule, Section, StepList, key
from hyperlora.config.sizes import is_size, parse_bytes

if TYPE_CHECKING:
    from hyperlora.config.schema import RunConfig

NOT_AVERAGED = {
    "dora": "it divides by the norms of the adapted weights, so that no average of adapters is the average of weights",
    "vera": "its weights are products of two trained vectors, whose averages are not the average of the products",
    "randlora": "its weights are products of two trained diagonals, whose averages are not the average of the products",
    "ia3": "it rescales all of a weight, which is no product of low rank, and nothing else is exchanged",
}
"""Adapters of PEFT that are refused, and why."""


SizeList = Annotated[
    str,
    Rule(
        lambda value: all(is_size(part) for part in value.split(",") if value),
        "sizes as 50000, 50k or 1.5M, separated by commas",
    ),
]


class LoraConfig(Section):
    """The shape of the adapter."""

    adapter: Literal["lora", "miss", "fly", "dora", "vera", "randlora", "ia3"] = key(
        "lora", "kind of adapter: lora, or miss or fly with method = ffa-lora; the others are refused with the reason"
    )
    active: PositiveInt = key(4, "rank-1 components that each token activates if lora.adapter is fly")
    rank: PositiveInt = key(4, "rank r of every adapted module")
    ranks: StepList = key("", "ranks assigned to clients in turn, as 2,4, none above lora.rank; empty uses lora.rank")
    budget: SizeList = key(
        "",
        "maximum bytes of LoRA factors per message, assigned to clients in turn, as 20k,80k; divided among modules by"
        " their singular values; empty sets no limit",
    )
    importance: Literal["spectrum", "sensitivity"] = key(
        "spectrum",
        "how lora.budget is divided among modules: by their singular values (spectrum), or by the sensitivity of the"
        " loss to each module, which clients measure (AdaLoRA)",
    )
    alpha: PositiveFloat = key(8.0, "numerator of scaling = alpha / rank")
    rslora: bool = key(False, "scale by alpha / sqrt(rank) instead (rsLoRA), so a higher rank does not weaken updates")
    last_blocks: PositiveInt = key(2, "number of last transformer blocks that are adapted")
    nested: bool = key(
        False, "train only the first b rank components of each module, with b drawn at random in each step (DyLoRA)"
    )
    start: Literal["random", "eva"] = key(
        "random", "initial lora_A: random, or eva, the leading principal directions of all clients' inputs (EVA)"
    )
    head_start: Literal["zeros", "classes"] = key(
        "zeros", "initial head: zeros, or classes, a linear discriminant of all clients' frozen features"
    )

    @property
    def scaling(self) -> float:
        """The factor of every product B A."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def has_peft_form(self) -> bool:
        """Whether plain PEFT computes what an adapter of this kind does, so that it is written."""
        return self.adapter != "fly"

    @property
    def client_ranks(self) -> tuple[int, ...]:
        """The ranks that clients take in turn; empty where all have ``rank``."""
        return tuple(int(part) for part in self.ranks.split(",") if part)

    @property
    def client_budgets(self) -> tuple[int, ...]:
        """The budgets of bytes that clients take in turn; empty where none has one."""
        return tuple(parse_bytes(part) for part in self.budget.split(",") if part)

    def check(self, config: RunConfig) -> None:
        """Refuse ranks that the method or the model cannot give to clients."""
        if any(not 1 <= rank <= self.rank for rank in self.client_ranks):
            raise ConfigError(f"lora.ranks '{self.ranks}' must lie between 1 and lora.rank {self.rank}")
        if self.client_ranks and not find_method(config.method).any_rank:
            able = ", ".join(name for name, info in METHODS.items() if info.any_rank)
            raise ConfigError(f"method '{config.method}' needs one rank for all clients; lora.ranks works with {able}")
        self._check_budget(config)
        self._check_importance(config)
        if self.start == "eva":
            self._check_start(config)
        if self.head_start == "classes":
            self._check_head_start(config)
        self._check_adapter(config)

    def _check_adapter(self, config: RunConfig) -> None:
        if self.adapter in NOT_AVERAGED:
            raise ConfigError(f"lora.adapter = {self.adapter} is not federated here: {NOT_AVERAGED[self.adapter]}")
        if self.adapter in ("miss", "fly") and config.method != "ffa-lora":
            raise ConfigError(
                f"lora.adapter = {self.adapter} trains one factor beside a fixed one: it needs method = ffa-lora"
            )
        if self.adapter == "fly" and self.active > self.rank:
            raise ConfigError(
                f"lora.active is {self.active}, and an adapter of lora.rank {self.rank} has no more parts"
            )

    def _check_budget(self, config: RunConfig) -> None:
        method = find_method(config.method)
        if self.client_budgets and (method.own_start or not method.any_rank):
            able = ", ".join(name for name, info in METHODS.items() if info.any_rank and not info.own_start)
            raise ConfigError(
                f"lora.budget gives modules ranks of their own: it works with {able}, not '{config.method}'"
            )

    def _check_importance(self, config: RunConfig) -> None:
        if self.importance == "sensitivity" and not self.budget:
            raise ConfigError("lora.importance = sensitivity shares out a budget: set lora.budget as well")
        if self.importance == "sensitivity" and not config.train.local_steps:
            raise ConfigError(
                "lora.importance = sensitivity is measured in training, and train.local-steps is 0: set "
                "lora.importance = spectrum"
            )
        if self.importance == "sensitivity" and config.privacy.noised:
            raise ConfigError(
                "lora.importance = sensitivity makes clients send sensitivities, which no noise bounds: turn "
                "privacy.signature-noise and privacy.adapter-noise off, or set lora.importance = spectrum"
            )

    def _check_start(self, config: RunConfig) -> None:
        if find_method(config.method).own_start:
            raise ConfigError(f"lora.start = eva does nothing for method '{config.method}', which makes lora_A itself")
        if self.client_ranks:
            raise ConfigError("lora.start = eva gives all clients one lora_A, so lora.ranks must be empty")
        if config.privacy.noised:
            raise ConfigError(
                "lora.start = eva makes clients send moments of their inputs, which no noise bounds: turn "
                "privacy.signature-noise and privacy.adapter-noise off, or set lora.start = random"
            )

    def _check_head_start(self, config: RunConfig) -> None:
        if config.privacy.noised or config.privacy.noised_sums:
            raise ConfigError("lora.head-start = classes has clients tell class statistics, which carry no noise")
        if config.model.text_tower or config.data.name == "instructions":
            raise ConfigError("lora.head-start = classes needs a head of classes, which this model does not have")

"""A frozen backbone with LoRA modules (PEFT) and a trainable head, whose adapter is read and written as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from hyperlora.seeds import derive_seed
from models.adapters.adapter import NO_FORM, Adapter, AdapterError, Core, check_same_shapes, resized
from models.adapters.layers import factor, full_rank, fuse, prepared, read_core, shared_blocks
from models.adapters.peft_files import ADAPTER_NAME, lora_config, save_of_another_rank
from models.adapters.routed import route, sparse_rows
from models.backbones.backbone import Backbone
from models.lowrank.factors import Factors


class AdaptedModel:
    """A backbone that carries one LoRA adapter and its head.

    The backbone's module is taken over: PEFT puts its layers into it. The blocks before ``first_block`` have no
    adapter, so their output per sample ("tokens") never changes and may be kept by the caller.

    Args:
        backbone: the frozen model; see :func:`models.backbones.loading.build_backbone`.
        rank: r of every adapted module.
        alpha: numerator of the scaling alpha / rank of every product B A.
        last_blocks: number of last blocks that are adapted.
        rslora: scale by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).
        kind: ``lora``, or ``miss``, whose A is the one of :func:`models.adapters.layers.shared_blocks`, to be kept, or
            ``fly``, whose sparse A is to be kept and chooses components for each token.
        active: components that are chosen for a token where the kind is ``fly``.

    Raises:
        AdapterError: the rank is larger than a layer, or there are fewer blocks than asked for.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int,
        alpha: float,
        last_blocks: int,
        rslora: bool = False,
        kind: str = "lora",
        active: int = 0,
    ) -> None:
        if last_blocks > backbone.num_blocks:
            raise AdapterError(
                f"lora.last-blocks is {last_blocks}, but '{backbone.name}' has {backbone.num_blocks} blocks"
            )
        self.backbone, self._kind, self._half, self._active = backbone, kind, False, active
        self.first_block = backbone.num_blocks - last_blocks
        self._paths = backbone.adapted_layers(last_blocks)
        _check_rank(backbone, rank, self._paths)
        config = lora_config(backbone, rank=rank, alpha=alpha, last_blocks=last_blocks, rslora=rslora)
        self.peft_model: PeftModel = get_peft_model(backbone.module, config)
        self.peft_model.peft_config[ADAPTER_NAME].base_model_name_or_path = backbone.name
        self.peft_model.eval()
        self.network = cast(nn.Module, self.peft_model.base_model.model)
        self._layers = {kind: self._layers_at(paths) for kind, paths in self._paths.items()}
        for layers in self._layers.values():
            for layer in layers:
                if kind == "fly":
                    route(layer, active)
                else:
                    fuse(layer)
        self._fresh_head = self.extract().head

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device, *, half: bool = False) -> None:
        """Move the model to ``device`` and, where ``half``, have logits computed by products in bfloat16."""
        self.peft_model.to(device)
        self._half = half

    def logits(self, tokens: Tensor) -> Tensor:
        """Map tokens before ``first_block``, samples first, to logits (n, classes) in float32."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._half):
            return self.backbone.anatomy.forward_suffix(self.network, tokens, self.first_block).float()

    @torch.no_grad()
    def features(self, tokens: Tensor) -> Tensor:
        """Map tokens, samples first, to the pooled features (n, d) that the head reads, adapter included."""
        return self.backbone.anatomy.pooled_features(self.network, tokens, self.first_block)

    def frozen_features(self, tokens: Tensor) -> Tensor:
        """Map tokens, samples first, to the pooled features (n, d) of the backbone without its adapter."""
        with self.peft_model.disable_adapter():
            return self.features(tokens)

    @contextmanager
    def watching_inputs(self, see: Callable[[str, int, Tensor], None]) -> Iterator[None]:
        """Return a context in which ``see`` gets kind, block and inputs (..., n) of every call of an adapted layer."""
        with ExitStack() as stack:
            for kind, layers in self._layers.items():
                for block, layer in enumerate(layers):
                    handle = cast(nn.Module, layer).register_forward_pre_hook(
                        lambda _, given, kind=kind, block=block: see(kind, block, given[0])
                    )
                    stack.callback(handle.remove)
            yield

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the LoRA factors and the head's parameters, in a fixed order."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def factor_pairs(self) -> dict[str, list[tuple[nn.Parameter, nn.Parameter]]]:
        """Return kind -> lora_B (m, r) and lora_A (r, n) of every block, the parameters themselves; none of a core."""
        found: dict[str, list[tuple[nn.Parameter, nn.Parameter]]] = {}
        for kind, layers in self._layers.items():
            pairs = [(factor(layer.lora_B).weight, factor(layer.lora_A).weight) for layer in layers]
            if all(right.is_leaf for _, right in pairs):
                found[kind] = cast(list[tuple[nn.Parameter, nn.Parameter]], pairs)
        return found

    @contextmanager
    def cut(self, rank: int) -> Iterator[None]:
        """Return a context in which every product has its first ``rank`` components alone, and so has the gradient."""
        lefts = [left for pairs in self.factor_pairs().values() for left, _ in pairs]
        with torch.no_grad():
            tails = [left[:, rank:].clone() for left in lefts]
            for left in lefts:
                left[:, rank:] = 0
        try:
            yield
        finally:
            with torch.no_grad():
                for left, tail in zip(lefts, tails, strict=True):
                    left[:, rank:] = tail
                    if left.grad is not None:
                        left.grad[:, rank:] = 0

    @property
    def scaling(self) -> float:
        """The factor of every product B A, alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
        layers = next(iter(self._layers.values()))
        return float(next(iter(layers[0].scaling.values())))

    def extract(self) -> Adapter:
        """Return a copy of the adapter that the model carries now."""
        low_rank = {kind: _stack(layers) for kind, layers in self._layers.items()}
        head = self._head()
        return Adapter(low_rank, torch.cat([head.weight, head.bias[:, None]], dim=1).detach().cpu().clone())

    def prepared(self, trains: str, core: Core | None, base: Adapter | None) -> AbstractContextManager[None]:
        """Return a context in which the loaded adapter is trained as a plan says.

        Args:
            trains: ``all`` factors, ``A``, ``B``, or a ``core`` between fixed factors, each with the head; the ``head``
                alone, or the ``body``, all factors without the head.
            core: the core and its frame, which stand in place of the factors where ``trains`` is ``core``.
            base: a product that is added to the frozen weights meanwhile, or None.
        """
        return prepared(self._layers, self._head(), trains, core, base)

    @contextmanager
    def full_rank(self) -> Iterator[float]:
        """Return a context in which :meth:`take_gradient` has ``scaling`` dL/dW (blocks, m, n) of every kind as its B.

        Yields:
            The scaling.
        """
        with full_rank(self._layers):
            yield self.scaling

    def extract_core(self) -> dict[str, Tensor]:
        """Return kind -> R (blocks, r, r), in a context that trains a core."""
        return read_core(self._layers)

    def gradient(self) -> Adapter:
        """Return a copy of the gradient in the shape of the adapter, zero where there is none."""
        low_rank = {kind: _stack(layers, _gradient_of) for kind, layers in self._layers.items()}
        head = self._head()
        gradient = torch.cat([_gradient_of(head.weight), _gradient_of(head.bias)[:, None]], dim=1)
        return Adapter(low_rank, gradient)

    def take_gradient(self) -> Adapter:
        """Return the gradient in the shape of the adapter (zero where there is none) and clear it."""
        gradient = self.gradient()
        self.clear_gradient()
        return gradient

    def clear_gradient(self) -> None:
        """Forget the gradient that was computed last."""
        for parameter in self.trainable_parameters():
            parameter.grad = None

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Write ``adapter`` into the model and forget the gradient of the one before.

        One of lower rank is padded with zeros, which training leaves at zero.

        Raises:
            AdapterError: a part is missing, unknown or of another shape.
        """
        present = self.extract()
        adapter = resized(adapter, present.rank) if adapter.rank < present.rank else adapter
        check_same_shapes(adapter, present)
        self.clear_gradient()
        for kind, layers in self._layers.items():
            factors = adapter.low_rank[kind]
            for layer, lora_A, lora_B in zip(layers, factors.A, factors.B, strict=True):
                factor(layer.lora_A).weight.copy_(lora_A)
                factor(layer.lora_B).weight.copy_(lora_B)
        head = self._head()
        head.weight.copy_(adapter.head[:, :-1])
        head.bias.copy_(adapter.head[:, -1])

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> Tensor:
        """Map transformed inputs (n, ...) to tokens before ``first_block``, on the model's device."""
        return self.backbone.anatomy.embed_prefix(self.network, inputs.to(self.device), self.first_block)

    @torch.no_grad()
    def initialise(self, seed: int) -> Adapter:
        """Return a fresh adapter as PEFT makes it: lora_A Kaiming-uniform with ``seed``, lora_B 0, fresh head.

        Where the kind is ``miss`` or ``fly``, lora_A is that kind's.
        """
        generator = torch.Generator().manual_seed(seed)
        low_rank = {}
        for kind, layers in self._layers.items():
            lora_A, lora_B = _stack(layers).A, _stack(layers).B
            for block in lora_A:
                nn.init.kaiming_uniform_(block, a=5**0.5, generator=generator)
            if self._kind == "miss":
                lora_A = (shared_blocks(*lora_A.shape[-2:]) / self.scaling).expand_as(lora_A).contiguous()
            if self._kind == "fly":
                rank, share = lora_A.shape[1], self._active / lora_A.shape[1]
                lora_A = torch.stack([sparse_rows(rank, lora_A.shape[2], share, generator) for _ in lora_A])
            low_rank[kind] = Factors(B=torch.zeros_like(lora_B), A=lora_A)
        return Adapter(low_rank, self._fresh_head.clone())

    def fresh_adapter(self, run_seed: int) -> Adapter:
        """Return the adapter before round 1, which the server and every client make alike from the run's seed."""
        return self.initialise(derive_seed(run_seed, "lora"))

    def save(self, adapter: Adapter, directory: Path) -> None:
        """Write ``adapter``, of any rank, as a PEFT directory that ``peft.PeftModel.from_pretrained`` reads.

        Raises:
            AdapterError: the kind is ``fly``, which PEFT would read as another function.
        """
        if self._kind == "fly":
            raise AdapterError(NO_FORM)
        present = self.extract()
        if adapter.rank == present.rank:
            self.load(adapter)
            self.peft_model.save_pretrained(str(directory), save_embedding_layers=False)
        else:
            self.load(Adapter(present.low_rank, adapter.head))
            save_of_another_rank(self.peft_model, self._paths, adapter, directory)

    def _layers_at(self, paths: Sequence[str]) -> list[LoraLayer]:
        layers: list[LoraLayer] = []
        for name in paths:
            layer = self.network.get_submodule(name)
            if not isinstance(layer, LoraLayer):
                raise AdapterError(f"module '{name}' of '{self.backbone.name}' carries no LoRA layer")
            layers.append(layer)
        return layers

    def _head(self) -> nn.Linear:
        wrapper = self.network.get_submodule(self.backbone.head_name)
        if not isinstance(wrapper, ModulesToSaveWrapper):
            raise AdapterError(f"the head '{self.backbone.head_name}' of '{self.backbone.name}' is not trained")
        head = wrapper.modules_to_save[ADAPTER_NAME]
        if not isinstance(head, nn.Linear):
            raise AdapterError(f"the head of '{self.backbone.name}' is not a linear layer")
        return head


def _check_rank(backbone: Backbone, rank: int, paths: Mapping[str, Sequence[str]]) -> None:
    for kind, (first, *_) in paths.items():
        smallest = min(cast(nn.Linear, backbone.module.get_submodule(first)).weight.shape)
        if rank > smallest:
            raise AdapterError(
                f"lora.rank is {rank}, larger than layer '{kind}' of '{backbone.name}' allows (at most {smallest})"
            )


def _value_of(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu()


def _gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(_value_of(parameter)) if parameter.grad is None else parameter.grad.detach().cpu()


def _stack(layers: list[LoraLayer], read: Callable[[Tensor], Tensor] = _value_of) -> Factors:
    lora_A = torch.stack([read(factor(layer.lora_A).weight) for layer in layers])
    lora_B = torch.stack([read(factor(layer.lora_B).weight) for layer in layers])
    return Factors(B=lora_B, A=lora_A)

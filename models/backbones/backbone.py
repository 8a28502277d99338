"""The frozen backbone as the rest of the system sees it, and what a family of models has to declare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

Inputs = Tensor | Sequence[str]
"""Raw samples: uint8 images (n, c, h, w), or n texts."""

Transform = Callable[[Inputs], Tensor]
"""Turns raw samples into the inputs of ``embed_prefix``, n first; raises BackboneError for samples of another kind."""

Pretraining = Callable[[], tuple[Tensor, Tensor]]
"""Returns public images (n, c, h, w) uint8 and labels (n,); only a backbone that is pretrained on the spot calls it."""

Targets = Callable[[Tensor, Tensor], Tensor]
"""Returns the targets of the loss, (n,) classes or (n, t) tokens, for transformed inputs and labels (n,)."""

NO_TARGET = -100
"""A target that counts neither in the loss nor in the accuracy."""


class BackboneError(ValueError):
    """A backbone cannot be built or used as asked; the message is one sentence for a person."""


@dataclass(frozen=True)
class Request:
    """Which backbone is asked for.

    Attributes:
        name: ``digits-vit`` (embedded), the name of a timm model, or ``hf:`` and a hub name or absolute directory.
        weights: absolute path of a safetensors file (or, for ``hf:``, of a directory); empty takes the model's own.
        image_size: side of square images in pixels.
        num_classes: size of the head.
        max_length: longest text in tokens.
        class_names: names of the classes, for heads that are made from them; empty where they are not known.
        prompt: text of a class, with ``{}`` for its name.
        pretraining: public digits for ``digits-vit``.
        text_tower: whether an adapted text tower makes the head of CLIP and SigLIP.
        revision: commit of the weights' repository on the hub; empty takes the newest.
    """

    name: str
    weights: str
    image_size: int
    num_classes: int
    max_length: int = 128
    class_names: tuple[str, ...] = ()
    prompt: str = "a photo of a {}."
    pretraining: Pretraining | None = None
    text_tower: bool = False
    revision: str = ""


class Anatomy(Protocol):
    """How a model is run in two parts: a frozen prefix, computed once per sample, and an adapted suffix.

    Methods take the bare module or the one that carries PEFT's layers and whose head PEFT wraps. The tokens between
    the two parts are one tensor with the samples first; its other dimensions are up to the family (texts pack their
    attention mask in it).
    """

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Run transformed inputs through the embedding and the blocks before ``first_block``.

        The result depends on frozen weights only, as long as no adapter sits below ``first_block``.

        Raises:
            ValueError: ``first_block`` is not in [0, number of blocks].
        """

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Run tokens through the blocks from ``first_block`` on and the head: logits (n, classes) or (n, tokens, t)."""

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return what the head would receive for tokens: pooled features (n, d)."""


class Family(Protocol):
    """Models that are built alike; each file of :mod:`models.backbones.families` has one as its ``FAMILY``."""

    def claims(self, request: Request) -> bool:
        """Tell whether the requested model is one of this family; raises BackboneError for a name without model."""

    def build(self, request: Request) -> Backbone:
        """Build it, frozen and in evaluation mode; raises BackboneError."""


@dataclass(frozen=True)
class BlockStack:
    """A list of blocks with adapted layers.

    Attributes:
        blocks: path of the list in the module.
        layers: adapted linear layers by their path in a block; each has the same shape in all blocks.
        prefix: of the names of their kinds, where a module has several stacks.
    """

    blocks: str
    layers: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Backbone:
    """A frozen model with a fresh linear head, and its properties.

    Attributes:
        fingerprint: SHA-256 of everything but the head; parties may exchange adapters only if theirs are equal.
        anatomy: how to run the module in two parts.
        transform: turns raw samples into inputs.
        blocks: path of the list of blocks in the module.
        target_modules: adapted linear layers by their path in a block; each has the same shape in all blocks.
        head_name: path of the head, an ``nn.Linear`` with bias.
        embed_dim: width d of the pooled features.
        num_tokens: tokens of the longest sample.
        num_heads: attention heads of a block, 1 where there is no attention.
        targets: targets of the loss; the labels, unless the family says otherwise.
        extra_stacks: blocks that are adapted as well but do not process the samples' tokens.
        read_texts: embeds n texts as (n, e) with frozen weights, where the samples are none; else None.
    """

    name: str
    module: nn.Module
    fingerprint: str
    anatomy: Anatomy
    transform: Transform
    blocks: str
    target_modules: tuple[str, ...]
    head_name: str
    embed_dim: int
    num_tokens: int
    num_heads: int
    targets: Targets = lambda inputs, labels: labels
    extra_stacks: tuple[BlockStack, ...] = ()
    read_texts: Callable[[Sequence[str]], Tensor] | None = None

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks."""
        return len(block_list(self.module, self.blocks))

    def adapted_layers(self, last_blocks: int) -> dict[str, list[str]]:
        """Return the paths of the adapted layers by kind, in the order of the last blocks of their stack."""
        paths: dict[str, list[str]] = {}
        for stack in (BlockStack(self.blocks, self.target_modules), *self.extra_stacks):
            count = len(block_list(self.module, stack.blocks))
            indices = range(max(0, count - last_blocks), count)
            paths |= {f"{stack.prefix}{kind}": [f"{stack.blocks}.{i}.{kind}" for i in indices] for kind in stack.layers}
        return paths

    def matmul_work(self, batch_size: int) -> int:
        """Return the floating-point operations of the largest matrix product of a block on a batch."""
        block = block_list(self.module, self.blocks)[0]
        weights = (block.get_submodule(kind).get_parameter("weight").numel() for kind in self.target_modules)
        return 2 * batch_size * self.num_tokens * max(weights)

    def prepare(self, inputs: Inputs) -> Tensor:
        """Transform raw samples; see :attr:`transform`."""
        return self.transform(inputs)


def block_list(module: nn.Module, path: str) -> nn.ModuleList | nn.Sequential:
    """Return the list of blocks at ``path``; raises TypeError for anything else."""
    blocks = module.get_submodule(path)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        raise TypeError(f"expected a list of blocks at '{path}', got {type(blocks).__name__}")
    return blocks


def checked_first_block(first_block: int, num_blocks: int) -> int:
    """Return ``first_block`` if it is in [0, num_blocks], else raise ValueError."""
    if not 0 <= first_block <= num_blocks:
        raise ValueError(f"first_block must be in [0, {num_blocks}], got {first_block}")
    return first_block


def frozen(module: nn.Module) -> nn.Module:
    """Freeze ``module``, put it into evaluation mode and return it."""
    return module.requires_grad_(False).eval()


def zero_head(width: int, num_classes: int) -> nn.Linear:
    """Return a linear head of zeros."""
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def linear_kinds(module: nn.Module, blocks: str) -> tuple[str, ...]:
    """Return the paths, inside a block, of the linear layers that every block has in the same shape.

    Raises:
        BackboneError: there are none.
    """
    shapes = [
        {path: tuple(layer.weight.shape) for path, layer in block.named_modules() if isinstance(layer, nn.Linear)}
        for block in block_list(module, blocks)
    ]
    kinds = tuple(path for path, shape in shapes[0].items() if all(other.get(path) == shape for other in shapes))
    if not kinds:
        raise BackboneError(f"the blocks of a {type(module).__name__} have no linear layer in common to be adapted")
    return kinds

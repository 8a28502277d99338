"""The frozen backbone as the rest of the system sees it, and what every family of models has to declare.

Which linear layers the blocks of a model have in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn

Inputs = Tensor | Sequence[str]
"""Raw samples: uint8 images (n, c, h, w), or n texts."""

Transform = Callable[[Inputs], Tensor]
"""Turns raw samples into what a family's ``embed_prefix`` takes, n first; raises BackboneError for other inputs."""

Pretraining = Callable[[], tuple[Tensor, Tensor]]
"""Gives public images (n, c, h, w) uint8 and labels (n,); only a backbone that is pretrained on the spot calls it."""


Targets = Callable[[Tensor, Tensor], Tensor]
"""Returns what the logits are to tell: (n,) classes or (n, t) tokens, from transformed inputs and labels (n,)."""

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
        max_length: most tokens of a text.
        class_names: names of the classes, for heads that are made from them; empty where they are not known.
        prompt: text of a class, with ``{}`` for its name.
        pretraining: public digits for ``digits-vit``.
        text_tower: have the head of CLIP and SigLIP made by an adapted text tower.
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
    """How models of a family are taken apart: a frozen prefix, computed once per sample, and an adapted suffix.

    Methods take the bare module or the one that carries PEFT's layers and whose head PEFT wraps. Tokens are one
    tensor with the samples first; its other dimensions are the family's own affair (texts pack their mask in it).
    """

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Run transformed inputs through the embedding and the blocks before ``first_block``.

        The result depends on frozen weights only as long as no adapter sits below ``first_block``.

        Raises:
            ValueError: if ``first_block`` is not in [0, number of blocks].
        """

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Run tokens through the blocks from ``first_block`` on and the head: logits (n, classes) or (n, tokens, t)."""

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return what the head would receive for tokens: pooled features (n, d)."""


class Family(Anatomy, Protocol):
    """Models that are built and taken apart alike; each file of :mod:`models.backbones.families` has a ``FAMILY``."""

    def claims(self, request: Request) -> bool:
        """Tell whether the model asked for is one of this family; raises BackboneError for a name without model."""

    def build(self, request: Request) -> Backbone:
        """Build it, frozen and in evaluation mode; raises BackboneError."""


@dataclass(frozen=True)
class Stack:
    """A list of blocks that are adapted.

    Attributes:
        blocks: path of the list in the module.
        layers: linear layers in a block that are adapted, by path; each has one shape over all blocks.
        prefix: of the names of their kinds, where a module has several stacks.
    """

    blocks: str
    layers: tuple[str, ...]
    prefix: str = ""


@dataclass(frozen=True)
class Backbone:
    """A frozen model with a fresh linear head, and what its users have to know of it.

    Attributes:
        fingerprint: SHA-256 of everything but the head; parties may exchange adapters only if theirs are equal.
        anatomy: how to run the module in two parts.
        transform: how raw samples become its inputs.
        blocks: path of the list of blocks in the module.
        target_modules: linear layers in a block that are adapted, by path; each has one shape over all blocks.
        head_name: path of the head, an ``nn.Linear`` with bias.
        embed_dim: width d of the pooled features.
        num_tokens: tokens of one (longest) sample.
        targets: what is learned; the labels, unless the family says otherwise.
        beside: stacks that are adapted as well and do not work on the samples' tokens.
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
    targets: Targets = lambda inputs, labels: labels
    beside: tuple[Stack, ...] = ()

    @property
    def num_blocks(self) -> int:
        """Return the number of blocks."""
        return len(block_list(self.module, self.blocks))

    def adapted_layers(self, last_blocks: int) -> dict[str, list[str]]:
        """Return by kind the paths of the adapted layers, in the order of the last blocks of their stack."""
        found: dict[str, list[str]] = {}
        for stack in (Stack(self.blocks, self.target_modules), *self.beside):
            count = len(block_list(self.module, stack.blocks))
            indices = range(max(0, count - last_blocks), count)
            found |= {f"{stack.prefix}{one}": [f"{stack.blocks}.{i}.{one}" for i in indices] for one in stack.layers}
        return found

    def matmul_work(self, batch_size: int) -> int:
        """Return the floating-point operations of the largest matrix product of a block on a batch."""
        block = block_list(self.module, self.blocks)[0]
        weights = (block.get_submodule(kind).get_parameter("weight").numel() for kind in self.target_modules)
        return 2 * batch_size * self.num_tokens * max(weights)

    def prepare(self, inputs: Inputs) -> Tensor:
        """Transform raw samples; see :attr:`transform`."""
        return self.transform(inputs)


def block_list(module: nn.Module, path: str) -> nn.ModuleList | nn.Sequential:
    """Return the list of blocks at ``path``; raises TypeError for what is none."""
    blocks = module.get_submodule(path)
    if not isinstance(blocks, (nn.ModuleList, nn.Sequential)):
        raise TypeError(f"expected a list of blocks at '{path}', got {type(blocks).__name__}")
    return blocks


def checked_first_block(first_block: int, num_blocks: int) -> int:
    """Return ``first_block`` if it is in [0, num_blocks], else raise ValueError."""
    if not 0 <= first_block <= num_blocks:
        raise ValueError(f"first_block must be in [0, {num_blocks}], got {first_block}")
    return first_block


def fingerprint(module: nn.Module, head_name: str = "head") -> str:
    """Return the SHA-256 (hex) of the sorted names, types, shapes and bytes of all weights but the head's.

    It does not depend on the number of classes, the device or trained heads; it does on every other bit.
    """
    digest = hashlib.sha256()
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    for name in sorted(tensors):
        if name.split(".")[0] != head_name:
            values = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    """Return the paths, inside a block, of the linear layers that every block has in one shape.

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


def list_of_blocks(module: nn.Module, count: int) -> str:
    """Return the path of the first list of ``count`` blocks in ``module``.

    Raises:
        BackboneError: there is none.
    """
    for path, found in module.named_modules():
        if isinstance(found, nn.ModuleList) and len(found) == count:
            return str(path)
    raise BackboneError(f"a {type(module).__name__} has no list of {count} blocks")

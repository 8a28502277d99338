"""Which linear layers the blocks of a model have in common."""

from __future__ import annotations

from torch import nn

from models.backbone import BackboneError, block_list


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

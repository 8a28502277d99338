"""Weights of a backbone from a safetensors file, and the error for those of another architecture."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.backbones.backbone import BackboneError

HEAD_NAME = "head"


def read_weights(path: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, without those of its classifier head.

    Raises:
        BackboneError: if the path is relative, no file is there or it is no safetensors file.
    """
    if not Path(path).is_absolute():
        raise BackboneError(f"the path of the weights must be absolute, got '{path}'")
    if not Path(path).is_file():
        raise BackboneError(f"there is no weights file at '{path}'")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"'{path}' is not a readable safetensors file: {error}") from error
    return {name: tensor for name, tensor in state.items() if name.split(".")[0] != HEAD_NAME}


def weights_bytes(module: nn.Module, **metadata: str) -> bytes:
    """Return the safetensors file that :func:`read_weights` reads: the weights of ``module`` without its head."""
    state = {name: value for name, value in module.state_dict().items() if name.split(".")[0] != HEAD_NAME}
    return save({name: value.detach().cpu().contiguous() for name, value in state.items()}, metadata or None)


def misfit(path: str, name: str, reason: str) -> BackboneError:
    """Return the error for weights of another architecture; ``reason`` is what torch or timm said."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    first = " ".join(lines[1:2] or lines)[:200]
    return BackboneError(f"the weights in '{path}' are not those of '{name}': {first}")

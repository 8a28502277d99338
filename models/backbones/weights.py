"""Weights of a backbone: their safetensors file, their fingerprint, and the error for those of another architecture."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.backbones.backbone import BackboneError

HEAD_NAME = "head"


def read_safetensors(path: str) -> dict[str, Tensor]:
    """Read the tensors of a file; raises BackboneError."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"'{path}' is not a readable safetensors file: {error}") from error


def read_weights(path: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, without those of its classifier head.

    Raises:
        BackboneError: if the path is relative, no file is there or it is no safetensors file.
    """
    if not Path(path).is_absolute():
        raise BackboneError(f"the path of the weights must be absolute, got '{path}'")
    if not Path(path).is_file():
        raise BackboneError(f"there is no weights file at '{path}'")
    return {name: tensor for name, tensor in read_safetensors(path).items() if name.split(".")[0] != HEAD_NAME}


def weights_bytes(module: nn.Module, **metadata: str) -> bytes:
    """Return the safetensors file that :func:`read_weights` reads: the weights of ``module`` without its head."""
    state = {name: value for name, value in module.state_dict().items() if name.split(".")[0] != HEAD_NAME}
    return save({name: value.detach().cpu().contiguous() for name, value in state.items()}, metadata or None)


def fingerprint(module: nn.Module, head_name: str = HEAD_NAME) -> str:
    """Return the SHA-256 (hex) of the sorted names, types, shapes and bytes of all weights but the head's.

    It does not depend on the number of classes, the device or the head's weights; it does on every other bit.
    """
    digest = hashlib.sha256()
    tensors = dict(chain(module.named_parameters(), module.named_buffers()))
    for name in sorted(tensors):
        if name.split(".")[0] != head_name:
            values = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def misfit(path: str, name: str, reason: str) -> BackboneError:
    """Return the error for weights of another architecture; ``reason`` is the message of torch or timm."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    first = " ".join(lines[1:2] or lines)[:200]
    return BackboneError(f"the weights in '{path}' are not those of '{name}': {first}")

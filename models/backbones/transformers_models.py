"""Models of transformers: from the hub, a directory or a safetensors file, never with code from the repository."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils import logging as hf_logging

from models.backbones.backbone import BackboneError, Request
from models.backbones.timm_models import HF_PREFIX
from models.backbones.transforms import ImageTransform
from models.backbones.weights import misfit, read_safetensors

log = logging.getLogger(__name__)
HALF = (0.5, 0.5, 0.5)
UNUSED = ("pooler.", "head.", "classifier.")
"""Prefixes of parts that no family uses and a checkpoint may lack."""


def model_type(request: Request) -> str:
    """Return transformers' name of the architecture, or an empty one for a model that is not named ``hf:...``.

    Raises:
        BackboneError: the name leads to no configuration, or to one that transformers does not know.
    """
    if not request.name.startswith(HF_PREFIX):
        return ""
    return str(read_config(place_of(request), request.revision).model_type)


def place_of(request: Request) -> str:
    """Return where configuration and tokenizer are: the directory of the weights, if it has them, else the name."""
    weights = Path(request.weights)
    directory = weights if weights.is_dir() else weights.parent
    if request.weights and (directory / "config.json").is_file():
        return str(directory)
    return request.name.removeprefix(HF_PREFIX)


@lru_cache(maxsize=8)
def read_config(place: str, revision: str = "") -> PretrainedConfig:
    """Read a model's configuration; raises BackboneError."""
    if not revision and not Path(place).is_dir():
        log.warning("'%s' is taken as it is on the hub today; model.revision names a commit", place)
    try:
        return cast(
            PretrainedConfig, AutoConfig.from_pretrained(place, trust_remote_code=False, **_pinned(place, revision))
        )
    except Exception as error:  # the hub's client raises from half a dozen unrelated hierarchies
        raise _unreachable(place, "configuration", error) from error


def load_encoder(auto_class: Any, request: Request) -> nn.Module:
    """Return the model in float32 with all weights that it uses.

    Raises:
        BackboneError: the weights cannot be had, or some that are needed are missing.
    """
    place = place_of(request)
    state = read_safetensors(request.weights) if Path(request.weights).is_file() else None
    config, pinned = read_config(place, request.revision), _pinned(place, request.revision)
    options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    try:
        with _no_progress_bar():
            if state is None:
                model, info = auto_class.from_pretrained(place, trust_remote_code=False, **pinned, **options)
            else:
                with torch.device("meta"):
                    own_class: Any = type(auto_class.from_config(options["config"]))
                model, info = own_class.from_pretrained(None, state_dict=state, **options)
    except Exception as error:
        raise _unreachable(place, "weights", error) from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(UNUSED))
    if missing or info.get("mismatched_keys"):
        reason = f"{missing[0]} is missing" if missing else "some have another shape"
        raise misfit(request.weights or place, request.name, reason)
    return cast(nn.Module, model)


def load_tokenizer(request: Request) -> Any:
    """Return the model's own fast tokenizer, padding on the right; raises BackboneError."""
    place = place_of(request)
    pinned = _pinned(place, request.revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, use_fast=True, **pinned)
    except Exception as error:
        raise _unreachable(place, "tokenizer", error) from error
    if not tokenizer.is_fast:
        raise BackboneError(
            f"the tokenizer of '{place}' is not a fast tokenizer; save it once with tokenizer.json beside the model"
        )
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def num_patches(request: Request, config: Any) -> int:
    """Return how many patches of a vision model an image has; raises BackboneError for a size that does not fit."""
    if request.image_size % config.patch_size:
        raise BackboneError(
            f"'{request.name}' needs an image size that is a multiple of {config.patch_size} px, "
            f"got {request.image_size} px"
        )
    return int((request.image_size // config.patch_size) ** 2)


def image_transform(request: Request) -> ImageTransform:
    """Return the normalisation that the model's preprocessor declares; without one, mean and deviation are a half."""
    try:
        place = place_of(request)
        declared, _ = ImageProcessingMixin.get_image_processor_dict(place, **_pinned(place, request.revision))
    except (OSError, ValueError):
        declared = {}
    mean, std = declared.get("image_mean", HALF), declared.get("image_std", HALF)
    return ImageTransform(request.name, request.image_size, 3, tuple(mean), tuple(std))


def _pinned(place: str, revision: str) -> dict[str, str]:
    """Return what pins a place on the hub to a commit; a directory of this machine has none."""
    return {"revision": revision} if revision and not Path(place).is_dir() else {}


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    progress: Any = hf_logging
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            progress.enable_progress_bar()


def _unreachable(place: str, what: str, error: Exception) -> BackboneError:
    first = (str(error).strip().splitlines() or [""])[0][:160]
    return BackboneError(
        f"the {what} of '{place}' could not be loaded ({type(error).__name__}: {first}); connect to the hub, or set "
        "model.weights to the absolute path of a directory with config.json, model.safetensors and the tokenizer"
    )

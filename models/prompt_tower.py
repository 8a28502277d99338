"""The text tower of CLIP and SigLIP over the names of the classes: the weights of a linear head on image features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbone import Request
from models.transformers_models import load_tokenizer

MASKED = ("clip",)
"""Model types whose text tower is told which tokens are padding; SigLIP's was trained to see them."""


class PromptTower(nn.Module):
    """Text tower, projection and logit scale of ``model`` with the prompts of the classes of ``request``."""

    def __init__(self, model: Any, request: Request) -> None:
        super().__init__()
        self.model, self.logit_scale = model.text_model, model.logit_scale
        self.projection = getattr(model, "text_projection", nn.Identity())
        self._prompts = _encoded(model.config, request)

    def forward(self) -> Tensor:
        """Return logit scale times the unit features of the classes' prompts, (classes, d)."""
        device = self.logit_scale.device
        output = self.model(**{name: one.to(device) for name, one in self._prompts.items()})
        return torch.as_tensor(self.logit_scale.exp() * F.normalize(self.projection(output.pooler_output), dim=1))


def _encoded(config: Any, request: Request) -> dict[str, Tensor]:
    prompts = [request.prompt.format(name.replace("_", " ")) for name in request.class_names]
    length = config.text_config.max_position_embeddings
    encoded = load_tokenizer(request)(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    wanted = ("input_ids", "attention_mask") if config.model_type in MASKED else ("input_ids",)
    return {name: torch.as_tensor(encoded[name]) for name in wanted}

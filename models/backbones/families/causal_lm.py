"""Causal language models of the Llama kind (Llama, Mistral, Qwen2, Qwen3) for instruction data.

What is learned is the next token of each response; accuracy is that of tokens. The adapter's linear head is not
part of the model: it stays zero, so that adapters of all families have one form. Texts are padded on the right, so a
causal mask alone keeps padding from every real token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from models.backbones.backbone import NO_TARGET, Backbone, Request, block_list, zero_head
from models.backbones.split_model import SplitModel, TransformersFamily, first_output, mean_of_tokens, split_backbone
from models.backbones.transformers_models import load_encoder, load_tokenizer
from models.backbones.transforms import RESPONSE, InstructionTransform


class LanguageModel(SplitModel):
    """A causal language model, and a linear head that it does not use."""

    blocks = "language_model.model.layers"
    language_model: Any

    def __init__(self, language_model: Any, num_classes: int) -> None:
        super().__init__()
        self.language_model = language_model
        self.classifier = zero_head(language_model.config.hidden_size, num_classes)

    def embed(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedded tokens (n, t, d) and the mask (n, t), for ids and roles (n, 2, t)."""
        return self.language_model.model.embed_tokens(inputs[:, 0]), (inputs[:, 1] > 0).long()

    def run(self, hidden: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
        """Run the blocks with a causal mask and rotary positions."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotary = self.language_model.model.rotary_emb(hidden, position_ids=positions)
        future = torch.full((hidden.shape[1],) * 2, torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
        given = {"attention_mask": future[None, None], "position_embeddings": rotary, "position_ids": positions}
        for block in block_list(self, self.blocks)[first:last]:
            hidden = first_output(block(hidden, **given))
        return hidden

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over each text's tokens."""
        return mean_of_tokens(self.language_model.model.norm(hidden), mask)

    def logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return logits (n, vocabulary, t) of the next token."""
        return torch.as_tensor(self.language_model.lm_head(self.language_model.model.norm(hidden)).mT)

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states (n, t, d) and mask (n, t), padding included, since every token has a target."""
        return tokens[:, :, :-1], tokens[:, :, -1]


def build(request: Request) -> Backbone:
    """Build the model with its tokenizer."""
    model: Any = load_encoder(AutoModelForCausalLM, request)
    limit = min(request.max_length, int(model.config.max_position_embeddings))
    backbone = split_backbone(
        request,
        LanguageModel(model, request.num_classes),
        InstructionTransform(request.name, load_tokenizer(request), limit),
        embed_dim=model.config.hidden_size,
        num_tokens=limit,
        num_heads=model.config.num_attention_heads,
    )
    return replace(backbone, targets=next_tokens)


FAMILY = TransformersFamily(("llama", "mistral", "qwen2", "qwen3"), build)


def next_tokens(inputs: Tensor, labels: Tensor) -> Tensor:
    """Return for ids and roles (n, 2, t) the token after each (n, t); NO_TARGET unless it is of a response."""
    ids, roles = inputs.unbind(dim=1)
    targets = torch.full_like(ids, NO_TARGET)
    targets[:, :-1] = torch.where(roles[:, 1:] == RESPONSE, ids[:, 1:], NO_TARGET)
    return targets

"""Causal language models of the Llama kind (Llama, Mistral, Qwen2, Qwen3) for instruction data.

What is learned is the next token of each response; accuracy is that of tokens. The adapter's linear head is not
part of the model: it stays zero, so that adapters of all families have one form.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from models.backbones.backbone import (
    NO_TARGET,
    Backbone,
    Request,
    block_list,
    checked_first_block,
    fingerprint,
    frozen,
    linear_kinds,
    zero_head,
)
from models.backbones.transformers_models import load_encoder, load_tokenizer, model_type
from models.backbones.transforms import RESPONSE, InstructionTransform, pack

KINDS = ("llama", "mistral", "qwen2", "qwen3")
BLOCKS = "language_model.model.layers"


class LanguageModel(nn.Module):
    """A causal language model beside a linear head that it does not use."""

    def __init__(self, language_model: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.language_model, self.classifier = language_model, head

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ids and roles (n, 2, t) to logits (n, vocabulary, t) of the next token."""
        return FAMILY.forward_suffix(self, FAMILY.embed_prefix(self, inputs, 0), 0)


class CausalLM:
    """Texts are padded on the right, so a causal mask alone keeps padding from every real token."""

    def claims(self, request: Request) -> bool:
        """Claim the language models named above."""
        return model_type(request) in KINDS

    def build(self, request: Request) -> Backbone:
        """Build the model; every linear layer of its blocks is adapted."""
        model: Any = load_encoder(AutoModelForCausalLM, request)
        width = int(model.config.hidden_size)
        module = frozen(LanguageModel(model, zero_head(width, request.num_classes)))
        limit = min(request.max_length, int(model.config.max_position_embeddings))
        transform = InstructionTransform(request.name, load_tokenizer(request), limit)
        return Backbone(
            name=request.name,
            module=module,
            fingerprint=transform.fingerprint(fingerprint(module, "classifier")),
            anatomy=self,
            transform=transform,
            blocks=BLOCKS,
            target_modules=linear_kinds(module, BLOCKS),
            head_name="classifier",
            embed_dim=width,
            num_tokens=limit,
            targets=next_tokens,
        )

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return packed hidden states and mask (n, t, d + 1) for ids and roles (n, 2, t)."""
        decoder, count = _decoder(module), len(block_list(module, BLOCKS))
        hidden = decoder.embed_tokens(inputs[:, 0])
        return pack(_run(module, hidden, 0, checked_first_block(first_block, count)), (inputs[:, 1] > 0).long())

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, vocabulary, t) of the next token for packed tokens (n, t, d + 1)."""
        return torch.as_tensor(cast(Any, module).language_model.lm_head(_last(module, tokens, first_block)).mT)

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return the mean over each text's tokens (n, d) for packed tokens (n, t, d + 1)."""
        mask = tokens[:, :, -1:]
        return (_last(module, tokens, first_block) * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


FAMILY = CausalLM()


def next_tokens(inputs: Tensor, labels: Tensor) -> Tensor:
    """Return for ids and roles (n, 2, t) the token after each (n, t); NO_TARGET unless it is of a response."""
    ids, roles = inputs.unbind(dim=1)
    targets = torch.full_like(ids, NO_TARGET)
    targets[:, :-1] = torch.where(roles[:, 1:] == RESPONSE, ids[:, 1:], NO_TARGET)
    return targets


def _decoder(module: nn.Module) -> Any:
    return cast(Any, module).language_model.model


def _last(module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
    count = len(block_list(module, BLOCKS))
    hidden = _run(module, tokens[:, :, :-1], checked_first_block(first_block, count), count)
    return torch.as_tensor(_decoder(module).norm(hidden))


def _run(module: nn.Module, hidden: Tensor, first: int, last: int) -> Tensor:
    positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
    rotary = _decoder(module).rotary_emb(hidden, position_ids=positions)
    future = torch.full((hidden.shape[1],) * 2, torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
    for block in block_list(module, BLOCKS)[first:last]:
        output = block(hidden, attention_mask=future[None, None], position_embeddings=rotary, position_ids=positions)
        hidden = torch.as_tensor(output[0] if isinstance(output, tuple) else output)
    return hidden

"""Text classifiers on transformers' encoders: BERT, MiniLM, RoBERTa, ELECTRA, DistilBERT, DeBERTa-v2/v3."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel

from models.backbones.backbone import (
    Backbone,
    Request,
    block_list,
    checked_first_block,
    fingerprint,
    frozen,
    linear_kinds,
    list_of_blocks,
    zero_head,
)
from models.backbones.transformers_models import load_encoder, load_tokenizer, model_type
from models.backbones.transforms import TextTransform, additive_mask, longest, pack, unpack

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
DEBERTA = "deberta-v2"


class TextClassifier(nn.Module):
    """An encoder, the mean over its last tokens, and a linear head."""

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, head
        self.blocks = list_of_blocks(encoder, encoder.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ids and mask (n, 2, t) to logits (n, classes)."""
        return FAMILY.forward_suffix(self, FAMILY.embed_prefix(self, inputs, 0), 0)


class HfText:
    """Encoders that read a text in both directions; features are the mean over the tokens of the text."""

    def claims(self, request: Request) -> bool:
        """Claim the encoders named above."""
        return model_type(request) in (*BERT_LIKE, DEBERTA)

    def build(self, request: Request) -> Backbone:
        """Build the encoder without its pooler; every linear layer of its blocks is adapted."""
        encoder: Any = load_encoder(AutoModel, request)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        width = int(encoder.config.hidden_size)
        module = TextClassifier(encoder, zero_head(width, request.num_classes))
        frozen(module)
        tokenizer = load_tokenizer(request)
        limit = min(request.max_length, tokenizer.model_max_length, _positions(encoder.config))
        transform = TextTransform(request.name, tokenizer, limit)
        return Backbone(
            name=request.name,
            module=module,
            fingerprint=transform.fingerprint(fingerprint(module, "classifier")),
            anatomy=self,
            transform=transform,
            blocks=f"encoder.{module.blocks}",
            target_modules=linear_kinds(encoder, module.blocks),
            head_name="classifier",
            embed_dim=width,
            num_tokens=limit,
        )

    def embed_prefix(self, module: nn.Module, inputs: Tensor, first_block: int) -> Tensor:
        """Return packed hidden states and mask (n, t, d + 1) for ids and mask (n, 2, t)."""
        encoder, mask = cast(Any, module).encoder, inputs[:, 1]
        short = mask[:, : longest(mask)]
        extra = {"mask": short} if encoder.config.model_type == DEBERTA else {}
        hidden = encoder.embeddings(input_ids=inputs[:, 0, : short.shape[1]], **extra)
        if hasattr(encoder, "embeddings_project"):
            hidden = encoder.embeddings_project(hidden)
        checked_first_block(first_block, len(_blocks(module)))
        return pack(_run(module, hidden, short, 0, first_block), mask)

    def forward_suffix(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return logits (n, classes) for packed tokens (n, t, d + 1)."""
        return torch.as_tensor(cast(Any, module).classifier(self.pooled_features(module, tokens, first_block)))

    def pooled_features(self, module: nn.Module, tokens: Tensor, first_block: int) -> Tensor:
        """Return the mean over each text's tokens (n, d) for packed tokens (n, t, d + 1)."""
        hidden, mask = unpack(tokens)
        count = len(_blocks(module))
        last = _run(module, hidden, mask, checked_first_block(first_block, count), count)
        return (last * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp_min(1)


FAMILY = HfText()


def _blocks(module: nn.Module) -> nn.ModuleList | nn.Sequential:
    owner = cast(Any, module)
    return block_list(owner.encoder, owner.blocks)


def _run(module: nn.Module, hidden: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
    encoder = cast(Any, module).encoder
    if encoder.config.model_type == DEBERTA:
        return _run_deberta(encoder.encoder, hidden, mask, first, last)
    added = additive_mask(mask, hidden.dtype)
    for block in _blocks(module)[first:last]:
        hidden = _first(block(hidden, added))
    return hidden


def _run_deberta(encoder: Any, hidden: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
    """Attention by content and relative position; some models have a convolution beside their first block."""
    attention, relative = encoder.get_attention_mask(mask), encoder.get_rel_pos(hidden)
    embeddings = encoder.get_rel_embedding()
    for index in range(first, last):
        before = hidden
        hidden = _first(encoder.layer[index](hidden, attention, relative_pos=relative, rel_embeddings=embeddings))
        if index == 0 and encoder.conv is not None:
            hidden = encoder.conv(before, hidden, mask)
    return hidden


def _first(output: Any) -> Tensor:
    return torch.as_tensor(output[0] if isinstance(output, tuple) else output)


def _positions(config: Any) -> int:
    """Return the longest text that the position embeddings reach; RoBERTa's start behind its padding index."""
    reserved = int(config.pad_token_id) + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return int(config.max_position_embeddings) - reserved

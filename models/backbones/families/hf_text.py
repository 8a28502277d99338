"""Text classifiers on transformers' encoders: BERT, MiniLM, RoBERTa, ELECTRA, DistilBERT, DeBERTa-v2/v3.

They read a text in both directions; features are the mean over the tokens of the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from models.backbones import ragged_texts
from models.backbones.backbone import Backbone, Request, block_list
from models.backbones.split_model import (
    EncoderModel,
    TransformersFamily,
    first_output,
    longest,
    mean_of_tokens,
    split_backbone,
)
from models.backbones.transformers_models import load_encoder, load_tokenizer
from models.backbones.transforms import TextTransform

ROBERTA_LIKE = ("roberta", "xlm-roberta", "camembert")
DEBERTA = "deberta-v2"


class TextClassifier(EncoderModel):
    """An encoder, the mean over its last tokens, and a linear head."""

    def embed(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states (n, s, d) up to the longest text and the mask (n, t), for ids and mask (n, 2, t)."""
        ids, mask = inputs.unbind(dim=1)
        length = longest(mask)
        extra = {"mask": mask[:, :length]} if self.encoder.config.model_type == DEBERTA else {}
        hidden = self.encoder.embeddings(input_ids=ids[:, :length], **extra)
        if hasattr(self.encoder, "embeddings_project"):
            hidden = self.encoder.embeddings_project(hidden)
        return hidden, mask

    def run(self, hidden: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
        """Run the blocks, padding masked in their attention or left out."""
        mask = mask[:, : hidden.shape[1]]
        if self.encoder.config.model_type == DEBERTA:
            return _run_deberta(self.encoder.encoder, hidden, mask, first, last)
        blocks = block_list(self, self.blocks)[first:last]
        if ragged_texts.worth_it(mask):
            return ragged_texts.run_in_rows(partial(_run_blocks, blocks), hidden, mask)
        added = (1 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        return _run_blocks(blocks, hidden, added)

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the mean over each text's tokens."""
        return mean_of_tokens(hidden, mask)

    def unpack(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states and mask up to the longest text."""
        mask = tokens[:, :, -1]
        length = longest(mask)
        return tokens[:, :length, :-1], mask[:, :length]


def build(request: Request) -> Backbone:
    """Build the encoder with its tokenizer."""
    encoder: Any = load_encoder(AutoModel, request)
    tokenizer = load_tokenizer(request)
    limit = min(request.max_length, tokenizer.model_max_length, _positions(encoder.config))
    return split_backbone(
        request,
        TextClassifier(encoder, request.num_classes),
        TextTransform(request.name, tokenizer, limit),
        embed_dim=encoder.config.hidden_size,
        num_tokens=limit,
        num_heads=encoder.config.num_attention_heads,
    )


FAMILY = TransformersFamily(("bert", "electra", "distilbert", *ROBERTA_LIKE, DEBERTA), build)


def _run_blocks(blocks: Iterable[Any], hidden: Tensor, added: Tensor) -> Tensor:
    for block in blocks:
        hidden = first_output(block(hidden, added))
    return hidden


def _run_deberta(encoder: Any, hidden: Tensor, mask: Tensor, first: int, last: int) -> Tensor:
    """Attention is by content and relative position; some models have a convolution next to their first block."""
    attention, relative = encoder.get_attention_mask(mask), encoder.get_rel_pos(hidden)
    embeddings = encoder.get_rel_embedding()
    for index in range(first, last):
        before = hidden
        hidden = first_output(encoder.layer[index](hidden, attention, relative_pos=relative, rel_embeddings=embeddings))
        if index == 0 and encoder.conv is not None:
            hidden = encoder.conv(before, hidden, mask)
    return hidden


def _positions(config: Any) -> int:
    """Return the longest text that the position embeddings reach; RoBERTa's start behind its padding index."""
    reserved = int(config.pad_token_id) + 1 if config.model_type in ROBERTA_LIKE else 0
    return int(config.max_position_embeddings) - reserved

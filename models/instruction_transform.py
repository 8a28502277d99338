"""Prompts with responses as a causal language model takes them: token ids, and which of them are to be learned."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.backbone import Inputs
from models.text_transform import TextTransform

SEPARATOR = "\x1f"
"""Stands between prompt and response in a text; a text without one is all response."""
PROMPT, RESPONSE = 1, 2

log = logging.getLogger(__name__)


class InstructionTransform(TextTransform):
    """Turns n texts into ids and roles (n, 2, t) int64: role 1 is the prompt, 2 the response, 0 padding.

    A response ends with the end-of-text token where the tokenizer has one. What is longer than ``max_length`` is cut
    at its end, and the log says how many texts were.
    """

    def __call__(self, inputs: Inputs) -> Tensor:
        """Raise BackboneError for images."""
        samples = [self._encode(text) for text in self.texts(inputs)]
        longer = sum(len(ids) > self.max_length for ids, _ in samples)
        if longer:
            log.info("%d of %d texts are longer than %d tokens and truncated", longer, len(samples), self.max_length)
        columns = [pad_sequence([torch.tensor(one[: self.max_length]) for one in part], batch_first=True)
                   for part in zip(*samples, strict=True)]  # fmt: skip
        return torch.stack(columns, dim=1)

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        before, separator, after = text.partition(SEPARATOR)
        prompt, response = (before, after) if separator else ("", before)
        start = self.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        learned = self.tokenizer(response, add_special_tokens=False)["input_ids"] + end
        return start + learned, [PROMPT] * len(start) + [RESPONSE] * len(learned)

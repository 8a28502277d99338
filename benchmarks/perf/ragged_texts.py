"""Local training and evaluation on short texts, laid end to end and padded (:mod:`models.backbones.ragged_texts`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from benchmarks.perf.measure import Comparison, in_turns
from models.adapters.adapted_model import AdaptedModel
from models.adapters.optimizers import OptimizerSpec
from models.adapters.training import LocalTrainer, TokenSet, evaluate
from models.backbones import ragged_texts
from models.backbones.loading import build_backbone

CLASSES, SAMPLES, STEPS, BATCH, LAST_BLOCKS = 150, 64, 5, 16, 2
LENGTHS = 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 14, 15, 17, 22
"""Tokens of a text: quantiles of CLINC150's requests."""
TOLERANCE = 1e-3
CASE = f"MiniLM's shape, texts of {min(LENGTHS)} to {max(LENGTHS)} tokens end to end"


def run(repeats: int) -> Iterator[Comparison]:
    """Yield the comparisons of local steps and of an evaluation.

    Raises:
        ValueError: the two do not end with the same loss.
    """
    model = _model()
    counts = [LENGTHS[one] for one in torch.randint(0, len(LENGTHS), (SAMPLES,), generator=_chance())]
    with torch.no_grad():
        tokens = model.embed(model.backbone.prepare([" ".join(["word"] * count) for count in counts]))
    samples = TokenSet(tokens, torch.randint(0, CLASSES, (SAMPLES,), generator=_chance()))

    def train() -> float:
        model.load(model.initialise(0))
        optimizer = OptimizerSpec("adamw", 1e-3, 0.0)
        return LocalTrainer(model, samples, optimizer=optimizer, batch_size=BATCH, seed=0).run(STEPS)

    for what, call in ((f"{STEPS} local steps", train), ("an evaluation", lambda: evaluate(model, samples)[1])):
        sides = {"padded": _padded(call), "rows": call}
        losses = [one() for one in sides.values()]
        if abs(losses[0] - losses[1]) > TOLERANCE:
            raise ValueError(f"the losses of padded texts and of texts in rows are {losses[0]:g} and {losses[1]:g}")
        seconds = in_turns(sides, repeats)
        ratio = seconds["padded"] / seconds["rows"]
        yield Comparison(
            "ragged_texts", f"{what}, {CASE}", "padded", seconds["padded"], seconds["rows"], "s", ratio, "", repeats
        )


def _padded(call: Callable[[], float]) -> Callable[[], float]:
    def without_rows() -> float:
        with patch.object(ragged_texts, "worth_it", lambda mask: False):
            return call()

    return without_rows


def _model() -> AdaptedModel:
    """Return an encoder of MiniLM's shape with weights drawn at random, and a tokenizer of one word."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = hf.BertConfig(vocab_size=3, hidden_size=384, num_hidden_layers=LAST_BLOCKS + 1, num_attention_heads=12,
                               intermediate_size=1536)  # fmt: skip
        hf.BertModel(config).save_pretrained(folder)
        words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))
        words.pre_tokenizer = Whitespace()
        tokenizer: Any = hf.PreTrainedTokenizerFast
        tokenizer(tokenizer_object=words, pad_token="[PAD]").save_pretrained(folder)
        backbone = build_backbone(name=f"hf:{folder}", weights="", image_size=24, num_classes=CLASSES)
    return AdaptedModel(backbone, rank=4, alpha=8.0, last_blocks=LAST_BLOCKS)


def _chance() -> torch.Generator:
    return torch.Generator().manual_seed(0)

"""A small causal language model, trained from scratch on a few megabytes of text on one core.

It stands in for a pretrained one where none can be had: a Llama of some two million weights with a byte-level BPE
vocabulary of its own texts. What it knows is told against a unigram model of the same tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.result import write_json
from hyperlora.storage.files import storage_errors

END = "<|endoftext|>"
KNOWN = "training.json"
SCORED_AT_ONCE, SAID_EVERY = 32, 100


@dataclass(frozen=True)
class Size:
    """How large the model is, and how long it learns."""

    vocabulary: int = 4000
    layers: int = 4
    width: int = 192
    heads: int = 4
    positions: int = 256
    length: int = 128
    batch: int = 8
    steps: int = 3200
    learning_rate: float = 3e-3


def learn_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer of ``vocabulary`` tokens at most; every text begins with a space in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def in_blocks(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Return the texts one after the other, each with its end token, in pieces (n, length); a rest is dropped."""
    ids = [[*one, tokenizer.eos_token_id] for one in tokenizer(list(texts))["input_ids"]]
    flat = torch.tensor([token for one in ids for token in one])
    return flat[: len(flat) // length * length].view(-1, length)


def fresh_model(size: Size, end: int, vocabulary: int) -> LlamaForCausalLM:
    """Return a Llama with random weights, of the global generator, and embeddings that are its last layer too."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3 // 8 * 8,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, blocks: Tensor, size: Size, seed: int, say: Callable[[str], None]) -> list[float]:
    """Train ``model`` on the pieces (n, t), drawn in epochs of random order; return the loss of every step in nats.

    AdamW with a warm-up over a twentieth of the steps and a cosine to a tenth of the rate.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, size.steps))
    order, losses, began = _endless(len(blocks), size.batch, seed), [], time.monotonic()
    model.train()
    for step in range(1, size.steps + 1):
        batch = blocks[next(order)]
        loss = F.cross_entropy(model(batch).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % SAID_EVERY == 0 or step == size.steps:
            recent = losses[-SAID_EVERY:]
            say(f"step {step} of {size.steps}, loss {sum(recent) / len(recent):.3f}, {time.monotonic() - began:.0f} s")
    return losses


def rate_at(step: int, steps: int) -> float:
    """Return the factor on the learning rate before step ``step``, from 0."""
    warm = max(steps // 20, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * min((step - warm) / max(steps - warm, 1), 1.0))


def _endless(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    while True:
        drawn = torch.split(torch.randperm(count, generator=chance), batch)
        yield from (one for one in drawn if len(one) == min(batch, count))


@torch.inference_mode()
def mean_loss(model: LlamaForCausalLM, blocks: Tensor) -> float:
    """Return the mean cross-entropy in nats of every token of the pieces (n, t) but the first of each."""
    model.train(False)
    total = 0.0
    for batch in torch.split(blocks, SCORED_AT_ONCE):
        logits = model(batch).logits[:, :-1].flatten(0, 1)
        total += float(F.cross_entropy(logits, batch[:, 1:].flatten(), reduction="sum"))
    return total / blocks[:, 1:].numel()


def unigram_loss(trained_on: Tensor, blocks: Tensor, vocabulary: int) -> float:
    """Return the cross-entropy in nats of a unigram model with one pseudo-count, on the tokens of :func:`mean_loss`."""
    counts = torch.bincount(trained_on.flatten(), minlength=vocabulary).double() + 1.0
    return float(-(counts / counts.sum()).log()[blocks[:, 1:]].mean())


def make_model(
    folder: Path, texts: Sequence[str], held_out: Sequence[str], size: Size, say: Callable[[str], None], seed: int = 0
) -> dict[str, Any]:
    """Train a model, save it with its tokenizer and what it reached in ``folder``, and return the latter.

    Args:
        folder: where.
        texts: to learn from, the vocabulary too.
        held_out: texts that are scored at the end and used for nothing else.
        size: of the model.
        say: is told how far it is.
        seed: of the weights and of the order of the texts.

    Returns:
        sizes, seconds, and held-out losses in nats per token and perplexities, of the model and of a unigram model.

    Raises:
        StorageError: the folder cannot be written.
    """
    began = time.monotonic()
    tokenizer = learn_tokenizer(texts, size.vocabulary)
    blocks, test = (in_blocks(tokenizer, part, size.length) for part in (texts, held_out))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = fresh_model(size, int(tokenizer.eos_token_id), len(tokenizer))
    weights = sum(one.numel() for one in model.parameters())
    say(f"{weights:,} weights, {blocks.numel():,} tokens, {size.steps * size.batch / len(blocks):.1f} epochs")
    train(model, blocks, size, seed, say)
    figures = {
        **asdict(size),
        "weights": weights,
        "tokens": blocks.numel(),
        "held_out_tokens": test[:, 1:].numel(),
        "seconds": time.monotonic() - began,
        "loss": mean_loss(model, test),
        "unigram_loss": unigram_loss(blocks, test, len(tokenizer)),
    }
    figures |= {name.replace("loss", "perplexity"): math.exp(figures[name]) for name in ("loss", "unigram_loss")}
    with storage_errors(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_json(folder / KNOWN, figures)
    return figures

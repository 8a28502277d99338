"""Local training steps of causal language models: through the product's family, and transformers' model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.gpu.bench import Bench, Case, Figures, training_work
from benchmarks.gpu.vit import RANK, RATE, plain_loop
from models.adapters.adapted_model import AdaptedModel
from models.adapters.optimizers import OptimizerSpec
from models.adapters.training import LocalTrainer, TokenSet

LENGTH, BATCH, SAMPLES = 512, 4, 8
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPES: dict[str, tuple[str, dict[str, int]]] = {
    "0.5B (Qwen2.5)": ("qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
                                 "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936}),
    "1B (Llama 3.2)": ("llama", {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
                                 "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256}),
}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": 64}  # fmt: skip


def cases(bench: Bench) -> Iterator[Case]:
    """Yield steps in bfloat16 of both sizes, the product's and then PEFT's."""
    for size, (kind, shape) in SHAPES.items():
        for who, steps in {"product": _product_steps, "PEFT alone": _plain_steps}.items():
            measure = partial(_measured, bench, steps, kind, TINY if bench.tiny else shape)
            yield f"{who}, {size}", measure


def _measured(bench: Bench, steps: Callable[..., Any], kind: str, shape: dict[str, int]) -> Figures:
    length = 16 if bench.tiny else LENGTH
    made, network = steps(bench, random_language_model(bench, kind, shape), length)
    rows = BATCH * length
    work = training_work(
        network,
        rows=rows,
        head_rows=rows,
        length=length,
        width=shape["hidden_size"],
        blocks=shape["num_hidden_layers"],
    )
    return bench.step_figures(made, work=work, items=rows, unit="tokens/s")


def random_language_model(bench: Bench, kind: str, shape: dict[str, int]) -> Any:
    """Return a frozen causal model of transformers with weights drawn on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **shape, max_position_embeddings=2048, tie_word_embeddings=True)
    causal: Any = AutoModelForCausalLM
    with torch.device(bench.device):
        model: Any = causal.from_config(config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


def _product_steps(bench: Bench, language_model: Any, length: int) -> tuple[Callable[[int], object], Any]:
    backbone = _backbone(language_model, length)
    model = AdaptedModel(backbone, rank=RANK, alpha=2.0 * RANK, last_blocks=backbone.num_blocks)
    model.to(bench.device, half=True)
    inputs = _inputs(bench, language_model.config.vocab_size, length)
    samples = TokenSet(model.embed(inputs).cpu(), backbone.targets(inputs, inputs[:, 0, 0]).cpu())
    optimizer = OptimizerSpec("adamw", RATE, 0.0)
    trainer = LocalTrainer(model, samples, optimizer=optimizer, batch_size=BATCH, seed=0)
    return trainer.run, model.network


def _backbone(language_model: Any, length: int) -> Any:
    """Return the family's backbone around a model that has no directory: no tokenizer, and nothing is hashed."""
    from models.backbones.backbone import Backbone, linear_kinds
    from models.backbones.families.causal_lm import LanguageModel, next_tokens
    from models.backbones.split_model import SPLIT

    module = LanguageModel(language_model, 2).requires_grad_(False).eval()
    return Backbone(
        name="random",
        module=module,
        fingerprint="random",
        anatomy=SPLIT,
        transform=lambda inputs: torch.as_tensor(inputs),
        blocks=module.blocks,
        target_modules=linear_kinds(module, module.blocks),
        head_name="classifier",
        embed_dim=language_model.config.hidden_size,
        num_tokens=length,
        num_heads=language_model.config.num_attention_heads,
        targets=next_tokens,
    )


def _plain_steps(bench: Bench, language_model: Any, length: int) -> tuple[Callable[[int], object], Any]:
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=list(KINDS))
    model: Any = get_peft_model(language_model, config)
    ids = _inputs(bench, language_model.config.vocab_size, length)[:BATCH, 0].to(bench.device)

    def loss() -> torch.Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return torch.as_tensor(model(input_ids=ids, labels=ids, use_cache=False).loss)

    return plain_loop(model, loss), model


def _inputs(bench: Bench, vocabulary: int, length: int) -> torch.Tensor:
    """Return ids and roles (n, 2, t) of texts that are all response."""
    from models.backbones.transforms import RESPONSE

    ids = torch.randint(0, vocabulary, (SAMPLES, length), generator=torch.Generator().manual_seed(0))
    return torch.stack([ids, torch.full_like(ids, RESPONSE)], dim=1)

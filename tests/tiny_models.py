"""Tiny, randomly initialised models of every transformers family, written to a directory as the hub would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24
}  # fmt: skip
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "book", "very", "dull", "a", "photo", "of", "cat")
TEXT: dict[str, Any] = {"vocab_size": len(WORDS), "pad_token_id": 0, "max_position_embeddings": 20}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8}
TOKENS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def configurations() -> dict[str, hf.PretrainedConfig]:
    two_towers = {"text_config": SIZES | TEXT | TOKENS, "vision_config": SIZES | IMAGE}
    distil = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
    deberta = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"],
               "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3}  # fmt: skip
    return {
        "bert": hf.BertConfig(**SIZES, **TEXT),
        "roberta": hf.RobertaConfig(**SIZES, **TEXT),
        "electra": hf.ElectraConfig(**SIZES, **TEXT, embedding_size=10),
        "distilbert": hf.DistilBertConfig(**distil, **TEXT),
        "deberta-v2": hf.DebertaV2Config(**SIZES, **TEXT, **deberta),
        "vit": hf.ViTConfig(**SIZES, **IMAGE),
        "dinov2": hf.Dinov2Config(**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, **IMAGE),
        "llama": hf.LlamaConfig(**SIZES, **TEXT | TOKENS),
        "qwen3": hf.Qwen3Config(**SIZES, **TEXT | TOKENS, head_dim=8, num_key_value_heads=1),
        "clip": hf.CLIPConfig(**two_towers, projection_dim=12),
        "siglip": hf.SiglipConfig(**two_towers),
    }


def write_model(kind: str, directory: Path) -> str:
    """Write a tiny model, and a tokenizer where it reads texts; return the directory as ``model.name`` takes it."""
    torch.manual_seed(0)
    auto_class = hf.AutoModelForCausalLM if kind in ("llama", "qwen3") else hf.AutoModel
    auto_class.from_config(configurations()[kind]).save_pretrained(directory)
    if kind not in ("vit", "dinov2"):
        write_tokenizer(directory)
    return f"hf:{directory}"


def write_tokenizer(directory: Path, words: Sequence[str] = WORDS) -> None:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special["eos_token"] = "[SEP]"
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(directory)

"""A tiny random teacher of every family, and of every config option that changes a family's tensors. A new family is a row here."""

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from kdsearch.candidate import Architecture
from kdsearch.students.families import FAMILIES, architecture_of, mistakes
from kdsearch.tasks.batches import Batch
from tests import tiny

LAYERS, HEADS, HEAD_SIZE, FFN, WORDS, POSITIONS, CLASSES = 4, 4, 8, 96, 60, 40, 3
COMMON: dict[str, Any] = {"vocab_size": WORDS, "num_labels": CLASSES, "initializer_range": 0.2}
SIZES = {"num_hidden_layers": LAYERS, "hidden_size": 32, "num_attention_heads": HEADS, "intermediate_size": FFN, **COMMON}
ROTARY = {**SIZES, "max_position_embeddings": POSITIONS}
RELATIVE = {**ROTARY, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OFFSET = {**SIZES, "max_position_embeddings": POSITIONS + 2}
LOCAL = {"cls_token_id": 1, "sep_token_id": 2, **SPECIAL, "local_attention": 6}

CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**ROTARY),
    "roberta": RobertaConfig(**OFFSET),
    "xlm-roberta": XLMRobertaConfig(**OFFSET),
    "distilbert": DistilBertConfig(n_layers=LAYERS, dim=32, n_heads=HEADS, hidden_dim=FFN, max_position_embeddings=POSITIONS, **COMMON),
    "electra": ElectraConfig(**ROTARY, embedding_size=12),
    "electra, not factorised": ElectraConfig(**ROTARY, embedding_size=32),
    "mpnet": MPNetConfig(**OFFSET),
    "deberta": DebertaConfig(**RELATIVE, type_vocab_size=2),
    "deberta, absolute": DebertaConfig(**ROTARY, relative_attention=False),
    "deberta, short relative positions": DebertaConfig(**{**RELATIVE, "pos_att_type": ["c2p"]}, max_relative_positions=7),
    "deberta-v2": DebertaV2Config(**RELATIVE, conv_kernel_size=3, type_vocab_size=2, attention_head_size=HEAD_SIZE, embedding_size=12),
    "deberta-v3": DebertaV2Config(
        **RELATIVE, position_biased_input=False, share_att_key=True, position_buckets=6, norm_rel_ebd="layer_norm"
    ),
    "modernbert": ModernBertConfig(**ROTARY, **LOCAL),
    "modernbert, biases": ModernBertConfig(**ROTARY, **LOCAL, attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True),
    "gpt2": GPT2Config(n_layer=LAYERS, n_embd=32, n_head=HEADS, n_positions=POSITIONS, **COMMON, **SPECIAL),
    "gpt2, its own FFN": GPT2Config(n_layer=LAYERS, n_embd=32, n_head=HEADS, n_inner=FFN, n_positions=POSITIONS, **COMMON, **SPECIAL),
    "llama": LlamaConfig(**ROTARY, num_key_value_heads=2, **SPECIAL),
    "llama, biases": LlamaConfig(**ROTARY, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, **SPECIAL),
    "mistral": MistralConfig(**ROTARY, num_key_value_heads=1, sliding_window=6, **SPECIAL),
    "qwen2": Qwen2Config(**ROTARY, num_key_value_heads=2, use_sliding_window=True, max_window_layers=2, sliding_window=6, **SPECIAL),
}


@cache
def teacher(name: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(17)
        model = AutoModelForSequenceClassification.from_config(CONFIGS[name])
        for part, weight in model.named_parameters():
            if part.endswith("bias"):  # families start them at 0 and norms at 1, where a lost one would not be seen
                torch.nn.init.normal_(weight, std=0.2)
            elif weight.ndim == 1:
                torch.nn.init.normal_(weight, 1.0, 0.2)
    return model.eval()


def batch(config: PretrainedConfig) -> Batch:
    """Rows of 7, 16 and 11 tokens, padded as the model's config says."""
    found = tiny.batch([7, 16, 11], labels=[0, 1, 2])
    ids = (found.input_ids % (WORDS - 5) + 5).masked_fill(found.attention_mask == 0, config.pad_token_id or 0)
    return replace(found, input_ids=ids)


def logits(model: PreTrainedModel) -> torch.Tensor:
    some = batch(model.config)
    with torch.inference_mode():
        return model(input_ids=some.input_ids, attention_mask=some.attention_mask).logits


def architecture(name: str, random: Random) -> Architecture:
    """Any shape that can be cut out of the teacher."""
    config = CONFIGS[name]
    family = FAMILIES[config.model_type]

    def some(low: int, high: int, known: object) -> int | None:
        return random.choice([None, random.randint(low, high)]) if known else None

    while True:
        shape = Architecture(
            layers=random.randint(1, LAYERS),
            heads=random.randint(1, HEADS),
            head_size=random.randint(1, HEAD_SIZE),
            ffn_ratio=random.uniform(0.05, 3),
            kv_heads=some(1, HEADS, family.kv_heads),
            embedding=some(1, 32, family.embedding),
            positions=some(16, POSITIONS, family.positions),
        )
        if not mistakes(shape, config):
            return shape


def of_depth(name: str, layers: int, ffn_ratio: float = 0.0) -> Architecture:
    """The teacher's shape but for its depth, and its FFN if that is given."""
    shape = architecture_of(CONFIGS[name])
    return replace(shape, layers=layers, ffn_ratio=ffn_ratio or shape.ffn_ratio)

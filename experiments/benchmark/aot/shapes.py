"""Well-known encoders, decoders among them, by their shapes alone, with the batch that one accelerator takes of each."""

import dataclasses
from typing import Any

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.config_file import read_config


@dataclasses.dataclass(frozen=True)
class Shape:
    """An encoder, its head, and how many examples of full length a chip gets."""

    config: EncoderConfig
    head: Classifier
    examples: int


def bert(layers: int, width: int, heads: int, examples: int = 32) -> Shape:
    config = EncoderConfig("bert", layers, width, heads, 4 * width, 512, vocabulary=30522, types=2)
    return Shape(config, Classifier(2, "mean", dropout=0.1), examples)


def published(name: str, examples: int = 32, **entries: Any) -> Shape:
    """The shape that the published config.json says, of which these are the ``entries``."""
    return Shape(read_config(entries, name), Classifier(2, "mean", dropout=0.1), examples)


# Devlin et al. 2019 (tiny: Turc et al. 2019; MiniLM: Wang et al. 2020, of six blocks), Dosovitskiy
# et al. 2021, Radford et al. 2019; RoBERTa (Liu et al. 2019), ModernBERT (Warner et al. 2024) and
# Qwen3-8B by their config.json.
SHAPES = {
    "bert-tiny": bert(2, 128, 2, 2),
    "minilm": bert(6, 384, 12, 64),
    "bert-base": bert(12, 768, 12),
    "bert-large": bert(24, 1024, 16),
    "roberta-base": published(
        "roberta-base",
        model_type="roberta",
        num_hidden_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=514,
        vocab_size=50265,
        type_vocab_size=1,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        initializer_range=0.02,
        pad_token_id=1,
    ),
    "modernbert-base": published(
        "modernbert-base",
        model_type="modernbert",
        num_hidden_layers=22,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=1152,
        max_position_embeddings=8192,
        vocab_size=50368,
        hidden_activation="gelu",
        norm_eps=1e-5,
        norm_bias=False,
        mlp_bias=False,
        attention_bias=False,
        mlp_dropout=0.0,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        global_attn_every_n_layers=3,
        local_attention=128,
        global_rope_theta=160000.0,
        local_rope_theta=10000.0,
        initializer_range=0.02,
        pad_token_id=50283,
    ),
    "vit-l16": Shape(
        EncoderConfig(
            "vit",
            24,
            1024,
            16,
            4096,
            197,
            image_size=224,
            patch_size=16,
            channels=3,
            pre_norm=True,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        Classifier(1000, "cls"),
        64,
    ),
    "gpt2-xl": Shape(
        EncoderConfig(
            "gpt2",
            48,
            1600,
            25,
            6400,
            1024,
            vocabulary=50257,
            causal=True,
            pre_norm=True,
            activation="gelu_tanh",
            norm_epsilon=1e-5,
        ),
        Classifier(2, "mean", dropout=0.1),
        8,
    ),
    "qwen3-8b": Shape(
        EncoderConfig(
            "qwen3",
            36,
            4096,
            32,
            12288,
            40960,
            vocabulary=151936,
            causal=True,
            pre_norm=True,
            activation="silu",
            norm_epsilon=1e-6,
            norm_kind="rms",
            qk_norm=True,
            kv_heads=8,
            head_width=128,
            position_kind="rotary",
            rotary_base=1e6,
            gated_mlp=True,
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
            dropout=0.0,
            attention_dropout=0.0,
        ),
        Classifier(2, "last", bias=False),
        8,
    ),
}

MODELS = ("minilm", "bert-base", "bert-large", "vit-l16", "gpt2-xl")  # of the tables
STRATEGIES = ("full", "top:25%", "frozen")

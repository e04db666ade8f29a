"""Qwen2 (Yang et al. 2024): Llama with biases of query, key and value; layers from
``max_window_layers`` on may be local. Qwen3 (2025) normalises queries and keys in their place;
Qwen3-Embedding is of its base class.
"""

from typing import Any

from adapt.models import EncoderConfig
from adapt.pretrained.families import decoders, local_layers
from adapt.pretrained.families.rope import rope_entries, rope_fields
from adapt.pretrained.families.types import Entries, Fields


def complete(hf: Entries, fields: Fields, head_width: int = 0) -> Fields:
    window = hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None
    first = hf.get("max_window_layers", 28)
    kinds = local_layers.layer_types(
        hf, fields, lambda index: window is not None and index >= first
    )
    qwen = decoders.common_fields(hf, fields, 32, head_width) | {"qkv_bias": True}
    return qwen | rope_fields(hf) | local_layers.window_fields(kinds, window)


def entries(config: EncoderConfig, head: Any) -> Fields:
    own = {"use_sliding_window": bool(config.local_layers)}
    return (
        decoders.common_entries(config)
        | rope_entries(config)
        | local_layers.window_entries(config)
        | own
    )


def complete_qwen3(hf: Entries, fields: Fields) -> Fields:
    return complete(hf, fields, 128) | decoders.biases(hf) | {"qk_norm": True}


def entries_qwen3(config: EncoderConfig, head: Any) -> Fields:
    return entries(config, head) | {"attention_bias": config.output_bias}


TOKENIZER = "Qwen2Tokenizer"
FAMILY = decoders.family("Qwen2", complete, entries, TOKENIZER)
QWEN3 = decoders.family("Qwen3", complete_qwen3, entries_qwen3, TOKENIZER)

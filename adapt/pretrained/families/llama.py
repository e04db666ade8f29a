"""Llama (Touvron et al. 2023), which SmolLM and SmolLM2 are, too, and SmolLM3: Llama without
positions in every fourth layer, which may be a local one.
"""

from typing import Any

from adapt.models import EncoderConfig
from adapt.pretrained.families import decoders, local_layers
from adapt.pretrained.families.rope import rope_entries, rope_fields
from adapt.pretrained.families.types import Entries, Fields


def complete(hf: Entries, fields: Fields) -> Fields:
    mlp_bias = {"mlp_bias": bool(hf.get("mlp_bias", False))}
    return decoders.common_fields(hf, fields) | decoders.biases(hf) | mlp_bias | rope_fields(hf)


def entries(config: EncoderConfig, head: Any) -> Fields:
    own = {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}
    return decoders.common_entries(config) | rope_entries(config) | own


def complete_smollm3(hf: Entries, fields: Fields) -> Fields:
    hf = {"num_key_value_heads": 4, "rope_theta": 2e6} | dict(hf)
    every = hf.get("no_rope_layer_interval", 4)
    rotated = hf.get("no_rope_layers")  # 1: the layer has positions

    def is_unrotated(index: int) -> bool:
        return (index + 1) % every == 0 if rotated is None else not rotated[index]

    has_window = hf.get("use_sliding_window") and hf.get("sliding_window") is not None
    kinds = local_layers.layer_types(hf, fields, lambda index: has_window and is_unrotated(index))
    window = local_layers.window_fields(kinds, hf.get("sliding_window") if has_window else None)
    unrotated = tuple(filter(is_unrotated, range(fields["layers"])))
    return complete(hf, fields) | window | {"unrotated_layers": unrotated}


def entries_smollm3(config: EncoderConfig, head: Any) -> Fields:
    rotated = [int(config.is_rotated(index)) for index in range(config.layers)]
    own = {"no_rope_layers": rotated, "use_sliding_window": bool(config.local_layers)}
    return entries(config, head) | local_layers.window_entries(config) | own


FAMILY = decoders.family("Llama", complete, entries)
SMOLLM3 = decoders.family("SmolLM3", complete_smollm3, entries_smollm3)

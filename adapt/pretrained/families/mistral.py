"""Mistral (Jiang et al. 2023): Llama whose layers are all local, or none of them is."""

from typing import Any

from adapt.errors import CheckpointError
from adapt.models import EncoderConfig
from adapt.pretrained.families import decoders, local_layers
from adapt.pretrained.families.rope import rope_entries, rope_fields
from adapt.pretrained.families.types import Entries, Fields


def complete(hf: Entries, fields: Fields) -> Fields:
    if "layer_types" in hf:  # MistralModel does not read it
        raise CheckpointError("layer_types in config.json: the layers of Mistral are all alike")
    window = hf.get("sliding_window", 4096)
    kinds = local_layers.layer_types(hf, fields, lambda index: window is not None)
    return (
        decoders.common_fields(hf, fields, 8)
        | rope_fields(hf)
        | local_layers.window_fields(kinds, window)
    )


def entries(config: EncoderConfig, head: Any) -> Fields:
    window = {"sliding_window": local_layers.window_entries(config)["sliding_window"]}
    return decoders.common_entries(config) | rope_entries(config) | window


FAMILY = decoders.family("Mistral", complete, entries, span_prefix="model.")

"""Mistral (Jiang et al. 2023): Llama whose layers are all local, or none of them is."""

from typing import Any

from adapt.errors import CheckpointError
from adapt.models import EncoderConfig
from adapt.pretrained.families import Entries, Fields
from adapt.pretrained.families.decoders import (
    decoder,
    decoder_entries,
    decoder_fields,
    layer_types,
    window_entries,
    window_fields,
)
from adapt.pretrained.families.rope import rope_entries, rope_fields


def complete(hf: Entries, fields: Fields) -> Fields:
    if "layer_types" in hf:  # MistralModel does not read it
        raise CheckpointError("layer_types in config.json: the layers of Mistral are all alike")
    window = hf.get("sliding_window", 4096)
    kinds = layer_types(hf, fields, lambda index: window is not None)
    return decoder_fields(hf, fields, 8) | rope_fields(hf) | window_fields(kinds, window)


def entries(config: EncoderConfig, head: Any) -> Fields:
    window = {"sliding_window": window_entries(config)["sliding_window"]}
    return decoder_entries(config) | rope_entries(config) | window


FAMILY = decoder("Mistral", complete, entries)

"""Encoders, heads and models: the only room that imports Flax (Linen)."""

from adapt.models.accelerated import set_contextvar, target_device
from adapt.models.attention import allow_packed_kernel
from adapt.models.config import POSITION_KINDS, EncoderConfig
from adapt.models.encoder import Encoder
from adapt.models.heads import (
    AVERAGES,
    HEADS,
    POOLINGS,
    PRETRAINING_HEADS,
    STAGES,
    CausalLM,
    Classifier,
    Distilled,
    LanguageModel,
    MaskedLM,
    MaskedPixels,
    OnHead,
    ReplacedTokens,
    Span,
    Tagger,
    cached_program,
    is_kept,
    pooling_names,
    stages_of,
)
from adapt.models.layers import random_bits
from adapt.models.model import REMAT, Model, example_batch, flatten_groups
from adapt.models.quantised import SCALE, dequantise, quantise

__all__ = [
    "AVERAGES",
    "HEADS",
    "POOLINGS",
    "POSITION_KINDS",
    "PRETRAINING_HEADS",
    "REMAT",
    "SCALE",
    "STAGES",
    "CausalLM",
    "Classifier",
    "Distilled",
    "Encoder",
    "EncoderConfig",
    "LanguageModel",
    "MaskedLM",
    "MaskedPixels",
    "Model",
    "OnHead",
    "ReplacedTokens",
    "Span",
    "Tagger",
    "allow_packed_kernel",
    "cached_program",
    "dequantise",
    "example_batch",
    "flatten_groups",
    "is_kept",
    "pooling_names",
    "quantise",
    "random_bits",
    "set_contextvar",
    "stages_of",
    "target_device",
]

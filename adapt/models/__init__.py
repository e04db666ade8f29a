"""The only folder that imports Flax (Linen: ``init(key, x) -> dict``, ``apply(dict, x) -> y``)."""

from adapt.models.config import EncoderConfig
from adapt.models.encoder import Encoder
from adapt.models.heads import HEADS, POOLINGS, CausalLM, Classifier, MaskedLM, Span, Tagger
from adapt.models.layers import random_bits
from adapt.models.model import Model, example_batch

__all__ = [
    "HEADS",
    "POOLINGS",
    "CausalLM",
    "Classifier",
    "Encoder",
    "EncoderConfig",
    "MaskedLM",
    "Model",
    "Span",
    "Tagger",
    "example_batch",
    "random_bits",
]

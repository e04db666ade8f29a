"""CLIP's tower of texts (Radford et al. 2021): causal and pre-norm. The vector of a text is the
state of its end token, which the tokenizer puts there: a tokenizer that does not is refused. A text
that spells the end token is read as far as there, as transformers does. The projection into the
space that it shares with the tower of images is the head.
"""

from typing import Any

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import SIZES, Family, Row, clip, norm, with_defaults
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
CONFIG = [
    *with_defaults(SIZES, **DEFAULTS),
    *clip.TRAINING,
    ("pad_token", "pad_token_id", 1),
    ("end_token", "eos_token_id", 49407),
]
TABLE = [
    Row("embeddings.token_embedding.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embedding.weight", ("encoder/embedding/position",)),
    *clip.BLOCKS,
    *norm("final_layer_norm", "encoder/final_norm"),
    Row("text_projection.weight", ("head/projection/kernel",), "transposed"),
]


def entries(config: EncoderConfig, head: Any) -> Fields:
    projection = getattr(head, "projection", 0)
    return {"projection_dim": projection} if projection else {}


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The projection, or nothing."""
    if "text_projection.weight" in tensors:
        width = len(tensors["text_projection.weight"])
        return Classifier(0, "projection", projection=width, projected="last"), tensors
    return Classifier(0, "last"), tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    entries=entries,
    settings=clip.of_tower("text_config"),
    always={"causal": True, "pre_norm": True, "dropout": 0.0},
    pooling="last",
    ends_texts=True,
    prefix="text_model.",
    buffers=r"embeddings\.position_ids",
    parts={
        "vision_model.": "tower of images",
        "visual_projection.": "projection of images",
        "logit_scale": "temperature",
    },
    classes={"projection": "CLIPTextModelWithProjection"},
    base_class="CLIPTextModel",
)

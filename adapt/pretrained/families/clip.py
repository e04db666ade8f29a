"""CLIP (Radford et al. 2021): its tower of images. The projection into the space that it shares
with the tower of texts is the head.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import (
    BLOCK_SIZES,
    PLAIN_MLP,
    Family,
    Row,
    architecture,
    block_rows,
    config_entries,
    dense,
    norm,
    patches,
    projections,
    with_defaults,
)
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12}
BASE |= {"intermediate_size": 3072}
TRAINING = [
    ("activation", "hidden_act", "quick_gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-5),
    ("attention_dropout", "attention_dropout", 0.0),
    ("init_range", "initializer_range", 0.02),
]
CONFIG = [
    *with_defaults(BLOCK_SIZES, **BASE),
    *with_defaults(patches.SIZES, patch_size=32),
    *TRAINING,
]
BLOCK = {
    "layer_norm1": "attention_norm",
    **projections("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    "layer_norm2": "mlp_norm",
    **PLAIN_MLP,
}
BLOCKS = block_rows("encoder.layers.#", BLOCK)
PATCHES = [
    Row("embeddings.position_embedding.weight", ("encoder/embedding/position",)),
    *patches.patch_rows("embeddings.patch_embedding"),
]
TABLE = [
    Row("embeddings.class_embedding", ("encoder/embedding/class_token",)),
    *PATCHES,
    *norm("pre_layrnorm", "encoder/embedding/norm"),  # so it is spelled
    *BLOCKS,
    *norm("post_layernorm", "encoder/final_norm"),
    Row("visual_projection.weight", ("head/projection/kernel",), "transposed"),
    *dense("classifier", "head/classifier"),
]
PARTS = {
    "text_model.": "tower of texts",
    "text_projection.": "projection of texts",
    "logit_scale": "temperature",
    "post_layernorm.": "norm that this classifier does not read",
}


CLASSIFIER = "CLIPForImageClassification"


def of_tower(name: str) -> Callable[[Entries], Entries]:
    """``settings``: the entries of one tower, which config.json of both towers nests under this
    name.
    """

    def settings(hf: Entries) -> Entries:
        if name not in hf:
            return hf
        own = {**(hf[name] or {}), **(hf.get(f"{name}_dict") or {})}
        return own | {"architectures": hf.get("architectures")}

    return settings


def complete(hf: Entries, fields: Fields) -> Fields:
    """A classifier of CLIP reads the mean of the patches before the last norm."""
    return patches.complete(hf, fields) | {"final_norm": architecture(hf) != CLASSIFIER}


def entries(config: EncoderConfig, head: Any) -> Fields:
    if not config.final_norm:
        return {"model_type": "clip", "vision_config": config_entries(config)}
    projection = getattr(head, "projection", 0)
    return {"projection_dim": projection} if projection else {}


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The classifier, the projection, or nothing."""
    if not config.final_norm:
        classes = len(tensors.get("classifier.weight", ()))
        return Classifier(classes, "patches", leading=1), tensors
    if "visual_projection.weight" in tensors:
        width = len(tensors["visual_projection.weight"])
        return Classifier(0, "projection", projection=width), tensors
    return Classifier(0, "cls"), tensors


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """The norm that a classifier does not read, and that its class holds all the same."""
    if architecture != CLASSIFIER:
        return {}
    return {
        "vision_model.post_layernorm.weight": np.ones(config.width, np.float32),
        "vision_model.post_layernorm.bias": np.zeros(config.width, np.float32),
    }


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    always={
        "family": "clip_vision_model",
        "pre_norm": True,
        "embedding_norm": True,
        "patch_bias": False,
        "dropout": 0.0,
    },
    settings=of_tower("vision_config"),
    pooling="cls",
    prefix="vision_model.",
    buffers=r"embeddings\.position_ids",
    parts=PARTS,
    classes={
        "classes": CLASSIFIER,
        "projection": "CLIPVisionModelWithProjection",
        "features": "CLIPVisionModel",
    },
    sequence_heads=[Classifier(0, "patches")],
    extra_tensors=extra_tensors,
    processor="CLIPImageProcessor",
)

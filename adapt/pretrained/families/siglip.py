"""SigLIP (Zhai et al. 2023): its tower of images, without a class token; the head pools by
attention (Zhai et al. 2022).
"""

import dataclasses
from typing import Any

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import (
    Row,
    clip,
    config_entries,
    dense,
    no_tensors,
    norm,
    patches,
    with_defaults,
)
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

DEFAULTS = {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
QKV = ("head/map/query", "head/map/key", "head/map/value")
IN_PROJECTION = "head.attention.in_proj"
TABLE = [
    *clip.PATCHES,
    *clip.BLOCKS,
    *norm("post_layernorm", "encoder/final_norm"),
    Row("head.probe", ("head/map/query_token",), "token"),
    Row(f"{IN_PROJECTION}_weight", tuple(f"{path}/kernel" for path in QKV), "transposed"),
    Row(f"{IN_PROJECTION}_bias", tuple(f"{path}/bias" for path in QKV)),
    *dense("head.attention.out_proj", "head/map/output"),
    *norm("head.layernorm", "head/map/norm"),
    *dense("head.mlp.fc1", "head/map/up"),
    *dense("head.mlp.fc2", "head/map/down"),
    *dense("classifier", "head/classifier"),
]


def entries(config: EncoderConfig, head: Any) -> Fields:
    if getattr(head, "classes", 0):
        own = config_entries(config) | {"vision_use_head": False}
        return {"model_type": "siglip", "vision_config": own}
    return {"vision_use_head": getattr(head, "pooling", "") == "map"}


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The classifier on the mean of all patches, the attention pooling, or nothing."""
    if "classifier.weight" in tensors:
        return Classifier(len(tensors["classifier.weight"]), "mean"), tensors
    if "head.probe" not in tensors:
        return Classifier(0, "mean"), tensors
    head = Classifier(
        0,
        "map",
        heads=config.heads,
        mlp_width=config.mlp_width,
        activation=config.activation,
        norm_epsilon=config.norm_epsilon,
    )
    return head, tensors


FAMILY = dataclasses.replace(
    clip.FAMILY,
    config=with_defaults(clip.CONFIG, **DEFAULTS),
    table=TABLE,
    recognise=recognise,
    complete=patches.complete,
    always={
        "family": "siglip_vision_model",
        "pre_norm": True,
        "class_token": False,
        "dropout": 0.0,
    },
    entries=entries,
    pooling="mean",
    parts={
        "text_model.": "tower of texts",
        "logit_": "temperature and bias of the loss",
        "head.": "attention pooling",
    },
    classes={"classes": "SiglipForImageClassification", "features": "SiglipVisionModel"},
    sequence_heads=[Classifier(0, "mean")],
    extra_tensors=no_tensors,
    processor="SiglipImageProcessor",
)

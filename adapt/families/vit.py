"""ViT (Dosovitskiy et al. 2021): patches and a class token, pre-norm, a final norm, an image classifier on top."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.families import Row, dense, norm
from adapt.families.bert import ACTIVATIONS, activation
from adapt.models import Classifier, EncoderConfig

MODEL_TYPES = ("vit",)
PREFIX = "vit."


def read_config(hf: Mapping[str, Any]) -> EncoderConfig:
    size, patch = hf.get("image_size", 224), hf.get("patch_size", 16)
    if not isinstance(size, int) or not isinstance(patch, int) or size % patch:
        raise CheckpointError(
            f"image_size {size} and patch_size {patch} in config.json: only square whole patches are read"
        )
    return EncoderConfig(
        family="vit",
        layers=hf["num_hidden_layers"],
        width=hf["hidden_size"],
        heads=hf["num_attention_heads"],
        mlp_width=hf["intermediate_size"],
        positions=(size // patch) ** 2 + 1,
        image_size=size,
        patch_size=patch,
        channels=hf.get("num_channels", 3),
        pre_norm=True,
        activation=activation(hf.get("hidden_act", "gelu")),
        norm_epsilon=hf.get("layer_norm_eps", 1e-12),
        qkv_bias=hf.get("qkv_bias", True),
        dropout=hf.get("hidden_dropout_prob", 0.0),
        attention_dropout=hf.get("attention_probs_dropout_prob", 0.0),
        init_range=hf.get("initializer_range", 0.02),
    )


def write_config(c: EncoderConfig) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "num_hidden_layers": c.layers,
        "hidden_size": c.width,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_width,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": c.channels,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == c.activation),
        "layer_norm_eps": c.norm_epsilon,
        "qkv_bias": c.qkv_bias,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "initializer_range": c.init_range,
    }


def canonical(name: str) -> str | None:
    """Without the ``vit.`` prefix."""
    return name.removeprefix(PREFIX)


def recognise(hf: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """The image classifier of pre-training, a pooler alone, or nothing."""
    if "classifier.weight" in tensors:
        return Classifier(len(tensors["classifier.weight"]), "cls"), tensors
    return Classifier(0, "pooler" if "pooler.dense.weight" in tensors else "cls"), tensors


def table(c: EncoderConfig, head: Any) -> list[Row]:
    patch = "embeddings.patch_embeddings.projection"
    rows = [
        Row("embeddings.cls_token", ("encoder/embedding/class_token",), "token"),
        Row("embeddings.position_embeddings", ("encoder/embedding/position",), "token"),
        Row(f"{patch}.weight", ("encoder/embedding/patch/kernel",), "patches", c.patch_size),
        Row(f"{patch}.bias", ("encoder/embedding/patch/bias",)),
    ]
    for index in range(c.layers):
        theirs, ours = f"encoder.layer.{index}", f"encoder/block_{index:02d}"
        for name in ("query", "key", "value"):
            rows += dense(f"{theirs}.attention.attention.{name}", f"{ours}/attention/{name}", c.qkv_bias)
        rows += dense(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        rows += dense(f"{theirs}.intermediate.dense", f"{ours}/mlp/up")
        rows += dense(f"{theirs}.output.dense", f"{ours}/mlp/down")
        rows += norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
        rows += norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm")
    rows += norm("layernorm", "encoder/final_norm")
    if getattr(head, "pooling", "") == "pooler":
        rows += dense("pooler.dense", "head/pooler")
    return rows + (dense("classifier", "head/classifier") if getattr(head, "classes", 0) else [])

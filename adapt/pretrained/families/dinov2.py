"""DINOv2 (Oquab et al. 2024) and DINOv2 with registers (Darcet et al. 2024): ViT with a layer scale;
the giant one has a gated MLP.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import (
    GATED_MLP,
    PLAIN_MLP,
    Family,
    Row,
    block_modules,
    dense,
    norm,
    patches,
    where,
    with_defaults,
)
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    *with_defaults(patches.SIZES, patch_size=14),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-6),
    ("qkv_bias", "qkv_bias", True),
    ("gated_mlp", "use_swiglu_ffn", False),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
    ("init_range", "initializer_range", 0.02),
]
LAYER = "encoder.layer.#"
BLOCK = "encoder/block_#"
TABLE = [
    patches.FIRST_TOKEN,
    patches.POSITIONS,
    patches.REGISTERS,
    *patches.patch_rows("embeddings.patch_embeddings.projection"),
    *norm(f"{LAYER}.norm1", f"{BLOCK}/attention_norm"),
    *dense(f"{LAYER}.attention.attention.query", f"{BLOCK}/attention/query"),
    *dense(f"{LAYER}.attention.attention.key", f"{BLOCK}/attention/key"),
    *dense(f"{LAYER}.attention.attention.value", f"{BLOCK}/attention/value"),
    *dense(f"{LAYER}.attention.output.dense", f"{BLOCK}/attention/output"),
    Row(f"{LAYER}.layer_scale1.lambda1", (f"{BLOCK}/attention_scale",)),
    *norm(f"{LAYER}.norm2", f"{BLOCK}/mlp_norm"),
    *where("gated_mlp", False, dense(f"{LAYER}.mlp.fc1", f"{BLOCK}/mlp/up")),
    *where("gated_mlp", False, dense(f"{LAYER}.mlp.fc2", f"{BLOCK}/mlp/down")),
    *dense(f"{LAYER}.mlp.weights_in", f"{BLOCK}/mlp/gate", f"{BLOCK}/mlp/up"),
    *where("gated_mlp", True, dense(f"{LAYER}.mlp.weights_out", f"{BLOCK}/mlp/down")),
    Row(f"{LAYER}.layer_scale2.lambda1", (f"{BLOCK}/mlp_scale",)),
    *norm("layernorm", "encoder/final_norm"),
    *dense("classifier", "head/classifier"),
]


def mlp_width(width: int, ratio: float, gated: bool) -> int:
    """The width inside the MLP: of a gated one two thirds, as many parameters in all."""
    whole = int(width * ratio)
    return (int(whole * 2 / 3) + 7) // 8 * 8 if gated else whole


def complete(hf: Entries, fields: Fields) -> Fields:
    gated = fields["gated_mlp"]
    ratio = hf.get("mlp_ratio", 4)
    if not all(type(number) in (int, float) for number in (ratio, fields["width"])):
        raise CheckpointError(f"mlp_ratio in config.json is {ratio!r}: give a number")
    fields = patches.with_patches(fields, first_tokens=1)
    width = mlp_width(fields["width"], ratio, gated)
    activation = "silu" if gated else fields["activation"]
    own = {"mlp_width": width, "activation": activation, "layer_scale": True, "pre_norm": True}
    return fields | own


def entries(config: EncoderConfig, head: Any) -> Fields:
    """The ratio that makes the MLP's width: a whole number."""
    ratios = range(1, 65)
    widths = [mlp_width(config.width, ratio, config.gated_mlp) for ratio in ratios]
    return {"mlp_ratio": ratios[widths.index(config.mlp_width)]}


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The image classifier, on the class token beside the mean of the patches; or nothing."""
    if "classifier.weight" in tensors:
        classes = len(tensors["classifier.weight"])
        return Classifier(classes, "cls+patches", leading=config.leading_tokens), tensors
    return Classifier(0, "cls"), tensors


def mask_token(prefix: str) -> Callable[[EncoderConfig, str, Tensors], Tensors]:
    """``extra_tensors`` with the token of masked patches, which nothing reads."""

    def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
        return {f"{prefix}embeddings.mask_token": np.zeros((1, config.width), np.float32)}

    return extra_tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    pooling="cls",
    prefix="dinov2.",
    parts=patches.MASK_TOKEN,
    classes={"classes": "Dinov2ForImageClassification", "features": "Dinov2Model"},
    extra_tensors=mask_token("dinov2."),
    sequence_heads=[Classifier(0, "cls+patches")],
    processor="BitImageProcessor",
    modules=[
        *where("gated_mlp", False, block_modules(LAYER, "attention", PLAIN_MLP)),
        *where("gated_mlp", True, block_modules(LAYER, "attention", GATED_MLP)),
    ],
    any_size=True,
)
WITH_REGISTERS = dataclasses.replace(
    FAMILY,
    config=[*with_defaults(CONFIG, patch_size=16), ("registers", "num_register_tokens", 4)],
    prefix="dinov2_with_registers.",
    classes={
        "classes": "Dinov2WithRegistersForImageClassification",
        "features": "Dinov2WithRegistersModel",
    },
    extra_tensors=mask_token("dinov2_with_registers."),
    smooth_positions=True,
)

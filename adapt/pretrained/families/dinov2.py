"""DINOv2 (Oquab et al. 2024) and DINOv2 with registers (Darcet et al. 2024): ViT with a layer
scale; the giant one has a gated MLP.
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
    block_modules,
    block_rows,
    dense,
    norm,
    patches,
    vit,
    where,
    with_defaults,
    without,
)
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [
    *with_defaults(without(vit.CONFIG, "mlp_width"), patch_size=14, layer_norm_eps=1e-6),
    ("gated_mlp", "use_swiglu_ffn", False),
]
LAYER = "encoder.layer.#"
BLOCK = {"norm1": "attention_norm", **vit.ATTENTION, "norm2": "mlp_norm", **patches.SCALES}
GATED = {"mlp.weights_in": ("mlp/gate", "mlp/up"), "mlp.weights_out": "mlp/down"}
TABLE = [
    patches.FIRST_TOKEN,
    patches.POSITIONS,
    patches.REGISTERS,
    *patches.patch_rows("embeddings.patch_embeddings.projection"),
    *block_rows(LAYER, BLOCK),
    *where("gated_mlp", False, block_rows(LAYER, PLAIN_MLP)),
    *where("gated_mlp", True, block_rows(LAYER, GATED)),
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
    width = mlp_width(fields["width"], ratio, gated)
    activation = "silu" if gated else fields["activation"]
    return patches.complete(hf, fields) | {"mlp_width": width, "activation": activation}


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
    always={"pre_norm": True, "layer_scale": True},
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

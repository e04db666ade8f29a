"""BEiT (Bao et al. 2022): ViT with a layer scale, a bias by how far patches lie apart in place of
positions, no bias of the key, and the mean of the patches as a vector.
"""

import dataclasses
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import Row, block_rows, norm, patches, vit, without
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

BIAS = "relative_position_bias.relative_position_bias_table"
TABLE = [
    *vit.TABLE,
    Row(
        f"encoder.layer.#.attention.attention.{BIAS}", ("encoder/block_#/attention/relative/table",)
    ),
    Row(f"encoder.{BIAS}", ("encoder/relative/table",)),
    *block_rows("encoder.layer.#", {"lambda_1": "attention_scale", "lambda_2": "mlp_scale"}),
    *norm("pooler.layernorm", "head/patch_norm"),
]


def complete(hf: Entries, fields: Fields) -> Fields:
    of_layer = hf.get("use_relative_position_bias")
    is_shared = hf.get("use_shared_relative_position_bias")
    if of_layer and is_shared:
        raise CheckpointError(
            "use_relative_position_bias and use_shared_relative_position_bias are both true in "
            "config.json: only one of them is read"
        )
    relative = ""
    if of_layer or is_shared:
        relative = "layer" if of_layer else "shared"
    has_positions = hf.get("use_absolute_position_embeddings", False)
    return patches.complete(hf, fields) | {
        "position_kind": "learned" if has_positions else "none",
        "relative_patches": relative,
        "layer_scale": hf.get("layer_scale_init_value", 0.1) > 0,
        "final_norm": not hf.get("use_mean_pooling", True),
    }


def entries(config: EncoderConfig, head: Any) -> Fields:
    return {
        "use_absolute_position_embeddings": config.position_kind == "learned",
        "use_relative_position_bias": config.relative_patches == "layer",
        "use_shared_relative_position_bias": config.relative_patches == "shared",
        "layer_scale_init_value": 0.1 if config.layer_scale else 0.0,
        "use_mean_pooling": not config.final_norm,
    }


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The image classifier of pre-training, on the normalised mean of the patches or on the class
    token; the norm alone, or nothing.
    """
    classes = len(tensors.get("classifier.weight", ()))
    if config.final_norm:
        return Classifier(classes, "cls"), tensors
    if "pooler.layernorm.weight" not in tensors:
        return Classifier(0, "patches", leading=1), tensors
    head = Classifier(classes, "patch_norm", leading=1, norm_epsilon=config.norm_epsilon)
    return head, tensors


FAMILY = dataclasses.replace(
    vit.FAMILY,
    config=without(vit.CONFIG, "qkv_bias"),
    table=TABLE,
    recognise=recognise,
    usual={},
    always={"pre_norm": True, "key_bias": False},
    complete=complete,
    entries=entries,
    pooling="patch_norm",
    prefix="beit.",
    buffers=r".*relative_position_index",
    parts={
        "embeddings.mask_token": "token of masked patches",
        "lm_head.": "masked-image head",
        "layernorm.": "norm of the masked-image head",
        "pooler.": "norm of the mean of patches",
    },
    classes={"classes": "BeitForImageClassification", "features": "BeitModel"},
    sequence_heads=[Classifier(0, "patch_norm"), Classifier(0, "cls")],
    masked_image=None,  # its own objective predicts tokens of a tokenizer of pictures
    processor="BeitImageProcessor",
    any_size=True,
)

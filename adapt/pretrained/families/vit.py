"""ViT (Dosovitskiy et al. 2021): patches and a class token, pre-norm, a final norm, an image
classifier on top.
"""

from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import Entries, Family, Fields, Found, Row, Tensors, dense, norm

PARTS = {
    "decoder.": "masked-image head",
    "embeddings.mask_token": "masked-image head",
    "pooler.": "pooler",
}
CONFIG = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
    ("image_size", "image_size", 224),
    ("patch_size", "patch_size", 16),
    ("channels", "num_channels", 3),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("qkv_bias", "qkv_bias", True),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
    ("init_range", "initializer_range", 0.02),
]
TABLE = [
    Row("embeddings.cls_token", ("encoder/embedding/class_token",), "token"),
    Row("embeddings.position_embeddings", ("encoder/embedding/position",), "token"),
    *dense("embeddings.patch_embeddings.projection", "encoder/embedding/patch", layout="patches"),
    *norm("encoder.layer.#.layernorm_before", "encoder/block_#/attention_norm"),
    *dense("encoder.layer.#.attention.attention.query", "encoder/block_#/attention/query"),
    *dense("encoder.layer.#.attention.attention.key", "encoder/block_#/attention/key"),
    *dense("encoder.layer.#.attention.attention.value", "encoder/block_#/attention/value"),
    *dense("encoder.layer.#.attention.output.dense", "encoder/block_#/attention/output"),
    *norm("encoder.layer.#.layernorm_after", "encoder/block_#/mlp_norm"),
    *dense("encoder.layer.#.intermediate.dense", "encoder/block_#/mlp/up"),
    *dense("encoder.layer.#.output.dense", "encoder/block_#/mlp/down"),
    *norm("layernorm", "encoder/final_norm"),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier", "head/classifier"),
]


def complete(hf: Entries, fields: Fields) -> Fields:
    if hf.get("pooler_act", "tanh") != "tanh":
        raise CheckpointError(f"pooler_act {hf['pooler_act']!r} in config.json: only tanh is read")
    return with_patches(fields, first_tokens=1) | {"pre_norm": True}


def with_patches(fields: Fields, first_tokens: int) -> Fields:
    """The fields with sizes of one number and the positions of all tokens: ``first_tokens``, the
    registers and the patches. Raises :class:`CheckpointError` for other than square whole patches.
    """
    size = side(fields["image_size"])
    patch = side(fields["patch_size"])
    if size is None or patch is None or size % patch:
        raise CheckpointError(
            f"image_size {fields['image_size']} and patch_size {fields['patch_size']} in "
            "config.json: only square whole patches are read"
        )
    registers = fields.get("registers", 0)
    if type(registers) is not int or registers < 0:
        raise CheckpointError(f"config.json says {registers!r} for registers: give their number")
    positions = first_tokens + registers + (size // patch) ** 2
    return fields | {"image_size": size, "patch_size": patch, "positions": positions}


def side(value: Any) -> int | None:
    """The side of a square that config.json names by one number or two; None for anything else."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return value if type(value) is int and value > 0 else None


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """The image classifier of pre-training, a pooler alone, or nothing."""
    if "classifier.weight" in tensors:
        return Classifier(len(tensors["classifier.weight"]), "cls"), tensors
    return Classifier(0, "pooler" if "pooler.dense.weight" in tensors else "cls"), tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    pooling="cls",
    prefix="vit.",
    parts=PARTS,
    classes={"classes": "ViTForImageClassification"},
    sequence_heads=[Classifier(0, "cls")],
)

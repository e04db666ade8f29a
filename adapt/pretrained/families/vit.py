"""ViT (Dosovitskiy et al. 2021): patches and a class token, pre-norm, a final norm, an image
classifier on top.
"""

from adapt.models import Classifier
from adapt.pretrained.families import PLAIN_MLP, Family, block_modules, dense, heads, norm, patches
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields

CONFIG = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
    *patches.SIZES,
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("qkv_bias", "qkv_bias", True),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
    ("init_range", "initializer_range", 0.02),
]
TABLE = [
    patches.FIRST_TOKEN,
    patches.POSITIONS,
    *patches.patch_rows("embeddings.patch_embeddings.projection"),
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
    *patches.MASKED_IMAGE,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    check_usual(hf, pooler_act="tanh")
    return patches.with_patches(fields, first_tokens=1) | {"pre_norm": True}


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(patches.masked_pixels, patches.classes, heads.pooler(), pooling="cls"),
    complete,
    patches.entries,
    pooling="cls",
    prefix="vit.",
    parts={
        "decoder.": "masked-image head",
        "embeddings.mask_token": "masked-image head",
        "pooler.": "pooler",
    },
    classes={
        "classes": "ViTForImageClassification",
        "masked image": "ViTForMaskedImageModeling",
    },
    sequence_heads=[Classifier(0, "cls")],
    masked_image=patches.masked_image,
    modules=block_modules("layers.#", "attention", PLAIN_MLP),
)

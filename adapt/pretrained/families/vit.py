"""ViT (Dosovitskiy et al. 2021): patches and a class token, pre-norm, a final norm, an image
classifier on top.
"""

from adapt.models import Classifier
from adapt.pretrained.families import (
    BLOCK_SIZES,
    PLAIN_MLP,
    TRAINING,
    Family,
    block_modules,
    block_rows,
    dense,
    heads,
    norm,
    patches,
    projections,
    with_defaults,
)

CONFIG = [
    *BLOCK_SIZES,
    *patches.SIZES,
    ("qkv_bias", "qkv_bias", True),
    *with_defaults(TRAINING, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
]
ATTENTION = {
    **projections("attention.attention", "query", "key", "value"),
    "attention.output.dense": "attention/output",
}
BLOCK = {
    "layernorm_before": "attention_norm",
    **ATTENTION,
    "layernorm_after": "mlp_norm",
    "intermediate.dense": "mlp/up",
    "output.dense": "mlp/down",
}
TABLE = [
    patches.FIRST_TOKEN,
    patches.POSITIONS,
    *patches.patch_rows("embeddings.patch_embeddings.projection"),
    *block_rows("encoder.layer.#", BLOCK),
    *norm("layernorm", "encoder/final_norm"),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier", "head/classifier"),
    *patches.MASKED_IMAGE,
]

FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(patches.masked_pixels, patches.classes, heads.pooler(), pooling="cls"),
    patches.complete,
    patches.entries,
    usual={"pooler_act": "tanh"},
    always={"pre_norm": True},
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

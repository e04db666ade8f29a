"""DINOv3's ViT (Simeoni et al. 2025): DINOv2 with rotary positions of the patches; the key has no
bias.
"""

import numpy as np

from adapt.models import EncoderConfig
from adapt.pretrained.families import (
    GATED_MLP,
    Family,
    block_modules,
    block_rows,
    heads,
    norm,
    patches,
    projections,
)
from adapt.pretrained.families.types import Tensors

CONFIG = [
    ("layers", "num_hidden_layers", 12),
    ("width", "hidden_size", 384),
    ("heads", "num_attention_heads", 6),
    ("mlp_width", "intermediate_size", 1536),
    *patches.SIZES,
    ("registers", "num_register_tokens", 0),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-5),
    ("rotary_base", "rope_theta", 100.0),
    ("query_bias", "query_bias", True),
    ("value_bias", "value_bias", True),
    ("key_bias", "key_bias", False),
    ("output_bias", "proj_bias", True),
    ("mlp_bias", "mlp_bias", True),
    ("gated_mlp", "use_gated_mlp", False),
    ("attention_dropout", "attention_dropout", 0.0),
    ("init_range", "initializer_range", 0.02),
]
LAYER = "layer.#"
BLOCK = {
    "norm1": "attention_norm",
    **projections("attention", "q_proj", "k_proj", "v_proj", "o_proj"),
    "norm2": "mlp_norm",
    **GATED_MLP,
    **patches.SCALES,
}
TABLE = [
    patches.FIRST_TOKEN,
    patches.REGISTERS,
    *patches.patch_rows("embeddings.patch_embeddings"),
    *block_rows(LAYER, BLOCK),
    *norm("norm", "encoder/final_norm"),
]


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """The token of masked patches, which nothing reads, and registers where there are none."""
    extra = {"embeddings.mask_token": np.zeros((1, 1, config.width), np.float32)}
    if not config.registers:
        extra["embeddings.register_tokens"] = np.zeros((1, 0, config.width), np.float32)
    return extra


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(pooling="cls"),  # there is none
    patches.complete,
    always={"pre_norm": True, "layer_scale": True, "position_kind": "rotary", "dropout": 0.0},
    pooling="cls",
    classes={"features": "DINOv3ViTModel"},
    extra_tensors=extra_tensors,
    parts={**patches.MASK_TOKEN, "embeddings.register_tokens": "no registers"},
    processor="DINOv3ViTImageProcessor",
    modules=block_modules(f"model.{LAYER}", "attention", GATED_MLP),
    any_size=True,
)

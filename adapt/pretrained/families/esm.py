"""ESM-2 (Lin et al. 2023), of proteins: pre-norm, rotary positions, embeddings that are scaled for
what is masked; and ESM-1b, which has learned positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig
from adapt.models.rotary import frequencies
from adapt.pretrained.families import (
    SIZES,
    TRAINING,
    Family,
    Row,
    block_rows,
    dense,
    heads,
    norm,
    projections,
    with_defaults,
)
from adapt.pretrained.families.learned_positions import entries_after_padding, fields_after_padding
from adapt.pretrained.families.types import Entries, Fields, Tensors

PARTS = {
    "pooler.": "pooler",
    "contact_head.": "contact head",
    "embeddings.position_embeddings.": "positions of no effect",
}
CONFIG = [
    *with_defaults(SIZES, max_position_embeddings=1026),
    *TRAINING,
    ("pad_token", "pad_token_id"),
    ("embedding_norm", "emb_layer_norm_before", None),
    ("token_dropout", "token_dropout", False),
    ("mask_token", "mask_token_id", None),
    ("rotary_base", "rope_theta", 10000.0),
    ("rotary_dtype", "rotary_dtype", "float32"),  # adapt's own: other programs read the tensor
]
DECODER = "lm_head.decoder.weight"
BLOCK = {
    "attention.LayerNorm": "attention_norm",
    **projections("attention.self", "query", "key", "value"),
    "attention.output.dense": "attention/output",
    "LayerNorm": "mlp_norm",
    "intermediate.dense": "mlp/up",
    "output.dense": "mlp/down",
}
TABLE = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    *norm("embeddings.layer_norm", "encoder/embedding/norm"),
    *block_rows("encoder.layer.#", BLOCK),
    *norm("encoder.emb_layer_norm_after", "encoder/final_norm"),
    *heads.masked_lm_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", DECODER),
    *dense("pooler.dense", "head/pooler"),
    *heads.CLASSIFIERS,
]
USUAL = {
    "is_decoder": False,
    "add_cross_attention": False,
    "is_folding_model": False,
    "hidden_act": "gelu",
}
FREQUENCIES = "rotary_embeddings.inv_freq"


def complete(hf: Entries, fields: Fields) -> Fields:
    kind = hf.get("position_embedding_type", "absolute")
    if kind not in ("absolute", "rotary"):
        raise CheckpointError(
            f"position_embedding_type {kind!r} in config.json: absolute and rotary are read"
        )
    if fields["token_dropout"] and type(fields["mask_token"]) is not int:
        raise CheckpointError("token_dropout in config.json wants a mask_token_id")
    said = {
        "embedding_norm": bool(fields["embedding_norm"]),
        "token_dropout": bool(fields["token_dropout"]),
        "mask_token": fields["mask_token"] or 0,
    }
    if kind == "rotary":
        return fields | said | {"position_kind": "rotary"}
    return fields | said | fields_after_padding(fields["pad_token"], fields["positions"])


def entries(config: EncoderConfig, head: Any) -> Fields:
    is_rotary = config.position_kind == "rotary"
    kind = "rotary" if is_rotary else "absolute"
    return {"position_embedding_type": kind} | entries_after_padding(config)


def settle(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> EncoderConfig:
    """The config with the precision of the frequencies that the file has, which are used."""
    names = sorted(name for name in tensors if name.endswith(FREQUENCIES))
    if not names or config.position_kind != "rotary":
        return config
    stored = tensors[names[0]].astype(np.float32)
    for dtype in ("float32", "float16"):
        ours = frequencies(config.width_of_head, config.rotary_base, dtype)
        if stored.shape == ours.shape and np.allclose(stored, ours, rtol=1e-5, atol=0):
            return dataclasses.replace(config, rotary_dtype=dtype)
    raise CheckpointError(
        f"{names[0]} holds other frequencies than those of a rope_theta of {config.rotary_base}"
    )


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """The frequencies, a contact head of zeros, and for the encoder alone such a pooler."""
    prefix = FAMILY.prefix
    extra = {}
    if architecture == FAMILY.base_class:
        prefix = ""
        extra = heads.zeros_of_dense("pooler.dense", config.width)
    contact = f"{prefix}contact_head.regression"
    extra[f"{contact}.weight"] = np.zeros((1, config.layers * config.heads), np.float32)
    extra[f"{contact}.bias"] = np.zeros(1, np.float32)
    if config.position_kind == "rotary":
        base = config.rotary_base
        of_file = frequencies(config.width_of_head, base, config.rotary_dtype)
        extra[prefix + FREQUENCIES] = of_file
    return extra


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        heads.masked_lm("lm_head.dense.weight", DECODER, head=heads.gelu_masked_lm),
        heads.classes_after("classifier.dense.weight", "tanh"),
        heads.token_classes,
        heads.pooler(),
        pooling="mean",
    ),
    complete,
    entries,
    usual=USUAL,
    always={"pre_norm": True},
    prefix="esm.",
    buffers=rf"embeddings\.position_ids|(encoder\.layer\..*)?{FREQUENCIES}",
    parts=PARTS,
    classes=heads.classes_of("Esm", "classes", "token classes", "masked LM"),
    sequence_heads=[Classifier(0, "cls", hidden="tanh")],
    base_class="EsmModel",
    extra_tensors=extra_tensors,
    settle=settle,
    tokenizer="EsmTokenizer",
    counts_after_padding=True,
)

"""The encoders of T5 (Raffel et al. 2020), mT5 and umT5: pre-norm by RMS, a bias for distances in
place of positions, scores that are not scaled, no biases. The decoder is left out.
"""

import dataclasses
from typing import Any

from adapt.models import Classifier, EncoderConfig, Tagger
from adapt.pretrained.families import (
    LIBRARY_ACTIVATIONS,
    Family,
    Row,
    architecture,
    block_rows,
    dense,
    norm,
    projections,
    where,
    with_defaults,
)
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [
    ("layers", "num_layers"),
    ("width", "d_model"),
    ("heads", "num_heads"),
    ("head_width", "d_kv", 64),
    ("mlp_width", "d_ff"),
    ("positions", "n_positions", 512),
    ("vocabulary", "vocab_size"),
    ("activation", "feed_forward_proj", "relu"),
    ("norm_epsilon", "layer_norm_epsilon", 1e-6),
    ("dropout", "dropout_rate", 0.1),
    ("attention_dropout", "dropout_rate", 0.1),
    ("relative_buckets", "relative_attention_num_buckets", 32),
    ("relative_distance", "relative_attention_max_distance", 128),
    ("pad_token", "pad_token_id", 0),
    ("end_token", "eos_token_id", 1),
]
# A block is a list of two layers.
ATTENTION = "layer.0.SelfAttention"
MLP = "layer.1.DenseReluDense"
BLOCK = {
    **projections(ATTENTION, "q", "k", "v", "o"),
    "layer.0.layer_norm": "attention_norm",
    f"{MLP}.wo": "mlp/down",
    "layer.1.layer_norm": "mlp_norm",
}
PLAIN_MLP = {f"{MLP}.wi": "mlp/up"}
GATED_MLP = {f"{MLP}.wi_0": "mlp/gate", f"{MLP}.wi_1": "mlp/up"}
LAYER = "encoder.block.#"
BIAS = f"{ATTENTION}.relative_attention_bias.weight"
SHARED_BIAS = Row(f"encoder.block.0.{BIAS}", ("encoder/relative/table",))
OWN_BIAS = Row(f"{LAYER}.{BIAS}", ("encoder/block_#/attention/relative/table",))
TABLE = [
    Row("shared.weight", ("encoder/embedding/token",)),
    SHARED_BIAS,
    *block_rows(LAYER, BLOCK),
    *where("gated_mlp", False, block_rows(LAYER, PLAIN_MLP)),
    *where("gated_mlp", True, block_rows(LAYER, GATED_MLP)),
    *norm("encoder.final_layer_norm", "encoder/final_norm"),
    *dense("classifier", "head/classifier"),
]
GATED = "gated-"
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
ALWAYS = {
    "pre_norm": True,
    "norm_kind": "rms",
    "position_kind": "none",
    "attention_scale": 1.0,
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
}


def complete(hf: Entries, fields: Fields) -> Fields:
    name = str(fields["activation"])
    gated, activation = name.startswith(GATED), name.removeprefix(GATED)
    if name == "gated-gelu":  # the library's exception
        activation = "gelu_new"
    # Two more entries say the same, and transformers takes them over feed_forward_proj.
    fields["gated_mlp"] = bool(hf.get("is_gated_act", gated))
    fields["activation"] = hf.get("dense_act_fn", activation)
    return fields


def entries(config: EncoderConfig, head: Any) -> Fields:
    name = LIBRARY_ACTIVATIONS[config.activation]
    if not config.gated_mlp:
        return {"feed_forward_proj": name}
    if name == "gelu":  # "gated-gelu" is another function
        name = "gelu_python"
    return {"feed_forward_proj": "gated-gelu" if name == "gelu_new" else GATED + name}


def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
    """A classifier of tokens, or nothing: the others read the decoder."""
    if architecture(hf).endswith("ForTokenClassification") and "classifier.weight" in tensors:
        return Tagger(len(tensors["classifier.weight"])), tensors
    return Classifier(0, "mean"), tensors


def of_library(name: str) -> dict[str, Any]:
    """What differs in the families of transformers: the names of classes."""
    return {
        "classes": {"token classes": f"{name}ForTokenClassification"},
        "base_class": f"{name}EncoderModel",
    }


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    usual={"is_decoder": False},
    always=ALWAYS,
    prefix="transformer.",
    buffers=r"(encoder|decoder)\.embed_tokens\.weight",  # the shared table once more
    parts={"decoder.": "decoder", "lm_head.": "language-model head"},
    tokenizer="T5Tokenizer",
    aliases=ALIASES,
    **of_library("T5"),
)
MT5 = dataclasses.replace(
    FAMILY,
    config=with_defaults(CONFIG, feed_forward_proj="gated-gelu"),
    **of_library("MT5"),
)
UMT5 = dataclasses.replace(
    MT5,
    table=[OWN_BIAS if row is SHARED_BIAS else row for row in TABLE],
    always={**ALWAYS, "relative_per_block": True},  # each block has its own bias
    tokenizer="",
    **of_library("UMT5"),
)

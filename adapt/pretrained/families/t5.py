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
    dense,
    norm,
    with_defaults,
)
from adapt.pretrained.families.checks import check_usual
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
ATTENTION = "encoder.block.#.layer.0.SelfAttention"
UP = "encoder/block_#/mlp/up/kernel"
MLP = "encoder.block.#.layer.1.DenseReluDense"
SHARED_BIAS = Row(
    f"{ATTENTION}.relative_attention_bias.weight".replace("#", "0"), ("encoder/relative/table",)
)
OWN_BIAS = Row(
    f"{ATTENTION}.relative_attention_bias.weight", ("encoder/block_#/attention/relative/table",)
)
TABLE = [
    Row("shared.weight", ("encoder/embedding/token",)),
    SHARED_BIAS,
    *dense(f"{ATTENTION}.q", "encoder/block_#/attention/query"),
    *dense(f"{ATTENTION}.k", "encoder/block_#/attention/key"),
    *dense(f"{ATTENTION}.v", "encoder/block_#/attention/value"),
    *dense(f"{ATTENTION}.o", "encoder/block_#/attention/output"),
    *norm("encoder.block.#.layer.0.layer_norm", "encoder/block_#/attention_norm"),
    Row(f"{MLP}.wi.weight", (UP,), "transposed", only=("gated_mlp", False)),
    Row(f"{MLP}.wi_0.weight", ("encoder/block_#/mlp/gate/kernel",), "transposed"),
    Row(f"{MLP}.wi_1.weight", (UP,), "transposed", only=("gated_mlp", True)),
    *dense(f"{MLP}.wo", "encoder/block_#/mlp/down"),
    *norm("encoder.block.#.layer.1.layer_norm", "encoder/block_#/mlp_norm"),
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
    if hf.get("is_decoder"):
        check_usual(hf, is_decoder=False)
    name = str(fields["activation"])
    gated, activation = name.startswith(GATED), name.removeprefix(GATED)
    if name == "gated-gelu":  # the library's exception
        activation = "gelu_new"
    # Two more entries say the same, and transformers takes them over feed_forward_proj.
    fields["gated_mlp"] = bool(hf.get("is_gated_act", gated))
    fields["activation"] = hf.get("dense_act_fn", activation)
    return fields | ALWAYS | {"pad_token": fields["pad_token"] or 0}


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


def with_own_bias(hf: Entries, fields: Fields) -> Fields:
    """umT5's blocks have each their own bias."""
    return complete(hf, fields) | {"relative_per_block": True}


UMT5 = dataclasses.replace(
    MT5,
    table=[OWN_BIAS if row is SHARED_BIAS else row for row in TABLE],
    complete=with_own_bias,
    tokenizer="",
    **of_library("UMT5"),
)

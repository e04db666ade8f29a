"""What the decoders since Llama have in common: causal, RMS norms, rotary positions, shared keys
and values, a gated MLP. Their families are files of their own.
"""

from collections.abc import Callable, Mapping
from typing import Any

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import (
    GATED_MLP,
    SIZES,
    Family,
    Row,
    block_rows,
    dense,
    heads,
    norm,
    projections,
)
from adapt.pretrained.families.checks import check_count
from adapt.pretrained.families.types import Entries, Fields

CONFIG = [
    *SIZES,
    ("activation", "hidden_act", "silu"),
    ("norm_epsilon", "rms_norm_eps", 1e-6),
    ("attention_dropout", "attention_dropout", 0.0),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", None),
    ("end_token", "eos_token_id", None),
]
# Biases, which most have none of, are those of their families.
ALWAYS = {
    "pre_norm": True,
    "norm_kind": "rms",
    "gated_mlp": True,
    "qkv_bias": False,
    "output_bias": False,
    "mlp_bias": False,
    "dropout": 0.0,
}
# The norms of a block: their name and ours.
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}


def table(norms: Mapping[str, str] = NORMS) -> list[Row]:
    """The rows of a decoder."""
    block = {
        **norms,
        **projections("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        "self_attn.q_norm": "attention/query_norm",
        "self_attn.k_norm": "attention/key_norm",
        **GATED_MLP,
    }
    return [
        Row("embed_tokens.weight", ("encoder/embedding/token",)),
        *block_rows("layers.#", block),
        *norm("norm", "encoder/final_norm"),
        Row("lm_head.weight", ("head/decoder/kernel",), "transposed"),
        *dense("score", "head/classifier"),
        heads.SPAN,
    ]


def common_fields(hf: Entries, fields: Fields, kv_heads: int = 0, head_width: int = 0) -> Fields:
    """What every decoder has. ``kv_heads`` and ``head_width`` are the model's where its config.json
    does not say them; 0: as many as heads, and what the heads have of the width.
    """
    check_count(fields["width"], "hidden_size")
    check_count(fields["heads"], "num_attention_heads")
    attention = {
        "kv_heads": hf.get("num_key_value_heads", kv_heads) or fields["heads"],
        "head_width": hf.get("head_dim", head_width) or 0,
        "causal": hf.get("is_causal") is not False,  # some embedding models read both ways
    }
    return fields | attention


def common_entries(config: EncoderConfig) -> Fields:
    """The entries that :func:`common_fields` reads."""
    entries = {"num_key_value_heads": config.kv_heads}
    if config.head_width:
        entries["head_dim"] = config.head_width
    if not config.causal:
        entries["is_causal"] = False
    return entries


def biases(hf: Entries) -> Fields:
    """Attention's biases, which are four or none."""
    bias = bool(hf.get("attention_bias", False))
    return {"qkv_bias": bias, "output_bias": bias}


def family(
    name: str,
    complete: Callable[[Mapping[str, Any], Fields], Fields],
    entries: Callable[[EncoderConfig, Any], Fields],
    tokenizer: str = "",
    span_prefix: str = "transformer.",
) -> Family:
    """The family whose classes are called ``name``. That for spans has another prefix in most."""
    return Family(
        CONFIG,
        table(),
        heads.first_of(
            heads.classes_of_last,
            heads.spans,
            heads.causal_lm("embed_tokens.weight", "ForCausalLM"),
            pooling="last",
        ),
        complete,
        entries,
        always=ALWAYS,
        pooling="last",
        prefix="model.",
        buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        parts=heads.SPAN_BIAS,
        prefixes={"spans": span_prefix},
        classes=heads.classes_of(name, "classes", "token classes", "causal LM", "spans"),
        sequence_heads=[Classifier(0, "last", bias=False)],
        base_class=f"{name}Model",
        tokenizer=tokenizer,
    )

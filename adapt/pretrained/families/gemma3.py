"""Gemma 3's text model (2025): a scaled embedding, norms before and after each branch whose scale
is stored as its distance from 1, and local layers between global ones, with rotary positions of
their own. EmbeddingGemma is one that attends both ways.
"""

import dataclasses
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import EncoderConfig
from adapt.pretrained.families import decoders, local_layers, rope, without
from adapt.pretrained.families.checks import check_count
from adapt.pretrained.families.local_layers import GLOBAL, LOCAL
from adapt.pretrained.families.types import Entries, Fields

NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_branch_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_branch_norm",
}
ACTIVATION = [("activation", "hidden_activation", "gelu_pytorch_tanh")]
ALWAYS = {**decoders.ALWAYS, "norm_offset": True, "branch_norms": True, "qk_norm": True}
USUAL = {"attn_logit_softcapping": None, "final_logit_softcapping": None}


def complete(hf: Entries, fields: Fields) -> Fields:
    scalar = hf.get("query_pre_attn_scalar", 256)
    check_count(scalar, "query_pre_attn_scalar")
    both_ways = bool(hf.get("use_bidirectional_attention"))
    every = hf.get("sliding_window_pattern", 6)
    kinds = local_layers.layer_types(hf, fields, lambda index: (index + 1) % every)
    own = decoders.common_fields(hf, fields, kv_heads=4, head_width=256)
    own |= decoders.biases(hf)
    own |= rotary(hf)
    own |= local_layers.window_fields(kinds, hf.get("sliding_window", 4096), both_ways)
    own["causal"] = own["causal"] and not both_ways
    own["attention_scale"] = scalar**-0.5
    own["embedding_scale"] = fields["width"] ** 0.5
    return own


def rotary(hf: Entries) -> Fields:
    """The positions of the global layers, which alone may be scaled, and of the local ones."""
    everywhere = rope.rope_of_kind(hf, GLOBAL, "rope_theta", 1e6)
    everywhere |= rope.scaling_of_kinds(hf)
    local = rope.rope_of_kind(hf, LOCAL, "rope_local_base_freq", 1e4)
    if local.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"rope_type of {LOCAL} is {local['rope_type']!r} in config.json: only default is read, choose "
            "a checkpoint that has it"
        )
    return rope.scaling_fields(everywhere) | {"local_rotary_base": local["rope_theta"]}


def entries(config: EncoderConfig, head: Any) -> Fields:
    own = {
        "attention_bias": config.output_bias,
        "query_pre_attn_scalar": round(config.attention_scale**-2),
        "is_causal": True,
        "use_bidirectional_attention": not config.causal,
        "rope_theta": config.rotary_base,
        "rope_local_base_freq": config.local_rotary_base,
        "rope_scaling": rope.scaling_entry(config),
    }
    return decoders.common_entries(config) | local_layers.window_entries(config) | own


FAMILY = dataclasses.replace(
    decoders.family("Gemma3Text", complete, entries),
    usual=USUAL,
    always=ALWAYS,
    config=[*without(decoders.CONFIG, "activation"), *ACTIVATION],
    table=decoders.table(NORMS),
    classes={"classes": "Gemma3TextForSequenceClassification", "causal LM": "Gemma3ForCausalLM"},
)

"""NomicBERT (Nussbaum et al. 2024) and GTE (Zhang et al. 2024): BERT with rotary positions and a
gated MLP.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import (
    GATED_MLP,
    QKV,
    Family,
    Row,
    bert,
    block_modules,
    block_rows,
    dense,
    heads,
    norm,
    with_defaults,
)
from adapt.pretrained.families.rope import rope_fields, scaling_entry
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

NOMIC_DEFAULTS = {"hidden_act": "silu", "hidden_dropout_prob": 0.0}
NOMIC_DEFAULTS |= {"attention_probs_dropout_prob": 0.0}
GTE_DEFAULTS = {"type_vocab_size": 1, "attention_probs_dropout_prob": 0.0, "pad_token_id": 1}
EMBEDDING_AND_HEADS = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.token_type_embeddings.weight", ("encoder/embedding/type",)),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier", "head/classifier"),
]
BLOCK = {
    "attn.Wqkv": QKV,
    "attn.out_proj": "attention/output",
    "norm1": "attention_norm",
    "mlp.fc11": "mlp/up",
    "mlp.fc12": "mlp/gate",
    "mlp.fc2": "mlp/down",
    "norm2": "mlp_norm",
}
TABLE = [
    *EMBEDDING_AND_HEADS,
    *norm("emb_ln", "encoder/embedding/norm"),
    *block_rows("encoder.layers.#", BLOCK),
    *heads.masked_lm_rows(
        f"{bert.TRANSFORM}.dense", f"{bert.TRANSFORM}.layer_norm", bert.BIAS, bert.DECODER
    ),
]
GTE_BLOCK = {
    "attention.qkv_proj": QKV,
    "attention.o_proj": "attention/output",
    "attn_ln": "attention_norm",
    "mlp.up_gate_proj": ("mlp/up", "mlp/gate"),
    "mlp.down_proj": "mlp/down",
    "mlp_ln": "mlp_norm",
}
GTE_TABLE = [
    *EMBEDDING_AND_HEADS,
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    *block_rows("encoder.layer.#", GTE_BLOCK),
    *dense("lm_head.dense", "head/transform"),
    *norm("lm_head.norm", "head/norm"),
    *dense("lm_head.decoder", "head/decoder"),
]


def rotary(base: float) -> Callable[[Entries, Fields], Fields]:
    """``complete`` of a sibling whose positions have this base, unless config.json says another."""

    def complete(hf: Entries, fields: Fields) -> Fields:
        return fields | {"head_width": hf.get("head_dim") or 0} | rope_fields(hf, base)

    return complete


def entries(config: EncoderConfig, head: Any) -> Fields:
    scaling = scaling_entry(config) or {"rope_type": "default"}
    parameters = {"rope_theta": config.rotary_base, **scaling}
    width = {"head_dim": config.head_width} if config.head_width else {}
    return {"rope_parameters": parameters} | width


def token_classes(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of tokens: one without a pooler."""
    return None if "pooler.dense.weight" in tensors else heads.token_classes(config, hf, tensors)


def recognise(masked_lm: heads.Reader) -> heads.Recognise:
    """``recognise`` of the siblings, whose masked LMs differ."""
    return heads.first_of(masked_lm, token_classes, heads.pooler(), pooling="mean")


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """A second bias beside the decoder of NomicBERT, which is the one that the library uses where
    it is not tied.
    """
    bias = tensors.get(bert.BIAS)
    return {} if bias is None else {"cls.predictions.decoder.bias": bias.copy()}


KINDS = ("classes", "token classes", "masked LM")
NOMIC = Family(
    with_defaults(bert.CONFIG, **NOMIC_DEFAULTS),
    TABLE,
    recognise(heads.masked_lm(f"{bert.TRANSFORM}.dense.weight", bert.DECODER, bert.BIAS)),
    rotary(1000.0),
    entries,
    always={"gated_mlp": True, "qkv_bias": False, "output_bias": False, "mlp_bias": False},
    prefix="nomic_bert.",
    buffers=r"(rotary_emb|encoder\.layers\.\d+\.attn\.rotary_emb)\.(original_)?inv_freq",
    parts={"pooler.": "pooler"},
    classes=heads.classes_of("NomicBert", *KINDS),
    sequence_heads=[Classifier(0, "pooler")],
    base_class="NomicBertModel",
    extra_tensors=extra_tensors,
    tokenizer="BertTokenizer",
    modules=block_modules("layers.#", "self_attn", GATED_MLP),
)
GTE = dataclasses.replace(
    NOMIC,
    config=with_defaults(bert.CONFIG, **GTE_DEFAULTS),
    table=GTE_TABLE,
    recognise=recognise(
        heads.masked_lm("lm_head.dense.weight", "lm_head.decoder.weight", head=heads.gelu_masked_lm)
    ),
    complete=rotary(160_000.0),
    always={"gated_mlp": True, "mlp_bias": False, "down_bias": True},
    prefix="gte.",
    classes=heads.classes_of("Gte", *KINDS),
    base_class="GteModel",
    language_model=heads.gelu_masked_lm,
    tokenizer="",
)

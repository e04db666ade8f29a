"""NomicBERT (Nussbaum et al. 2024) and GTE (Zhang et al. 2024): BERT with rotary positions and a
gated MLP.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adapt.models import Classifier, EncoderConfig, MaskedLM, Tagger
from adapt.pretrained.families import (
    Family,
    Fields,
    Row,
    Tensors,
    dense,
    language_model,
    norm,
    tie,
    with_decoder_bias,
)
from adapt.pretrained.families.rope import rope_fields, scaling_entry

CONFIG = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
    ("positions", "max_position_embeddings"),
    ("vocabulary", "vocab_size"),
    ("types", "type_vocab_size", 2),
    ("activation", "hidden_act", "silu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", 0),
]
GTE_DEFAULTS = {"type_vocab_size": 1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1}
GTE_DEFAULTS |= {"pad_token_id": 1}
BLOCK = "encoder/block_#"
QKV = [f"{BLOCK}/attention/{name}" for name in ("query", "key", "value")]
SHARED = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.token_type_embeddings.weight", ("encoder/embedding/type",)),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier", "head/classifier"),
]
TABLE = [
    *SHARED,
    *norm("emb_ln", "encoder/embedding/norm"),
    *dense("encoder.layers.#.attn.Wqkv", *QKV),
    *dense("encoder.layers.#.attn.out_proj", f"{BLOCK}/attention/output"),
    *norm("encoder.layers.#.norm1", f"{BLOCK}/attention_norm"),
    *dense("encoder.layers.#.mlp.fc11", f"{BLOCK}/mlp/up"),
    *dense("encoder.layers.#.mlp.fc12", f"{BLOCK}/mlp/gate"),
    *dense("encoder.layers.#.mlp.fc2", f"{BLOCK}/mlp/down"),
    *norm("encoder.layers.#.norm2", f"{BLOCK}/mlp_norm"),
    *dense("cls.predictions.transform.dense", "head/transform"),
    *norm("cls.predictions.transform.layer_norm", "head/norm"),
    Row("cls.predictions.bias", ("head/decoder/bias",)),
    Row("cls.predictions.decoder.weight", ("head/decoder/kernel",), "transposed"),
]
GTE_TABLE = [
    *SHARED,
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    *dense("encoder.layer.#.attention.qkv_proj", *QKV),
    *dense("encoder.layer.#.attention.o_proj", f"{BLOCK}/attention/output"),
    *norm("encoder.layer.#.attn_ln", f"{BLOCK}/attention_norm"),
    *dense("encoder.layer.#.mlp.up_gate_proj", f"{BLOCK}/mlp/up", f"{BLOCK}/mlp/gate"),
    *dense("encoder.layer.#.mlp.down_proj", f"{BLOCK}/mlp/down"),
    *norm("encoder.layer.#.mlp_ln", f"{BLOCK}/mlp_norm"),
    *dense("lm_head.dense", "head/transform"),
    *norm("lm_head.norm", "head/norm"),
    *dense("lm_head.decoder", "head/decoder"),
]


def complete_nomic(hf: Mapping[str, Any], fields: Fields) -> Fields:
    biases = {"qkv_bias": False, "output_bias": False, "mlp_bias": False}
    return rotary(hf, fields, 1000.0) | biases


def complete_gte(hf: Mapping[str, Any], fields: Fields) -> Fields:
    return rotary(hf, fields, 160_000.0) | {"mlp_bias": False, "down_bias": True}


def rotary(hf: Mapping[str, Any], fields: Fields, default: float) -> Fields:
    """The fields with what both families have in common."""
    own = {"gated_mlp": True, "head_width": hf.get("head_dim") or 0}
    return fields | own | rope_fields(hf, default)


def entries(config: EncoderConfig, head: Any) -> Fields:
    scaling = scaling_entry(config) or {"rope_type": "default"}
    parameters = {"rope_theta": config.rotary_base, **scaling}
    width = {"head_dim": config.head_width} if config.head_width else {}
    return {"rope_parameters": parameters} | width


def gte_masked_lm(config: EncoderConfig, tied: bool = True) -> MaskedLM:
    """GTE's head of pre-training: its activation is GELU, whatever the encoder's is."""
    return MaskedLM(config.vocabulary, tied, norm_epsilon=config.norm_epsilon)


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """A masked LM; a classifier of sequences or, without a pooler, of tokens; the pooler alone, or
    nothing.
    """
    for decoder, head in HEADS.items():
        if any(name.startswith(decoder.partition(".")[0] + ".") for name in tensors):
            tied, tensors = tie(hf, tensors, decoder, "embeddings.word_embeddings.weight")
            biases = ("cls.predictions.decoder.bias", "cls.predictions.bias")
            tensors = with_decoder_bias(tensors, tied, *biases)
            return head(config, tied), tensors
    has_pooler = "pooler.dense.weight" in tensors
    classes = len(tensors.get("classifier.weight", ()))
    if classes and not has_pooler:
        return Tagger(classes), tensors
    return Classifier(classes, "pooler" if has_pooler else "mean"), tensors


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """A second bias beside the decoder of NomicBERT, which is the one that the library uses where
    it is not tied.
    """
    bias = tensors.get("cls.predictions.bias")
    return {} if bias is None else {"cls.predictions.decoder.bias": bias.copy()}


HEADS = {"cls.predictions.decoder.weight": language_model, "lm_head.decoder.weight": gte_masked_lm}
CLASSES = {
    "classes": "{}ForSequenceClassification",
    "token classes": "{}ForTokenClassification",
    "masked LM": "{}ForMaskedLM",
}


def with_defaults(defaults: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The rows of the configuration with other defaults."""
    rows = []
    for ours, theirs, *default in CONFIG:
        rows.append(
            (ours, theirs, defaults[theirs]) if theirs in defaults else (ours, theirs, *default)
        )
    return rows


NOMIC = Family(
    CONFIG,
    TABLE,
    recognise,
    complete_nomic,
    entries,
    prefix="nomic_bert.",
    buffers=r"(rotary_emb|encoder\.layers\.\d+\.attn\.rotary_emb)\.(original_)?inv_freq",
    parts={"pooler.": "pooler"},
    classes={kind: name.format("NomicBert") for kind, name in CLASSES.items()},
    sequence_heads=[Classifier(0, "pooler")],
    base_class="NomicBertModel",
    extra_tensors=extra_tensors,
    tokenizer="BertTokenizer",
)
GTE = dataclasses.replace(
    NOMIC,
    config=with_defaults(GTE_DEFAULTS),
    table=GTE_TABLE,
    complete=complete_gte,
    prefix="gte.",
    classes={kind: name.format("Gte") for kind, name in CLASSES.items()},
    base_class="GteModel",
    language_model=gte_masked_lm,
    tokenizer="",
)

"""DeBERTa-v2 and v3 (He et al. 2021; 2023): BERT's blocks with attention to content and to relative
positions apart.
"""

from collections.abc import Mapping
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, Span, Tagger
from adapt.pretrained.families import (
    ACTIVATIONS,
    LIBRARY_ACTIVATIONS,
    Family,
    Fields,
    Row,
    Tensors,
    architecture,
    bert,
    dense,
    language_model,
    norm,
    tie,
    with_decoder_bias,
)

CONFIG = [row for row in bert.CONFIG if row[0] not in ("types", "norm_epsilon")]
CONFIG += [("types", "type_vocab_size", 0), ("norm_epsilon", "layer_norm_eps", 1e-7)]
SELF = "encoder.layer.#.attention.self"
TABLE = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    Row("embeddings.token_type_embeddings.weight", ("encoder/embedding/type",)),
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    Row("encoder.rel_embeddings.weight", ("encoder/relative/table",)),
    *norm("encoder.LayerNorm", "encoder/relative/norm"),
    *dense(f"{SELF}.query_proj", "encoder/block_#/attention/query"),
    *dense(f"{SELF}.key_proj", "encoder/block_#/attention/key"),
    *dense(f"{SELF}.value_proj", "encoder/block_#/attention/value"),
    *dense(f"{SELF}.pos_key_proj", "encoder/block_#/attention/position_key"),
    *dense(f"{SELF}.pos_query_proj", "encoder/block_#/attention/position_query"),
    *dense("encoder.layer.#.attention.output.dense", "encoder/block_#/attention/output"),
    *norm("encoder.layer.#.attention.output.LayerNorm", "encoder/block_#/attention_norm"),
    *dense("encoder.layer.#.intermediate.dense", "encoder/block_#/mlp/up"),
    *dense("encoder.layer.#.output.dense", "encoder/block_#/mlp/down"),
    *norm("encoder.layer.#.output.LayerNorm", "encoder/block_#/mlp_norm"),
    *dense("cls.predictions.transform.dense", "head/transform"),
    *norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Row("cls.predictions.bias", ("head/decoder/bias",)),
    Row("cls.predictions.decoder.weight", ("head/decoder/kernel",), "transposed"),
    *dense("pooler.dense", "head/hidden"),
    *dense("classifier", "head/classifier"),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]
PARTS = {
    "mask_predictions.": "replaced-token head",
    "lm_predictions.": "masked-LM head of the generator",
    "embeddings.position_embeddings.": "positions of no effect",
    "encoder.LayerNorm.": "norm of relative positions of no effect",
    "pooler.": "pooler",
    "qa_outputs.bias": "span bias of no effect",
}
# What a masked-LM head is called by "legacy": false, and in this table.
NEW_NAMES = {
    "lm_predictions.lm_head.dense.": "cls.predictions.transform.dense.",
    "lm_predictions.lm_head.LayerNorm.": "cls.predictions.transform.LayerNorm.",
    "lm_predictions.lm_head.bias": "cls.predictions.bias",
}
TERMS = ("c2p", "p2c")


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    width = fields["width"]
    head_width = width // fields["heads"]
    for entry, only in (
        ("conv_kernel_size", 0),
        ("embedding_size", width),
        ("attention_head_size", head_width),
    ):
        if hf.get(entry, only) != only:
            raise CheckpointError(f"{entry} is {hf[entry]!r} in config.json: only {only} is read")
    terms = listed(hf.get("pos_att_type") or [])
    if set(terms) - set(TERMS):
        raise CheckpointError(f"pos_att_type is {terms} in config.json: only c2p and p2c are read")
    fields["attention_scale"] = (head_width * (1 + len(terms))) ** -0.5
    if not hf.get("position_biased_input", True):
        fields["position_kind"] = "none"
    fields["pad_token"] = fields["pad_token"] or 0
    if hf.get("relative_attention", False):
        fields |= relative_fields(hf, terms, fields["positions"])
    return fields


def listed(value: str | list[str]) -> tuple[str, ...]:
    """Words of config.json: a list, or a text like ``p2c|c2p``; in one order, each once."""
    words = value.lower().split("|") if isinstance(value, str) else value
    return tuple(sorted({word.strip() for word in words}))


def relative_fields(hf: Mapping[str, Any], terms: tuple[str, ...], positions: int) -> Fields:
    """The table of differences, and what becomes of it."""
    if not terms:
        raise CheckpointError(
            "relative_attention is true in config.json and pos_att_type names no c2p or p2c"
        )
    distance = hf.get("max_relative_positions", -1)
    if distance < 1:
        distance = positions
    buckets = hf.get("position_buckets", -1)
    return {
        "relative_buckets": buckets if buckets > 0 else distance,
        "relative_distance": distance if buckets > 0 else 0,
        "relative_terms": terms,
        "relative_norm": "layer_norm" in listed(hf.get("norm_rel_ebd", "none")),
        "relative_kernels": not hf.get("share_att_key", False),
    }


def entries(config: EncoderConfig, head: Any) -> Fields:
    width = config.width // config.heads
    terms = config.relative_terms or TERMS[: round(config.attention_scale**-2 / width) - 1]
    found: Fields = {
        "relative_attention": bool(config.relative_terms),
        "pos_att_type": list(terms),
        "position_biased_input": config.position_kind == "learned",
        "legacy": True,  # the names of a masked-LM head
    }
    if config.relative_terms:
        found |= {
            "position_buckets": config.relative_buckets if config.relative_distance else -1,
            "max_relative_positions": config.relative_distance or config.relative_buckets,
            "norm_rel_ebd": "layer_norm" if config.relative_norm else "none",
            "share_att_key": not config.relative_kernels,
        }
    if getattr(head, "hidden", ""):
        found["pooler_hidden_act"] = LIBRARY_ACTIVATIONS.get(head.hidden, head.hidden)
    return found


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """Masked LM; answers to questions; a classifier of sequences or of tokens; or nothing.

    Beside v3's head for replaced tokens a masked-LM head is the generator's, of another encoder.
    """
    replaced = any(name.startswith("mask_predictions.") for name in tensors)
    if not replaced and "lm_predictions.lm_head.bias" in tensors:
        tensors = {renamed(name): tensor for name, tensor in tensors.items()}
    if "cls.predictions.bias" in tensors:
        decoder = "cls.predictions.decoder.weight"
        tied, tensors = tie(hf, tensors, decoder, "embeddings.word_embeddings.weight")
        biases = ("cls.predictions.decoder.bias", "cls.predictions.bias")
        tensors = with_decoder_bias(tensors, tied, *biases)
        return language_model(config, tied), tensors
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    classes = len(tensors.get("classifier.weight", ()))
    hidden = ACTIVATIONS.get(hf.get("pooler_hidden_act", "gelu"))
    if classes and hidden and "pooler.dense.weight" in tensors:
        return Classifier(classes, "cls", hidden=hidden), tensors
    if classes and architecture(hf).endswith("ForTokenClassification"):
        return Tagger(classes), tensors
    return Classifier(0, "cls"), tensors


def renamed(name: str) -> str:
    for new, old in NEW_NAMES.items():
        if name.startswith(new):
            return name.replace(new, old)
    return name


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    prefix="deberta.",
    buffers=r"embeddings\.position_ids",
    parts=PARTS,
    classes={
        "classes": "DebertaV2ForSequenceClassification",
        "token classes": "DebertaV2ForTokenClassification",
        "spans": "DebertaV2ForQuestionAnswering",
        "masked LM": "DebertaV2ForMaskedLM",
    },
    sequence_heads=[Classifier(0, "cls", hidden=name) for name in ("gelu", "tanh", "relu")],
    base_class="DebertaV2Model",
    extra_tensors=bert.extra_tensors,
    tokenizer="DebertaV2Tokenizer",
)

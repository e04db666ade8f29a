"""ALBERT (Lan et al. 2020): one block that is used again and again, after a narrow embedding."""

from typing import Any

from adapt.models import Classifier, EncoderConfig, MaskedLM
from adapt.pretrained.families import Family, bert, dense, heads, norm, with_defaults
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

DEFAULTS = {"hidden_act": "gelu_new", "hidden_dropout_prob": 0.0}
DEFAULTS |= {"attention_probs_dropout_prob": 0.0}
CONFIG = [
    *with_defaults(bert.CONFIG, **DEFAULTS),
    ("embedding_width", "embedding_size", 128),
]
BIAS = "predictions.bias"
DECODER = "predictions.decoder.weight"
BLOCK = "encoder.albert_layer_groups.0.albert_layers.0"
TABLE = [
    *[row for row in bert.ENCODER if row.paths[0].startswith("encoder/embedding/")],
    *dense("encoder.embedding_hidden_mapping_in", "encoder/embedding/projection"),
    *dense(f"{BLOCK}.attention.query", "encoder/block_00/attention/query"),
    *dense(f"{BLOCK}.attention.key", "encoder/block_00/attention/key"),
    *dense(f"{BLOCK}.attention.value", "encoder/block_00/attention/value"),
    *dense(f"{BLOCK}.attention.dense", "encoder/block_00/attention/output"),
    *norm(f"{BLOCK}.attention.LayerNorm", "encoder/block_00/attention_norm"),
    *dense(f"{BLOCK}.ffn", "encoder/block_00/mlp/up"),
    *dense(f"{BLOCK}.ffn_output", "encoder/block_00/mlp/down"),
    *norm(f"{BLOCK}.full_layer_layer_norm", "encoder/block_00/mlp_norm"),
    *heads.masked_lm_rows("predictions.dense", "predictions.LayerNorm", BIAS, DECODER),
    *dense("sop_classifier.classifier", "head/next_sentence"),
    *dense("pooler", "head/pooler"),
    *dense("classifier", "head/classifier"),
    heads.SPAN,
]
ONE = {"num_hidden_groups": 1, "inner_group_num": 1}


def complete(hf: Entries, fields: Fields) -> Fields:
    check_usual(hf, **ONE)
    return bert.complete(hf, fields) | {"shared_blocks": True}


def entries(config: EncoderConfig, head: Any) -> Fields:
    return dict(ONE)


def language_model(
    config: EncoderConfig, tied: bool = True, next_sentence: bool = False, pooler: bool = False
) -> MaskedLM:
    """``next_sentence`` is the order of two sentences here."""
    return MaskedLM(
        config.vocabulary,
        tied,
        next_sentence,
        config.activation,
        config.norm_epsilon,
        pooler=pooler,
        width=config.embedding_width,
    )


def masked_lm(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """The masked-LM head, with the order of sentences where its classifier is there."""
    if BIAS not in tensors:
        return None
    tied, tensors = heads.tie(hf, tensors, DECODER, bias=BIAS)
    pooler = "pooler.weight" in tensors
    order = pooler and "sop_classifier.classifier.weight" in tensors
    return language_model(config, tied, order, pooler and not order), tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        masked_lm,
        heads.spans,
        heads.token_classes_by_name,
        heads.pooler("pooler.weight"),
        pooling="cls",
    ),
    complete,
    entries,
    prefix="albert.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={
        "pooler.": "pooler",
        "sop_classifier.": "sentence-order head",
        **heads.SPAN_BIAS,
    },
    classes=heads.classes_of("Albert", *heads.TEXT_KINDS, "masked LM and next sentence"),
    sequence_heads=[Classifier(0, "pooler")],
    base_class="AlbertModel",
    extra_tensors=heads.second_bias_or_pooler(DECODER, BIAS, "pooler"),
    language_model=language_model,
    pair_objective="sentence-order",
    tokenizer="AlbertTokenizer",
)

"""BERT (Devlin et al. 2019): post-norm blocks, learned positions, two segment types."""

from adapt.models import Classifier, EncoderConfig, MaskedLM
from adapt.pretrained.families import SIZES, Family, Row, dense, heads, norm
from adapt.pretrained.families.checks import check_usual
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [
    *SIZES,
    ("types", "type_vocab_size", 2),
    ("activation", "hidden_act", "gelu"),
    ("norm_epsilon", "layer_norm_eps", 1e-12),
    ("dropout", "hidden_dropout_prob", 0.1),
    ("attention_dropout", "attention_probs_dropout_prob", 0.1),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", 0),
]
ENCODER = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    Row("embeddings.token_type_embeddings.weight", ("encoder/embedding/type",)),
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    *dense("encoder.layer.#.attention.self.query", "encoder/block_#/attention/query"),
    *dense("encoder.layer.#.attention.self.key", "encoder/block_#/attention/key"),
    *dense("encoder.layer.#.attention.self.value", "encoder/block_#/attention/value"),
    *dense("encoder.layer.#.attention.output.dense", "encoder/block_#/attention/output"),
    *norm("encoder.layer.#.attention.output.LayerNorm", "encoder/block_#/attention_norm"),
    *dense("encoder.layer.#.intermediate.dense", "encoder/block_#/mlp/up"),
    *dense("encoder.layer.#.output.dense", "encoder/block_#/mlp/down"),
    *norm("encoder.layer.#.output.LayerNorm", "encoder/block_#/mlp_norm"),
]
BIAS = "cls.predictions.bias"
DECODER = "cls.predictions.decoder.weight"
TRANSFORM = "cls.predictions.transform"
MASKED_LM = heads.masked_lm_rows(f"{TRANSFORM}.dense", f"{TRANSFORM}.LayerNorm", BIAS, DECODER)
TABLE = [
    *ENCODER,
    *MASKED_LM,
    *dense("cls.seq_relationship", "head/next_sentence"),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier", "head/classifier"),
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    check_usual(hf, position_embedding_type="absolute")
    if hf.get("is_decoder"):
        check_usual(hf, is_decoder=False)
    return fields | {"pad_token": fields["pad_token"] or 0}


def masked_lm(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """The masked-LM head, with what of next-sentence prediction is there: transformers saved the
    pooler alone beside it until its version 3.
    """
    if BIAS not in tensors:
        return None
    tied, tensors = heads.tie(hf, tensors, DECODER, bias=BIAS)
    has_pooler = "pooler.dense.weight" in tensors
    next_sentence = has_pooler and "cls.seq_relationship.weight" in tensors
    head = MaskedLM(
        config.vocabulary,
        tied,
        next_sentence,
        config.activation,
        config.norm_epsilon,
        pooler=has_pooler and not next_sentence,
    )
    return head, tensors


def next_sentence(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """Next-sentence prediction, a classifier of pairs in all but its name."""
    if "cls.seq_relationship.weight" not in tensors:
        return None
    renamed = heads.with_names(tensors, {"cls.seq_relationship.": "classifier."})
    return heads.pooler()(config, hf, renamed)


FAMILY = Family(
    CONFIG,
    TABLE,
    # Without a pooler a classifier may be one of tokens or of the first of them.
    heads.first_of(
        masked_lm,
        heads.spans,
        heads.token_classes_by_name,
        next_sentence,
        heads.pooler(),
        pooling="cls",
    ),
    complete,
    prefix="bert.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={"pooler.": "pooler", "cls.seq_relationship.": "next-sentence head", **heads.SPAN_BIAS},
    classes=heads.classes_of("Bert", *heads.TEXT_KINDS, "masked LM and next sentence"),
    sequence_heads=[Classifier(0, "pooler")],
    base_class="BertModel",
    extra_tensors=heads.second_bias_or_pooler(DECODER, BIAS),
    pair_objective="next-sentence",
    tokenizer="BertTokenizer",
)

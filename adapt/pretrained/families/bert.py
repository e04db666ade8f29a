"""BERT (Devlin et al. 2019): post-norm blocks, learned positions, two segment types."""

from adapt.models import Classifier, EncoderConfig
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
)
from adapt.pretrained.families.types import Entries, Found, Tensors

CONFIG = [*SIZES, ("types", "type_vocab_size", 2), *TRAINING, ("pad_token", "pad_token_id", 0)]
EMBEDDING = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    Row("embeddings.token_type_embeddings.weight", ("encoder/embedding/type",)),
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
]
LAYER = "encoder.layer.#"
MLP = {"intermediate.dense": "mlp/up", "output.dense": "mlp/down", "output.LayerNorm": "mlp_norm"}
AFTER_HEADS = {
    "attention.output.dense": "attention/output",
    "attention.output.LayerNorm": "attention_norm",
    **MLP,
}
BLOCK = projections("attention.self", "query", "key", "value") | AFTER_HEADS
ENCODER = [*EMBEDDING, *block_rows(LAYER, BLOCK)]
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
        heads.masked_lm_and_pairs(DECODER, BIAS, "pooler.dense", "cls.seq_relationship"),
        heads.spans,
        heads.token_classes_by_name,
        next_sentence,
        heads.pooler(),
        pooling="cls",
    ),
    usual={"position_embedding_type": "absolute", "is_decoder": False},
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

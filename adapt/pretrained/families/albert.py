"""ALBERT (Lan et al. 2020): one block that is used again and again, after a narrow embedding."""

from adapt.models import Classifier
from adapt.pretrained.families import (
    Family,
    bert,
    block_rows,
    dense,
    heads,
    projections,
    with_defaults,
)

DEFAULTS = {"hidden_act": "gelu_new", "hidden_dropout_prob": 0.0}
DEFAULTS |= {"attention_probs_dropout_prob": 0.0}
CONFIG = [
    *with_defaults(bert.CONFIG, **DEFAULTS),
    ("embedding_width", "embedding_size", 128),
]
BIAS = "predictions.bias"
DECODER = "predictions.decoder.weight"
BLOCK = {
    **projections("attention", "query", "key", "value", "dense"),
    "attention.LayerNorm": "attention_norm",
    "ffn": "mlp/up",
    "ffn_output": "mlp/down",
    "full_layer_layer_norm": "mlp_norm",
}
TABLE = [
    *bert.EMBEDDING,
    *dense("encoder.embedding_hidden_mapping_in", "encoder/embedding/projection"),
    *block_rows("encoder.albert_layer_groups.0.albert_layers.0", BLOCK, "encoder/block_00"),
    *heads.masked_lm_rows("predictions.dense", "predictions.LayerNorm", BIAS, DECODER),
    *dense("sop_classifier.classifier", "head/next_sentence"),
    *dense("pooler", "head/pooler"),
    *dense("classifier", "head/classifier"),
    heads.SPAN,
]

FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        # The order of two sentences is learned as BERT's next sentence is.
        heads.masked_lm_and_pairs(DECODER, BIAS, "pooler", "sop_classifier.classifier"),
        heads.spans,
        heads.token_classes_by_name,
        heads.pooler("pooler.weight"),
        pooling="cls",
    ),
    usual={**bert.FAMILY.usual, "num_hidden_groups": 1, "inner_group_num": 1},
    always={"shared_blocks": True},
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
    pair_objective="sentence-order",
    tokenizer="AlbertTokenizer",
)

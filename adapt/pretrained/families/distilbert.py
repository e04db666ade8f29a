"""DistilBERT (Sanh et al. 2019): BERT's blocks without segment types and pooler; its classifier has
a hidden layer with relu.
"""

from adapt.models import Classifier
from adapt.pretrained.families import Family, Row, dense, heads, norm
from adapt.pretrained.families.types import Entries, Fields

CONFIG = [
    ("layers", "n_layers"),
    ("width", "dim"),
    ("heads", "n_heads"),
    ("mlp_width", "hidden_dim"),
    ("positions", "max_position_embeddings"),
    ("vocabulary", "vocab_size"),
    ("activation", "activation", "gelu"),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("init_range", "initializer_range", 0.02),
    ("pad_token", "pad_token_id", 0),
]  # the epsilon of norms is always 1e-12
DECODER = "vocab_projector.weight"
TABLE = [
    Row("embeddings.word_embeddings.weight", ("encoder/embedding/token",)),
    Row("embeddings.position_embeddings.weight", ("encoder/embedding/position",)),
    *norm("embeddings.LayerNorm", "encoder/embedding/norm"),
    *dense("transformer.layer.#.attention.q_lin", "encoder/block_#/attention/query"),
    *dense("transformer.layer.#.attention.k_lin", "encoder/block_#/attention/key"),
    *dense("transformer.layer.#.attention.v_lin", "encoder/block_#/attention/value"),
    *dense("transformer.layer.#.attention.out_lin", "encoder/block_#/attention/output"),
    *norm("transformer.layer.#.sa_layer_norm", "encoder/block_#/attention_norm"),
    *dense("transformer.layer.#.ffn.lin1", "encoder/block_#/mlp/up"),
    *dense("transformer.layer.#.ffn.lin2", "encoder/block_#/mlp/down"),
    *norm("transformer.layer.#.output_layer_norm", "encoder/block_#/mlp_norm"),
    *heads.masked_lm_rows("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", DECODER),
    *dense("pre_classifier", "head/hidden"),
    *dense("classifier", "head/classifier"),
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    return fields | {"pad_token": fields["pad_token"] or 0}


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        heads.masked_lm("vocab_transform.weight", DECODER),
        heads.spans,
        heads.classes_after("pre_classifier.weight", "relu", "classifier.weight"),
        heads.token_classes,
        pooling="cls",
    ),
    complete,
    prefix="distilbert.",
    buffers=r"embeddings\.position_ids",
    parts=heads.SPAN_BIAS,
    classes=heads.classes_of("DistilBert", *heads.TEXT_KINDS),
    sequence_heads=[Classifier(0, "cls", hidden="relu")],
    base_class="DistilBertModel",
    tokenizer="BertTokenizer",
    aliases={
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
)

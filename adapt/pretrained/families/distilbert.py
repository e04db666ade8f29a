"""DistilBERT (Sanh et al. 2019): BERT's blocks without segment types and pooler; its classifier has
a hidden layer with relu.
"""

from adapt.models import Classifier
from adapt.pretrained.families import Family, bert, block_rows, dense, heads, projections

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
BLOCK = {
    **projections("attention", "q_lin", "k_lin", "v_lin", "out_lin"),
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "mlp/up",
    "ffn.lin2": "mlp/down",
    "output_layer_norm": "mlp_norm",
}
TABLE = [
    *bert.EMBEDDING,
    *block_rows("transformer.layer.#", BLOCK),
    *heads.masked_lm_rows("vocab_transform", "vocab_layer_norm", "vocab_projector.bias", DECODER),
    *dense("pre_classifier", "head/hidden"),
    *dense("classifier", "head/classifier"),
    heads.SPAN,
]

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

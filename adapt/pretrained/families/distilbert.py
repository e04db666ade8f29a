"""DistilBERT (Sanh et al. 2019): BERT's blocks without segment types and pooler; its classifier has
a hidden layer with relu.
"""

from collections.abc import Mapping
from typing import Any

from adapt.models import Classifier, EncoderConfig, Span, Tagger
from adapt.pretrained.families import Family, Fields, Row, Tensors, dense, language_model, norm, tie

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
    *dense("vocab_transform", "head/transform"),
    *norm("vocab_layer_norm", "head/norm"),
    Row("vocab_projector.bias", ("head/decoder/bias",)),
    Row("vocab_projector.weight", ("head/decoder/kernel",), "transposed"),
    *dense("pre_classifier", "head/hidden"),
    *dense("classifier", "head/classifier"),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    return fields | {"pad_token": fields["pad_token"] or 0}


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """Masked LM; answers to questions; a classifier of sequences, of pairs of choices, or of tokens;
    or nothing.
    """
    if "vocab_transform.weight" in tensors:
        decoder = "vocab_projector.weight"
        tied, tensors = tie(hf, tensors, decoder, "embeddings.word_embeddings.weight")
        return language_model(config, tied), tensors
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    classes = len(tensors.get("classifier.weight", ()))
    if classes and "pre_classifier.weight" in tensors:
        return Classifier(classes, "cls", hidden="relu"), tensors
    return (Tagger(classes) if classes else Classifier(0, "cls")), tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    prefix="distilbert.",
    buffers=r"embeddings\.position_ids",
    parts={"qa_outputs.bias": "span bias of no effect"},
    classes={
        "classes": "DistilBertForSequenceClassification",
        "token classes": "DistilBertForTokenClassification",
        "spans": "DistilBertForQuestionAnswering",
        "masked LM": "DistilBertForMaskedLM",
    },
    sequence_heads=[Classifier(0, "cls", hidden="relu")],
    base_class="DistilBertModel",
    tokenizer="BertTokenizer",
    aliases={
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    },
)

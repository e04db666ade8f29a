"""BERT (Devlin et al. 2019): post-norm blocks, learned positions, two segment types."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedLM, Span, Tagger
from adapt.pretrained.families import (
    Family,
    Fields,
    Row,
    Tensors,
    architecture,
    dense,
    norm,
    tie,
    with_decoder_bias,
)

PARTS = {
    "pooler.": "pooler",
    "cls.seq_relationship.": "next-sentence head",
    "qa_outputs.bias": "span bias of no effect",
}
CONFIG = [
    ("layers", "num_hidden_layers"),
    ("width", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("mlp_width", "intermediate_size"),
    ("positions", "max_position_embeddings"),
    ("vocabulary", "vocab_size"),
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
TABLE = [
    *ENCODER,
    *dense("cls.predictions.transform.dense", "head/transform"),
    *norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Row("cls.predictions.bias", ("head/decoder/bias",)),
    Row("cls.predictions.decoder.weight", ("head/decoder/kernel",), "transposed"),
    *dense("cls.seq_relationship", "head/next_sentence"),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier", "head/classifier"),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    positions = hf.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(
            f"position_embedding_type {positions!r} in config.json: only absolute is read"
        )
    if hf.get("is_decoder"):
        raise CheckpointError("is_decoder is true in config.json: only BERT encoders are read")
    return fields | {"pad_token": fields["pad_token"] or 0}


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """Masked LM, next sentence, or both; answers to questions; a classifier of sequences, of pairs
    of choices, or of tokens; the pooler alone, or nothing.
    """
    pooler = any(name.startswith("pooler.") for name in tensors)
    if any(name.startswith("cls.predictions.") for name in tensors):
        return masked_lm(config, hf, tensors, pooler)
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    if pooler and "cls.seq_relationship.weight" in tensors:
        # A classifier of pairs in all but its name.
        names = {name: name.replace("cls.seq_relationship.", "classifier.") for name in tensors}
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
    classes = len(tensors.get("classifier.weight", ()))
    if classes and architecture(hf).endswith("ForTokenClassification"):
        return Tagger(classes), tensors
    if pooler:
        return Classifier(classes, "pooler"), tensors
    # Without a pooler nobody knows whether a classifier is one of tokens or of the first of them.
    return Classifier(0, "cls"), tensors


def masked_lm(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors, pooler: bool
) -> tuple[Any, Tensors]:
    """The masked-LM head, with what of next-sentence prediction is there: transformers saved the
    pooler alone beside it until its version 3.
    """
    tied, tensors = tie(
        hf, tensors, "cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"
    )
    biases = ("cls.predictions.decoder.bias", "cls.predictions.bias")
    tensors = with_decoder_bias(tensors, tied, *biases)
    next_sentence = pooler and "cls.seq_relationship.weight" in tensors
    head = MaskedLM(
        config.vocabulary,
        tied,
        next_sentence,
        config.activation,
        config.norm_epsilon,
        pooler=pooler and not next_sentence,
    )
    return head, tensors


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """A second bias beside an untied decoder, which is the one that the library uses; and for the
    encoder alone a pooler of zeros, which nothing reads.

    A folder without the pooler's tensors would get a random one and a warning, and the setting that
    leaves it out is one that ONNX and OpenVINO do not know.
    """
    if "cls.predictions.decoder.weight" in tensors:
        return {"cls.predictions.decoder.bias": tensors["cls.predictions.bias"].copy()}
    return pooler_of_zeros(config) if architecture == "BertModel" else {}


def pooler_of_zeros(config: EncoderConfig) -> Tensors:
    width = config.width
    return {
        "pooler.dense.weight": np.zeros((width, width), np.float32),
        "pooler.dense.bias": np.zeros(width, np.float32),
    }


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    prefix="bert.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts=PARTS,
    classes={
        "classes": "BertForSequenceClassification",
        "token classes": "BertForTokenClassification",
        "spans": "BertForQuestionAnswering",
        "masked LM": "BertForMaskedLM",
        "masked LM and next sentence": "BertForPreTraining",
    },
    sequence_heads=[Classifier(0, "pooler")],
    base_class="BertModel",
    extra_tensors=extra_tensors,
    tokenizer="BertTokenizer",
)

"""ALBERT (Lan et al. 2020): one block that is used again and again, after a narrow embedding."""

from collections.abc import Mapping
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedLM, Span, Tagger
from adapt.pretrained.families import (
    Family,
    Fields,
    Row,
    Tensors,
    architecture,
    bert,
    dense,
    norm,
    tie,
    with_decoder_bias,
)

CONFIG = [row for row in bert.CONFIG if row[0] != "activation" and "dropout" not in row[0]]
CONFIG += [
    ("embedding_width", "embedding_size", 128),
    ("activation", "hidden_act", "gelu_new"),
    ("dropout", "hidden_dropout_prob", 0.0),
    ("attention_dropout", "attention_probs_dropout_prob", 0.0),
]
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
    *dense("predictions.dense", "head/transform"),
    *norm("predictions.LayerNorm", "head/norm"),
    Row("predictions.bias", ("head/decoder/bias",)),
    Row("predictions.decoder.weight", ("head/decoder/kernel",), "transposed"),
    *dense("sop_classifier.classifier", "head/next_sentence"),
    *dense("pooler", "head/pooler"),
    *dense("classifier", "head/classifier"),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]
ONE = {"num_hidden_groups": 1, "inner_group_num": 1}


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    for entry, only in ONE.items():
        if hf.get(entry, only) != only:
            raise CheckpointError(
                f"{entry} is {hf[entry]!r} in config.json: only one block for all layers is read"
            )
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


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """Masked LM, with the order of sentences or without; answers to questions; a classifier of
    sequences or of tokens; the pooler alone, or nothing.
    """
    pooler = "pooler.weight" in tensors
    if "predictions.bias" in tensors:
        decoder = "predictions.decoder.weight"
        tied, tensors = tie(hf, tensors, decoder, "embeddings.word_embeddings.weight")
        biases = ("predictions.decoder.bias", "predictions.bias")
        tensors = with_decoder_bias(tensors, tied, *biases)
        order = pooler and "sop_classifier.classifier.weight" in tensors
        return language_model(config, tied, order, pooler and not order), tensors
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    classes = len(tensors.get("classifier.weight", ()))
    if classes and architecture(hf).endswith("ForTokenClassification"):
        return Tagger(classes), tensors
    if pooler:
        return Classifier(classes, "pooler"), tensors
    return Classifier(0, "cls"), tensors


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """As BERT's: the second bias of an untied decoder, and a pooler of zeros for an encoder alone."""
    if "predictions.decoder.weight" in tensors:
        return {"predictions.decoder.bias": tensors["predictions.bias"].copy()}
    if architecture != "AlbertModel" or "pooler.weight" in tensors:
        return {}
    zeros = bert.pooler_of_zeros(config)
    return {name.replace("pooler.dense.", "pooler."): tensor for name, tensor in zeros.items()}


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    prefix="albert.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={
        "pooler.": "pooler",
        "sop_classifier.": "sentence-order head",
        "qa_outputs.bias": "span bias of no effect",
    },
    classes={
        "classes": "AlbertForSequenceClassification",
        "token classes": "AlbertForTokenClassification",
        "spans": "AlbertForQuestionAnswering",
        "masked LM": "AlbertForMaskedLM",
        "masked LM and next sentence": "AlbertForPreTraining",
    },
    sequence_heads=[Classifier(0, "pooler")],
    base_class="AlbertModel",
    extra_tensors=extra_tensors,
    language_model=language_model,
    tokenizer="AlbertTokenizer",
)

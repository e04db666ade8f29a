"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020):
BERT's blocks, positions that count from the padding token's id on, usually one segment type.

A padding token that a text itself spells has a position here as any other; transformers gives it
that of padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedLM, Span, Tagger
from adapt.pretrained.families import (
    Family,
    Fields,
    Row,
    Tensors,
    bert,
    dense,
    norm,
    tie,
    under,
    with_decoder_bias,
)

CONFIG = [*bert.CONFIG[:-1], ("pad_token", "pad_token_id", 1)]
TABLE = [
    *bert.ENCODER,
    *dense("lm_head.dense", "head/transform"),
    *norm("lm_head.layer_norm", "head/norm"),
    Row("lm_head.bias", ("head/decoder/bias",)),
    Row("lm_head.decoder.weight", ("head/decoder/kernel",), "transposed"),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier.dense", "head/hidden"),
    *under(["classes"], dense("classifier.out_proj", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
    fields = bert.complete(hf, fields) | {"pad_token": hf.get("pad_token_id", 1)}
    pad = fields["pad_token"]
    positions = fields["positions"]
    if type(pad) is not int or type(positions) is not int or not 0 <= pad < positions - 1:
        raise CheckpointError(
            f"pad_token_id is {pad!r} and max_position_embeddings {positions!r} in config.json: the "
            "first token has the row after the padding token's in the table of positions"
        )
    return fields | {"position_offset": pad + 1, "positions": positions - pad - 1}


def entries(config: EncoderConfig, head: Any) -> Fields:
    return {
        "pad_token_id": config.position_offset - 1,
        "max_position_embeddings": config.positions + config.position_offset,
    }


def language_model(config: EncoderConfig, tied: bool = True) -> MaskedLM:
    """Its activation is gelu, whatever that of the encoder is."""
    return MaskedLM(config.vocabulary, tied, norm_epsilon=config.norm_epsilon)


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """Masked LM; answers to questions; a classifier of sequences or of tokens; the pooler alone, or
    nothing.
    """
    if "lm_head.dense.weight" in tensors:
        decoder = "lm_head.decoder.weight"
        tied, tensors = tie(hf, tensors, decoder, "embeddings.word_embeddings.weight")
        tensors = with_decoder_bias(tensors, tied, "lm_head.decoder.bias", "lm_head.bias")
        return language_model(config, tied), tensors
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    if "classifier.out_proj.weight" in tensors:
        classes = len(tensors["classifier.out_proj.weight"])
        return Classifier(classes, "cls", hidden="tanh"), tensors
    if "pooler.dense.weight" in tensors:
        return Classifier(0, "pooler"), tensors
    if "classifier.weight" in tensors:
        return Tagger(len(tensors["classifier.weight"])), tensors
    return Classifier(0, "cls"), tensors


def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
    """As BERT's: the second bias of an untied decoder, and a pooler of zeros for an encoder alone."""
    if "lm_head.decoder.weight" in tensors:
        return {"lm_head.decoder.bias": tensors["lm_head.bias"].copy()}
    return bert.pooler_of_zeros(config) if architecture.endswith("Model") else {}


def classes(name: str) -> dict[str, str]:
    """transformers' classes of one of the siblings."""
    return {
        "classes": f"{name}ForSequenceClassification",
        "token classes": f"{name}ForTokenClassification",
        "spans": f"{name}ForQuestionAnswering",
        "masked LM": f"{name}ForMaskedLM",
    }


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    prefix="roberta.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={"pooler.": "pooler", "qa_outputs.bias": "span bias of no effect"},
    classes=classes("Roberta"),
    sequence_heads=[Classifier(0, "cls", hidden="tanh")],
    base_class="RobertaModel",
    extra_tensors=extra_tensors,
    language_model=language_model,
    tokenizer="RobertaTokenizer",
)
# Their tokenizers are SentencePiece's unigrams, which tokenizer.json has whole.
XLM_ROBERTA = dataclasses.replace(
    FAMILY,
    classes=classes("XLMRoberta"),
    base_class="XLMRobertaModel",
    tokenizer="XLMRobertaTokenizer",
)
CAMEMBERT = dataclasses.replace(
    FAMILY,
    classes=classes("Camembert"),
    base_class="CamembertModel",
    tokenizer="CamembertTokenizer",
)

"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020):
BERT's blocks, positions that count from the padding token's id on, usually one segment type.

A padding token that a text itself spells has a position here as any other; transformers gives it
that of padding.
"""

import dataclasses
from typing import Any

from adapt.errors import CheckpointError
from adapt.models import Classifier, EncoderConfig, MaskedLM
from adapt.pretrained.families import (
    Entries,
    Family,
    Fields,
    bert,
    dense,
    heads,
    under,
    with_defaults,
)

CONFIG = with_defaults(bert.CONFIG, pad_token_id=1)
BIAS = "lm_head.bias"
DECODER = "lm_head.decoder.weight"
TABLE = [
    *bert.ENCODER,
    *heads.masked_lm_rows("lm_head.dense", "lm_head.layer_norm", BIAS, DECODER),
    *dense("pooler.dense", "head/pooler"),
    *dense("classifier.dense", "head/hidden"),
    *under(["classes"], dense("classifier.out_proj", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
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


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        heads.masked_lm("lm_head.dense.weight", DECODER, BIAS, language_model),
        heads.spans,
        heads.classes_after("classifier.dense.weight", "tanh"),
        heads.pooler(),
        heads.token_classes,
        pooling="cls",
    ),
    complete,
    entries,
    prefix="roberta.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={"pooler.": "pooler", **heads.SPAN_BIAS},
    classes=heads.classes_of("Roberta", *heads.TEXT_KINDS),
    sequence_heads=[Classifier(0, "cls", hidden="tanh")],
    base_class="RobertaModel",
    extra_tensors=heads.second_bias_or_pooler(DECODER, BIAS),
    language_model=language_model,
    tokenizer="RobertaTokenizer",
)
# Their tokenizers are SentencePiece's unigrams, which tokenizer.json has whole.
XLM_ROBERTA = dataclasses.replace(
    FAMILY,
    classes=heads.classes_of("XLMRoberta", *heads.TEXT_KINDS),
    base_class="XLMRobertaModel",
    tokenizer="XLMRobertaTokenizer",
)
CAMEMBERT = dataclasses.replace(
    FAMILY,
    classes=heads.classes_of("Camembert", *heads.TEXT_KINDS),
    base_class="CamembertModel",
    tokenizer="CamembertTokenizer",
)

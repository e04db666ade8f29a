"""RoBERTa (Liu et al. 2019), XLM-RoBERTa (Conneau et al. 2020) and CamemBERT (Martin et al. 2020):
BERT's blocks, positions that count from the padding token's id on, usually one segment type.

A padding token that a text itself spells has a position here as any other; transformers gives it
that of padding.
"""

import dataclasses
from typing import Any

from adapt.models import Classifier, EncoderConfig
from adapt.pretrained.families import Family, bert, dense, heads, with_defaults
from adapt.pretrained.families.learned_positions import entries_after_padding, fields_after_padding
from adapt.pretrained.families.types import Entries, Fields

CONFIG = with_defaults(bert.CONFIG, pad_token_id=1)
BIAS = "lm_head.bias"
DECODER = "lm_head.decoder.weight"
TABLE = [
    *bert.ENCODER,
    *heads.masked_lm_rows("lm_head.dense", "lm_head.layer_norm", BIAS, DECODER),
    *dense("pooler.dense", "head/pooler"),
    *heads.CLASSIFIERS,
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    pad = hf.get("pad_token_id", 1)
    return fields | {"pad_token": pad} | fields_after_padding(pad, fields["positions"])


def entries(config: EncoderConfig, head: Any) -> Fields:
    return {"pad_token_id": config.position_offset - 1} | entries_after_padding(config)


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        heads.masked_lm("lm_head.dense.weight", DECODER, BIAS, heads.gelu_masked_lm),
        heads.spans,
        heads.classes_after("classifier.dense.weight", "tanh"),
        heads.choices("pooler.dense", "tanh"),
        heads.pooler(),
        heads.token_classes,
        pooling="cls",
    ),
    complete,
    entries,
    usual=bert.FAMILY.usual,
    prefix="roberta.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={"pooler.": "pooler", **heads.SPAN_BIAS},
    classes=heads.classes_of("Roberta", *heads.TEXT_KINDS),
    sequence_heads=[Classifier(0, "cls", hidden="tanh")],
    base_class="RobertaModel",
    extra_tensors=heads.second_bias_or_pooler(DECODER, BIAS),
    language_model=heads.gelu_masked_lm,
    tokenizer="RobertaTokenizer",
    counts_after_padding=True,
)


def sibling(name: str) -> Family:
    """The same under other names of classes."""
    return dataclasses.replace(
        FAMILY,
        classes=heads.classes_of(name, *heads.TEXT_KINDS),
        base_class=f"{name}Model",
        tokenizer=f"{name}Tokenizer",
    )


# Their tokenizers are SentencePiece's unigrams, which tokenizer.json has whole.
XLM_ROBERTA = sibling("XLMRoberta")
CAMEMBERT = sibling("Camembert")

"""ELECTRA (Clark et al. 2020), discriminator and generator: BERT's blocks after an embedding that
may be narrower, without a pooler; its classifier has a hidden layer with gelu.
"""

from typing import Any

from adapt.models import Classifier, EncoderConfig, MaskedLM, ReplacedTokens
from adapt.pretrained.families import Family, bert, dense, heads, under
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [*bert.CONFIG, ("embedding_width", "embedding_size", 128)]
SUMMARY = {"summary_type": "first", "summary_activation": "gelu", "summary_use_proj": True}
DECODER = "generator_lm_head.weight"
TABLE = [
    *bert.ENCODER,
    *dense("embeddings_project", "encoder/embedding/projection"),
    *heads.masked_lm_rows(
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.bias",
        DECODER,
    ),
    *under(["replaced tokens"], dense("discriminator_predictions.dense", "head/hidden")),
    *under(
        ["replaced tokens"],
        dense("discriminator_predictions.dense_prediction", "head/classifier"),
    ),
    *heads.CLASSIFIERS,
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    """An embedding as wide as the encoder has no dense layer after it."""
    is_narrow = fields["embedding_width"] != fields["width"]
    width = fields["embedding_width"] if is_narrow else 0
    return bert.complete(hf, fields) | {"embedding_width": width}


def entries(config: EncoderConfig, head: Any) -> Fields:
    return {"embedding_size": config.embedding_width or config.width}


def language_model(config: EncoderConfig, tied: bool = True) -> MaskedLM:
    """The generator's head. Its activation is gelu, whatever that of the encoder is."""
    return MaskedLM(
        config.vocabulary, tied, norm_epsilon=config.norm_epsilon, width=config.embedding_width
    )


def replaced_tokens(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """The discriminator of replaced tokens, a logit a token."""
    if "discriminator_predictions.dense.weight" not in tensors:
        return None
    return ReplacedTokens(config.activation), tensors


def choices(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of choices on a summary, which is that of the first token as a rule."""
    is_usual = all(hf.get(name, usual) == usual for name, usual in SUMMARY.items())
    read = heads.choices("sequence_summary.summary", "gelu")
    return read(config, hf, tensors) if is_usual else None


FAMILY = Family(
    CONFIG,
    TABLE,
    heads.first_of(
        heads.masked_lm("generator_predictions.dense.weight", DECODER, head=language_model),
        replaced_tokens,
        heads.spans,
        heads.classes_after("classifier.dense.weight", "gelu"),
        choices,
        heads.token_classes,
        pooling="cls",
    ),
    complete,
    entries,
    prefix="electra.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts=heads.SPAN_BIAS,
    classes=heads.classes_of("Electra", *heads.TEXT_KINDS, "replaced tokens"),
    sequence_heads=[Classifier(0, "cls", hidden="gelu")],
    base_class="ElectraModel",
    language_model=language_model,
    tokenizer="BertTokenizer",
)

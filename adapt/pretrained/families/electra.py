"""ELECTRA (Clark et al. 2020), discriminator and generator: BERT's blocks after an embedding that
may be narrower, without a pooler; its classifier has a hidden layer with gelu.
"""

from typing import Any

from adapt.models import Classifier, EncoderConfig, ReplacedTokens
from adapt.pretrained.families import Family, bert, dense, heads, under
from adapt.pretrained.families.types import Entries, Fields, Found, Tensors

CONFIG = [*bert.CONFIG, ("embedding_width", "embedding_size", 128)]
SUMMARY = {"summary_type": "first", "summary_activation": "gelu", "summary_use_proj": True}
DECODER = "generator_lm_head.weight"
GENERATOR = "generator_predictions"
DISCRIMINATOR = "discriminator_predictions"
TABLE = [
    *bert.ENCODER,
    *dense("embeddings_project", "encoder/embedding/projection"),
    *heads.masked_lm_rows(
        f"{GENERATOR}.dense", f"{GENERATOR}.LayerNorm", "generator_lm_head.bias", DECODER
    ),
    *under(["replaced tokens"], dense(f"{DISCRIMINATOR}.dense", "head/hidden")),
    *under(["replaced tokens"], dense(f"{DISCRIMINATOR}.dense_prediction", "head/classifier")),
    *heads.CLASSIFIERS,
    heads.SPAN,
]


def complete(hf: Entries, fields: Fields) -> Fields:
    """An embedding as wide as the encoder has no dense layer after it."""
    is_narrow = fields["embedding_width"] != fields["width"]
    width = fields["embedding_width"] if is_narrow else 0
    return fields | {"embedding_width": width}


def entries(config: EncoderConfig, head: Any) -> Fields:
    return {"embedding_size": config.embedding_width or config.width}


def replaced_tokens(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """The discriminator of replaced tokens, a logit a token."""
    if f"{DISCRIMINATOR}.dense.weight" not in tensors:
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
        heads.masked_lm(f"{GENERATOR}.dense.weight", DECODER, head=heads.gelu_masked_lm),
        replaced_tokens,
        heads.spans,
        heads.classes_after("classifier.dense.weight", "gelu"),
        choices,
        heads.token_classes,
        pooling="cls",
    ),
    complete,
    entries,
    usual=bert.FAMILY.usual,
    prefix="electra.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts=heads.SPAN_BIAS,
    classes=heads.classes_of("Electra", *heads.TEXT_KINDS, "replaced tokens"),
    sequence_heads=[Classifier(0, "cls", hidden="gelu")],
    base_class="ElectraModel",
    language_model=heads.gelu_masked_lm,  # of the generator
    tokenizer="BertTokenizer",
)

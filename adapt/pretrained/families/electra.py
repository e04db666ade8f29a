"""ELECTRA (Clark et al. 2020), discriminator and generator: BERT's blocks after an embedding that
may be narrower, without a pooler; its classifier has a hidden layer with gelu.
"""

from collections.abc import Mapping
from typing import Any

from adapt.models import Classifier, EncoderConfig, MaskedLM, ReplacedTokens, Span, Tagger
from adapt.pretrained.families import Family, Fields, Row, Tensors, bert, dense, norm, tie, under

CONFIG = [*bert.CONFIG, ("embedding_width", "embedding_size", 128)]
TABLE = [
    *bert.ENCODER,
    *dense("embeddings_project", "encoder/embedding/projection"),
    *dense("generator_predictions.dense", "head/transform"),
    *norm("generator_predictions.LayerNorm", "head/norm"),
    Row("generator_lm_head.bias", ("head/decoder/bias",)),
    Row("generator_lm_head.weight", ("head/decoder/kernel",), "transposed"),
    *under(["replaced tokens"], dense("discriminator_predictions.dense", "head/hidden")),
    *under(
        ["replaced tokens"],
        dense("discriminator_predictions.dense_prediction", "head/classifier"),
    ),
    *under(["classes"], dense("classifier.dense", "head/hidden")),
    *under(["classes"], dense("classifier.out_proj", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
    Row("qa_outputs.weight", ("head/span/kernel",), "transposed"),
]


def complete(hf: Mapping[str, Any], fields: Fields) -> Fields:
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


def recognise(
    config: EncoderConfig, hf: Mapping[str, Any], tensors: Tensors
) -> tuple[Any, Tensors]:
    """The generator's masked LM; the discriminator of replaced tokens, a logit a token; answers to
    questions; a classifier of sequences or of tokens; or nothing.
    """
    if "generator_predictions.dense.weight" in tensors:
        decoder = "generator_lm_head.weight"
        tied, tensors = tie(hf, tensors, decoder, "embeddings.word_embeddings.weight")
        return language_model(config, tied), tensors
    if "discriminator_predictions.dense.weight" in tensors:
        return ReplacedTokens(config.activation), tensors
    if "qa_outputs.weight" in tensors:
        return Span(config.positions), tensors
    if "classifier.out_proj.weight" in tensors:
        classes = len(tensors["classifier.out_proj.weight"])
        return Classifier(classes, "cls", hidden="gelu"), tensors
    # Beside a summary it is a classifier of choices, which is not read.
    if "classifier.weight" in tensors and "sequence_summary.summary.weight" not in tensors:
        return Tagger(len(tensors["classifier.weight"])), tensors
    return Classifier(0, "cls"), tensors


FAMILY = Family(
    CONFIG,
    TABLE,
    recognise,
    complete,
    entries,
    prefix="electra.",
    buffers=r"embeddings\.(position_ids|token_type_ids)",
    parts={"qa_outputs.bias": "span bias of no effect"},
    classes={
        "classes": "ElectraForSequenceClassification",
        "token classes": "ElectraForTokenClassification",
        "spans": "ElectraForQuestionAnswering",
        "masked LM": "ElectraForMaskedLM",
        "replaced tokens": "ElectraForPreTraining",
    },
    sequence_heads=[Classifier(0, "cls", hidden="gelu")],
    base_class="ElectraModel",
    language_model=language_model,
    tokenizer="BertTokenizer",
)

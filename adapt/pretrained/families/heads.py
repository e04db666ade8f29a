"""Heads of transformers' classes, which families have in common: their rows, how a file's head is
recognised, the names of the classes, and what those hold beside.

A reader looks for one kind of head: it returns the head and the tensors by the table's names, or
None where they are not there. ``recognise`` of a family is often :func:`first_of` a few of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from adapt.errors import CheckpointError
from adapt.models import CausalLM, Classifier, EncoderConfig, MaskedLM, Span, Tagger
from adapt.pretrained.families import Row, architecture, dense, language_model, norm, under
from adapt.pretrained.families.types import Entries, Found, Tensors

Reader = Callable[[EncoderConfig, Entries, Tensors], Found | None]
Recognise = Callable[[EncoderConfig, Entries, Tensors], Found]
ExtraTensors = Callable[[EncoderConfig, str, Tensors], Tensors]

# How transformers' classes end, by the kind of head.
ENDINGS = {
    "classes": "ForSequenceClassification",
    "token classes": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
    "masked LM": "ForMaskedLM",
    "masked LM and next sentence": "ForPreTraining",
    "replaced tokens": "ForPreTraining",
    "causal LM": "ForCausalLM",
}
TEXT_KINDS = ("classes", "token classes", "spans", "masked LM")
TOKEN_TABLE = "embeddings.word_embeddings.weight"
# Heads of spans. Their bias adds the same to every position, which no softmax sees.
SPAN = Row("qa_outputs.weight", ("head/span/kernel",), "transposed")
SPAN_BIAS = {"qa_outputs.bias": "span bias of no effect"}


def classes_of(name: str, *kinds: str) -> dict[str, str]:
    """``classes`` of the family that transformers calls ``name``, for these kinds of heads."""
    return {kind: name + ENDINGS[kind] for kind in kinds}


def masked_lm_rows(transform: str, norm_name: str, bias: str, decoder: str) -> list[Row]:
    """The rows of a masked-LM head: a dense layer, a norm, and the decoder with its bias."""
    return [
        *dense(transform, "head/transform"),
        *norm(norm_name, "head/norm"),
        Row(bias, ("head/decoder/bias",)),
        Row(decoder, ("head/decoder/kernel",), "transposed"),
    ]


# A classifier of texts by their first token after a dense layer, or one of tokens.
CLASSIFIERS = [
    *under(["classes"], dense("classifier.dense", "head/hidden")),
    *under(["classes"], dense("classifier.out_proj", "head/classifier")),
    *under(["token classes"], dense("classifier", "head/classifier")),
]


def gelu_masked_lm(config: EncoderConfig, tied: bool = True) -> MaskedLM:
    """A masked-LM head whose activation is gelu, whatever that of the encoder is."""
    return MaskedLM(
        config.vocabulary, tied, norm_epsilon=config.norm_epsilon, width=config.embedding_width
    )


# recognise


def first_of(*readers: Reader, pooling: str) -> Recognise:
    """``recognise`` by the first reader that finds its head; ``pooling`` is that of an encoder
    without one.
    """

    def recognise(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found:
        for read in readers:
            found = read(config, hf, tensors)
            if found is not None:
                return found
        return Classifier(0, pooling), tensors

    return recognise


def masked_lm(
    transform: str,
    decoder: str,
    bias: str = "",
    head: Callable[[EncoderConfig, bool], Any] = language_model,
    embedding: str = TOKEN_TABLE,
) -> Reader:
    """A masked LM whose dense layer, decoder, the decoder's bias and token embedding are tensors of
    these names. ``tie_word_embeddings`` of config.json, true unless it is said, ties the decoder to
    the embedding unless the file holds another one; see :func:`tie`.
    """

    def read(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
        if transform not in tensors:
            return None
        tied, tensors = tie(hf, tensors, decoder, embedding, bias)
        return head(config, tied), tensors

    return read


def masked_lm_and_pairs(decoder: str, bias: str, pooler: str, pairs: str) -> Reader:
    """A masked LM with what is there of a classifier of pairs of sentences, which reads the pooler:
    transformers saved the pooler alone beside a masked LM until its version 3.
    """

    def read(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
        if bias not in tensors:
            return None
        tied, tensors = tie(hf, tensors, decoder, bias=bias)
        has_pooler = f"{pooler}.weight" in tensors
        has_pairs = has_pooler and f"{pairs}.weight" in tensors
        head = language_model(config, tied)
        return head.clone(next_sentence=has_pairs, pooler=has_pooler and not has_pairs), tensors

    return read


def causal_lm(embedding: str, *endings: str) -> Reader:
    """A causal language model, stored or tied to the tensor ``embedding``. Of a tied one a file
    holds nothing: then the class that it was saved from, which ends in one of ``endings``, says it.
    """

    def read(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
        tied, tensors = tie(hf, tensors, "lm_head.weight", embedding)
        if "lm_head.weight" in tensors or (tied and architecture(hf).endswith(endings)):
            return CausalLM(config.vocabulary, tied), tensors
        return None

    return read


def classes_of_last(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A decoder's classifier of texts by their last token or, with a bias, of tokens."""
    classes = len(tensors.get("score.weight", ()))
    if not classes:
        return None
    has_bias = "score.bias" in tensors
    return (Tagger(classes) if has_bias else Classifier(classes, "last", bias=False)), tensors


def spans(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """Answers to questions."""
    return (Span(config.positions), tensors) if SPAN.name in tensors else None


def token_classes(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of tokens."""
    classes = len(tensors.get("classifier.weight", ()))
    return (Tagger(classes), tensors) if classes else None


def token_classes_by_name(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
    """A classifier of tokens, where only the class of config.json tells it from one of texts."""
    if not architecture(hf).endswith(ENDINGS["token classes"]):
        return None
    return token_classes(config, hf, tensors)


def classes_after(
    layer: str, hidden: str, projection: str = "classifier.out_proj.weight"
) -> Reader:
    """A classifier of texts by their first token, after a dense layer with this activation."""

    def read(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
        classes = len(tensors.get(projection, ()))
        if not classes or layer not in tensors:
            return None
        return Classifier(classes, "cls", hidden=hidden), tensors

    return read


def choices(layer: str, hidden: str) -> Reader:
    """A classifier of choices on a dense layer of another name: in all else one of texts as
    :func:`classes_after` reads it, under whose names it is given.
    """
    names = {f"{layer}.": "classifier.dense.", "classifier.": "classifier.out_proj."}

    def read(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
        if not architecture(hf).endswith("ForMultipleChoice"):
            return None
        return classes_after("classifier.dense.weight", hidden)(
            config, hf, with_names(tensors, names)
        )

    return read


def with_names(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """The tensors with other beginnings of names."""
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in names.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        renamed[name] = tensor
    return renamed


def pooler(name: str = "pooler.dense.weight") -> Reader:
    """A pooler, and the classifier of texts on it, if there is one."""

    def read(config: EncoderConfig, hf: Entries, tensors: Tensors) -> Found | None:
        if name not in tensors:
            return None
        return Classifier(len(tensors.get("classifier.weight", ())), "pooler"), tensors

    return read


def tie(
    hf: Entries,
    tensors: Mapping[str, np.ndarray],
    decoder: str,
    embedding: str = TOKEN_TABLE,
    bias: str = "",
) -> tuple[bool, Tensors]:
    """(whether the decoder is the embedding, the tensors without the copy of it that a file may
    hold).

    Raises :class:`CheckpointError` where the file has a decoder and no tensor ``embedding``.

    With ``bias`` there is one bias under this name, too: an untied file may hold a second one
    beside its decoder, and then transformers computes with that.
    """
    stored = tensors.get(decoder)
    if stored is not None and embedding not in tensors:
        raise CheckpointError(
            f"{decoder} is compared with {embedding}, which the file has not: say in the family "
            "what its token embedding is called (`embedding`)"
        )
    same = stored is None or np.array_equal(stored, tensors[embedding])
    tied = bool(hf.get("tie_word_embeddings", True)) and same
    kept = dict(tensors)
    if tied:
        kept.pop(decoder, None)
    second = kept.pop(of_decoder(decoder), None) if bias else None
    if second is not None and not tied:
        kept[bias] = second
    return tied, kept


def of_decoder(decoder: str) -> str:
    """The name of the bias beside a decoder's weight."""
    return f"{decoder.removesuffix('weight')}bias"


# extra_tensors


def second_bias_or_pooler(decoder: str, bias: str, pooler: str = "pooler.dense") -> ExtraTensors:
    """``extra_tensors`` with a second bias beside an untied decoder, which is the one that the
    library uses; and for the encoder alone with a pooler of zeros, which nothing reads.

    A folder without the pooler's tensors would get a random one and a warning, and the setting that
    leaves it out is one that ONNX and OpenVINO do not know.
    """

    def extra_tensors(config: EncoderConfig, architecture: str, tensors: Tensors) -> Tensors:
        if decoder in tensors:
            return {of_decoder(decoder): tensors[bias].copy()}
        is_encoder = architecture.endswith("Model")
        return zeros_of_dense(pooler, config.width) if is_encoder and pooler else {}

    return extra_tensors


def zeros_of_dense(name: str, width: int) -> Tensors:
    """The two tensors of a square dense layer that does nothing."""
    return {
        f"{name}.weight": np.zeros((width, width), np.float32),
        f"{name}.bias": np.zeros(width, np.float32),
    }

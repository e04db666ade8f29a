"""A run as the folder of a transformers checkpoint, encoder and head together."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from adapt import tree
from adapt.export import card, layout
from adapt.export.folder import Folder, class_names, head_kind, model_entries
from adapt.export.inputs import input_files
from adapt.models import Classifier, EncoderConfig, Span
from adapt.pretrained import families, hub

SEQUENCES = "AutoModelForSequenceClassification"
IMAGES = "AutoModelForImageClassification"
TOKENS = "AutoModelForTokenClassification"
ANSWERS = "AutoModelForQuestionAnswering"
# (family, kind of the head) -> transformers' class, and the Auto class that finds it
CLASSES = {
    ("bert", "pooler pooling"): ("BertForSequenceClassification", SEQUENCES),
    ("bert", "cls pooling"): ("BertForSequenceClassification", SEQUENCES),
    ("gpt2", "last pooling and no bias"): ("GPT2ForSequenceClassification", SEQUENCES),
    ("vit", "cls pooling"): ("ViTForImageClassification", IMAGES),
    ("bert", "token classes"): ("BertForTokenClassification", TOKENS),
    ("gpt2", "token classes"): ("GPT2ForTokenClassification", TOKENS),
    ("bert", "spans"): ("BertForQuestionAnswering", ANSWERS),
    ("gpt2", "spans"): ("GPT2ForQuestionAnswering", ANSWERS),
    ("bert", "masked LM"): ("BertForMaskedLM", "AutoModelForMaskedLM"),
    ("bert", "masked LM and next sentence"): ("BertForPreTraining", "AutoModelForPreTraining"),
    ("gpt2", "causal LM"): ("GPT2LMHeadModel", "AutoModelForCausalLM"),
}
# How names that take no prefix begin.
HEADS = ("classifier.", "cls.", "lm_head.", "score.", "qa_outputs.")


def transformers_folders(run: hub.Pretrained) -> dict[str, Folder]:
    """The one folder of a transformers checkpoint."""
    family = run.config.family
    kind = head_kind(run)
    architecture, auto = CLASSES[family, kind]
    notes = []
    if (family, kind) == ("bert", "cls pooling"):
        run = with_straight_pooler(run)
        notes.append(card.STRAIGHT_POOLER)
    if isinstance(run.head, Classifier) and not run.head.bias and family != "gpt2":
        run = with_bias(run)
    if isinstance(run.head, Span):
        notes += answer_notes(run)
    run, files, input_notes = input_files(run)
    tensors = with_prefix(run.config, layout.to_tensors(run.config, run.params))
    if "cls.predictions.decoder.weight" in tensors:
        # Untied: of the two biases in a file, the library uses this one.
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    if (family, kind) == ("gpt2", "token classes"):
        for name in ("weight", "bias"):  # our one name for both of its classifiers
            tensors[f"classifier.{name}"] = tensors.pop(f"score.{name}")
    if kind == "spans":
        tensors["qa_outputs.bias"] = np.zeros(2, np.float32)
    files["README.md"] = card.card(
        f"{architecture}, trained with {kind}",
        "transformers",
        loading_code(run, kind, auto),
        run.task,
        class_names(run),
        [*notes, *input_notes],
    )
    config = layout.write_config(run.config) | model_entries(run, architecture)
    return {"": Folder(config, tensors, files)}


def answer_notes(run: hub.Pretrained) -> list[str]:
    """What the card of a run of spans says of long contexts, and of questions without an answer."""
    assert run.tokenizer is not None and isinstance(run.head, Span)
    notes = []
    if run.tokenizer.stride:
        notes.append(
            card.WINDOWS.format(tokens=run.tokenizer.max_length, stride=run.tokenizer.stride)
        )
    if run.head.null_threshold is not None:
        notes.append(card.NO_ANSWER.format(threshold=run.head.null_threshold))
    return notes


def loading_code(run: hub.Pretrained, kind: str, auto: str) -> str:
    """The code of the card."""
    if run.config.is_image:
        return card.IMAGES.format(auto=auto)
    if kind == "token classes":
        return card.WORDS[run.config.family].format(auto=auto)
    if kind == "spans":
        return card.CONTEXTS.format(auto=auto)
    # GPT-2's language model has no token for padding.
    padding = isinstance(run.head, Classifier) or run.config.family == "bert"
    return card.TEXTS.format(auto=auto, padding=padding)


def with_prefix(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors by the names that the original library's classes with a head use."""
    prefix = families.family_module(config.family).PREFIX
    renamed = {}
    for name, tensor in tensors.items():
        of_head = name.startswith(HEADS)
        renamed[name if of_head else prefix + name] = tensor
    return renamed


def with_straight_pooler(run: hub.Pretrained) -> hub.Pretrained:
    """A head on the first token as BERT's pooler and classifier.

    tanh(y) = y (1 - y^2/3 + ...): scaled by 2^-16, which is exact, an x of 20 comes through to 3e-8
    of itself.
    """
    classifier = run.params["head"]["classifier"]
    width = run.config.width
    scale = np.float32(2.0**-16)
    identity = np.eye(width, dtype=np.float32)
    head = {
        "pooler": {"kernel": identity * scale, "bias": np.zeros(width, np.float32)},
        "classifier": classifier | {"kernel": np.asarray(classifier["kernel"]) / scale},
    }
    pooled = dataclasses.replace(run.head, pooling="pooler")
    return dataclasses.replace(run, head=pooled, params=run.params | {"head": head})


def with_bias(run: hub.Pretrained) -> hub.Pretrained:
    """A head without a bias as one with zeros."""
    zeros = np.zeros(run.head.classes, np.float32)
    params = tree.graft(run.params, "head/classifier/bias", zeros)
    head = dataclasses.replace(run.head, bias=True)
    return dataclasses.replace(run, head=head, params=params)

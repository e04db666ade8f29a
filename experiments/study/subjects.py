"""Encoders under the head of their pre-training, with tasks near its objective and far from it.

A checkpoint with a masked-LM head; small encoders that are pre-trained here for masked LM, causal
LM and replaced tokens; and two whose head is one of classes, of texts and of pictures.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import adapt
from adapt.data import bundled
from adapt.errors import StrategyError
from adapt.models.heads import LanguageModel, ReplacedTokens
from adapt.pretrained.fresh import fresh
from adapt.pretrained.hub import tokenizer_of
from experiments.study import near_tasks, small_encoders
from experiments.study.near_tasks import Labelled

NEAR = "near"
NEAR_FEW = "near, few labels"  # the same task
FAR_PICTURES = "other kinds of clothes"
CLASSIFIER = "classifier"
PICTURES = "pictures"
TEXTS_WITH_CLASSES = "trec"  # the set of whose fine classes the classifier's head is
PICTURES_WITH_CLASSES = "fashion-mnist"
# The kinds of clothes that the encoder of pictures is pre-trained on: those that are alike. The
# others are far from its objective.
KINDS = ("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt")
TRAINED_PICTURES = 10_000
VIT = {
    "model_type": "vit",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "image_size": 28,
    "patch_size": 7,
    "num_channels": 1,
}
NEAR_SETS = ("reviews", "amazon", "nyt")  # whose test texts the tasks near an objective are made of
MAX_LENGTH = 64
NEAR_WORDS = {
    "masked": "which of ten words was at the mask",
    "causal": "which of ten words comes next",
    "replaced": "whether a word was put in",
    CLASSIFIER: "the same 50 classes of new questions",
    PICTURES: "the same 5 kinds in new pictures",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A pre-trained encoder under its head, and the kind of that: a key of :data:`NEAR_WORDS`."""

    name: str
    kind: str
    pretrained: adapt.Pretrained

    @property
    def has_classes(self) -> bool:
        """Whether its head says one of some classes of a whole text or picture, and pools for that."""
        return self.kind in (CLASSIFIER, PICTURES)

    def far(self, sets: Sequence[str]) -> tuple[str, ...]:
        """Those of the sets that are far from its objective; a classifier's own set is not."""
        if self.kind == PICTURES:
            return (FAR_PICTURES,)
        if self.kind == CLASSIFIER:
            return tuple(name for name in sets if name != TEXTS_WITH_CLASSES)
        return tuple(sets)


def language_model(name: str, kind: str, pretrained: adapt.Pretrained | str) -> Subject:
    """A checkpoint under the head of a language model."""
    if isinstance(pretrained, str):
        pretrained = adapt.load(pretrained)
    if not isinstance(pretrained.head, LanguageModel | ReplacedTokens):
        raise StrategyError(
            f"`checkpoint` {name} has no head of a language model: give another one"
        )
    return Subject(name, kind, cut_to_length(pretrained))


def pretrained_here(objective: str, steps: int, folder: Path) -> Subject:
    """A small encoder pre-trained on bundled text, which is kept in ``folder``."""
    pretrained = small_encoders.pretrained(objective, steps, folder / objective)
    return language_model(objective, objective, pretrained)


def classifier_of_texts(checkpoint: adapt.Pretrained | str, pool: int, folder: Path) -> Subject:
    """A checkpoint fine-tuned on the fine classes of the questions after the first ``pool``."""
    folder = folder / CLASSIFIER
    if not (folder / "result.json").exists():
        rows = bundled.read(TEXTS_WITH_CLASSES, "train")
        texts = rows["text"][pool:]
        labels = rows["fine"][pool:]
        adapt.finetune(checkpoint, texts, labels, epochs=3, out=folder, overwrite=True)
    return Subject(CLASSIFIER, CLASSIFIER, cut_to_length(adapt.load(folder)))


def classifier_of_pictures(pool: int, folder: Path) -> Subject:
    """A small vision transformer trained on five kinds of clothes, without the first ``pool`` of them."""
    folder = folder / PICTURES
    if not (folder / "result.json").exists():
        pictures, labels = clothes("train", of_kinds=True)
        part = slice(pool, pool + TRAINED_PICTURES)
        adapt.finetune(
            fresh(VIT),
            pictures[part],
            labels[part],
            learning_rate=small_encoders.RATE,
            head_learning_rate=small_encoders.RATE,
            epochs=4,
            batch_size=64,
            out=folder,
            overwrite=True,
        )
    return Subject(PICTURES, PICTURES, adapt.load(folder))


def cut_to_length(pretrained: adapt.Pretrained) -> adapt.Pretrained:
    """The checkpoint with its tokenizer cut to the length that all texts are read to."""
    length = min(MAX_LENGTH, pretrained.config.positions)
    tokenizer = tokenizer_of(pretrained).cut_to(length)
    return dataclasses.replace(pretrained, tokenizer=tokenizer)


def clothes(part: str, of_kinds: bool) -> tuple[list[Any], list[str]]:
    """(pictures, their kinds) of those in :data:`KINDS`, or of the others."""
    rows = bundled.read(PICTURES_WITH_CLASSES, part)
    chosen = [row for row, label in enumerate(rows["label"]) if (label in KINDS) == of_kinds]
    return [rows["image"][row] for row in chosen], [rows["label"][row] for row in chosen]


def labelled(subject: Subject, task: str, pool: int, test_rows: int) -> Labelled:
    """What a task asks of a subject: ``pool`` rows to draw from, and then those of the test."""
    is_near = task in (NEAR, NEAR_FEW)
    if subject.kind == PICTURES:
        train = clothes("train", of_kinds=is_near)
        test = clothes("test", of_kinds=is_near)
    elif is_near and subject.kind in near_tasks.TASKS:
        texts = [text for name in NEAR_SETS for text in bundled.read(name, "test")["text"]]
        return near_tasks.TASKS[subject.kind](texts, pool + test_rows)
    elif is_near:
        train = texts_of(TEXTS_WITH_CLASSES, "train", "fine")
        test = texts_of(TEXTS_WITH_CLASSES, "test", "fine")
    else:
        train = texts_of(task, "train")
        test = texts_of(task, "test")
    inputs = [*train[0][:pool], *test[0][:test_rows]]
    labels = [*train[1][:pool], *test[1][:test_rows]]
    poolings = ("mean", "cls") if subject.kind == PICTURES else ("mean",)
    return Labelled(inputs, labels, poolings)


def texts_of(name: str, part: str, column: str = "label") -> tuple[list[str], list[str]]:
    """(texts, labels) of a part of a bundled set."""
    rows: Mapping[str, list[str]] = bundled.read(name, part)
    return rows["text"], rows[column]


def own_answers(subject: Subject, logits: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """What the head itself says on its near task, without a new label: int [N], numbers of ``names``.

    ``logits`` are its outputs float32 [N, D] for each of the task's poolings. A language model says
    the likeliest of the words, a classifier the likeliest of its classes, and a discriminator
    whether any token of the text was put in.
    """
    pretrained = subject.pretrained
    if subject.kind == "replaced":
        _, of_maximum = logits  # the poolings are the mean and the maximum over tokens
        is_put_in = of_maximum[:, 0] > 0
        return np.where(is_put_in, names.index("replaced"), names.index("original"))
    if subject.has_classes:
        columns = {label: column for column, label in enumerate(pretrained.labels)}
    else:
        columns = tokenizer_of(pretrained).backend.get_vocab()
    scores = np.full((len(logits[0]), len(names)), -np.inf)  # of a class that it has not, too
    for number, name in enumerate(names):
        if name in columns:
            scores[:, number] = logits[0][:, columns[name]]
    return scores.argmax(1)

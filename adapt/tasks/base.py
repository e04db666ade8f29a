"""The contract of a task: everything that depends on what is learned, in one class, one file a
task.

A module of one's own adds one, and the commands take it when they import the module::

    from adapt.tasks import TASKS
    from adapt.tasks.classification import Classification

    class Stars(Classification):
        primary_metric = "macro_f1"

    TASKS["stars"] = Stars()
"""

import abc
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.data import examples, pictures, tables
from adapt.data.examples import Examples
from adapt.data.inputs import Columns
from adapt.data.labels import Labels
from adapt.data.tables import Table
from adapt.devices import on_host
from adapt.errors import CheckpointError, StrategyError
from adapt.models import POOLINGS, PRETRAINING_HEADS, Classifier, OnHead
from adapt.models.heads import POOLINGS_OF_CHECKPOINTS
from adapt.options import OptimizerOptions, TaskOptions
from adapt.pretrained import hub
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, default_pooling
from adapt.pretrained.kept_head import on_head, pooling_on_head
from adapt.pretrained.tokenizer import Text, no_windows_of_pairs
from adapt.tasks.metrics import Scores
from adapt.training.losses import Loss

CHUNK = 4096  # rows that are tokenized together
MANY = 1000  # text columns, more than anybody has
# Options of one task, and what they are of.
OWN_OPTIONS = {"stride": "spans", "template": "prompts", "verbalizer": "prompts"}

Row = list[Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a run says of N examples.

    ``labels`` are an array [N] or a list of N values; what a value is, the task says.
    ``probabilities`` are float [N, C], or None where the task has none.
    """

    labels: Any
    probabilities: np.ndarray | None = None


class Task(abc.ABC):
    """What is learned. A task has no state: the same instance serves every run.

    Labels are arrays [N, ...], or Ragged where the words of an example have one each. ``names`` are
    what :meth:`label_names` found in the training table. Metrics and baselines are of a whole set;
    where words have labels, every word counts as an example.
    """

    # The metric by which validation decides: more is better.
    primary_metric: str = "accuracy"
    # For each metric of the baseline: the metric that should beat it, and 1 where more is better
    # or -1 where less is.
    beats: Mapping[str, tuple[str, int]] = {"majority_accuracy": ("accuracy", 1)}
    # Fewest and most columns of further texts: the second of a pair, a question, choices.
    further_texts: tuple[int, int] = (0, 1)
    # Whether an example is a list of words.
    takes_words: bool = False
    # Whether pictures can be learned, too.
    takes_images: bool = True
    # Outputs of the head. None: one for each label name; 0: embeddings, which predict nothing.
    num_outputs: int | None = None
    # Whether the head pools, so that a pooling and layers can be chosen.
    pools: bool = True
    # Whether labels are classes, so that rare ones can weigh more.
    has_class_weights: bool = False
    # Whether outputs are [N, C], a row an example: such runs predict side by side in one pass.
    has_row_per_example: bool = False
    # (outputs, labels) -> the loss of every example, float32 [N]; see :mod:`adapt.training.losses`.
    loss: Loss
    # What the label of an example is; None: neither of these.
    label_kind: Literal["classes", "values"] | None = None
    # What labels are to a probe, which fits heads on features; None: it has no head for them.
    probed_as: Literal["classes", "values"] | None = None
    # Options of TaskOptions that no other task reads; ``OWN_OPTIONS`` has them all.
    own_options: tuple[str, ...] = ()
    # What config.json of an export says of the outputs, as transformers calls it.
    problem_type: str | None = None

    @property
    def name(self) -> str:
        """The name by which the task is registered."""
        return next((name for name, task in TASKS.items() if task is self), type(self).__name__)

    # What goes together

    def check_columns(self, columns: Sequence[str], pretrained: Pretrained) -> None:
        """Raise :class:`StrategyError` for text columns that the task or the encoder does not take,
        and where the checkpoint's rule for long texts does not go with them.
        """
        further = len(columns) - 1
        fewest, most = self.further_texts
        if not fewest <= further <= most:
            bounds = {(0, 0): "none", (1, 1): "one", (0, 1): "one at most"}
            wanted = bounds.get((fewest, most), f"{fewest} or more")
            raise StrategyError(
                f"`text_pair_column` names {further or 'no'} columns, and the task {self.name} "
                f"takes {wanted}"
            )
        if pretrained.config.is_image and further:
            raise StrategyError(
                f"{pretrained.source} is an image encoder, and `text_pair_column` is for texts"
            )
        if pretrained.config.is_image and not self.takes_images:
            raise StrategyError(
                f"{pretrained.source} is an image encoder, and the task {self.name} is for texts"
            )
        self.check_long(columns, pretrained)

    def check_long(self, columns: Sequence[str], pretrained: Pretrained) -> None:
        """Raise :class:`StrategyError` for a rule for long texts that the task can't follow."""
        long = pretrained.tokenizer.long if pretrained.tokenizer else "head"
        if long != "head" and not self.pools:
            raise StrategyError(
                f"`long` {long} is for tasks with one vector a text, and `task` {self.name} reads "
                "single tokens: give `long` head"
            )
        if long == "windows" and self.reads_pairs(columns):
            raise no_windows_of_pairs()

    def reads_pairs(self, columns: Sequence[str]) -> bool:
        """Whether :meth:`sequences` makes pairs of texts of these columns."""
        return len(columns) > 1

    def check_head(self, options: TaskOptions, pretrained: Pretrained) -> None:
        """Raise :class:`StrategyError` for options of the head that contradict each other or the
        task.
        """
        if options.class_weights != "none" and not self.has_class_weights:
            weighted = [name for name, task in TASKS.items() if task.has_class_weights]
            raise StrategyError(
                f"`class_weights` {options.class_weights} goes with {', '.join(weighted)}, "
                f"not {self.name}"
            )
        if not self.pools and (options.pooling or options.layers):
            option = "pooling" if options.pooling else "layers"
            raise StrategyError(
                f"`{option}` is for heads that pool, and `task` {self.name} reads the tokens of "
                "the last layer"
            )
        if options.keep_head is not None and (not self.pools or options.layers):
            other = "`layers`" if options.layers else f"`task` {self.name}"
            raise StrategyError(
                f"`keep_head` {options.keep_head} goes with one label a text, on the last layer, "
                f"and not with {other}: leave one out"
            )
        if options.pooling is not None:
            check_pooling(options.pooling, pretrained)
        if options.mix == "learned" and not options.layers:
            raise StrategyError("`mix` learned mixes the layers that `layers` names: name them")
        if options.layers and options.pooling in POOLINGS_OF_CHECKPOINTS:
            raise StrategyError(
                f"`pooling` {options.pooling} was trained on the last layer alone: leave `layers` out"
            )
        last = pretrained.config.layers
        for layer in options.layers:
            if not 0 <= layer <= last:
                raise StrategyError(
                    f"`layers` {layer} is not there: the encoder has layers 0 (embedding) to {last}"
                )

    def with_options(
        self, pretrained: Pretrained, options: TaskOptions, columns: Sequence[str]
    ) -> Pretrained:
        """The checkpoint with the options of this task alone, for texts in ``columns``.

        Raises :class:`StrategyError` as :meth:`check_own_options` does.
        """
        self.check_own_options(options)
        return pretrained

    def check_own_options(self, options: TaskOptions) -> None:
        """Raise :class:`StrategyError` for an option that only another task reads."""
        for option, what in OWN_OPTIONS.items():
            value = getattr(options, option)
            if value is not None and option not in self.own_options:
                raise StrategyError(
                    f"`{option}` {value} is of {what}, and the task is {self.name}: leave it out"
                )

    def check_batches(self, options: OptimizerOptions) -> None:
        """Raise :class:`StrategyError` where the loss needs other batches than the options make."""
        return

    # Labels

    @abc.abstractmethod
    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        """The names of the labels of a training table; [] where labels have none.

        ``column`` is the label column, ``columns`` are those of the texts. Raises DataError.
        """

    def all_names(
        self, pretrained: Pretrained, names: Sequence[str], table: Table, column: str
    ) -> list[str]:
        """The names of the labels: ``names``, those in the ``column`` of the training table, and
        further ones that the checkpoint has by :meth:`with_options`.
        """
        return list(names)

    @abc.abstractmethod
    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        """The labels of a table as the loss takes them. Nothing is guessed.

        Raises DataError, with the row, for anything that is not exactly understood.
        """

    def with_character_offsets(self, table: Table, columns: Columns) -> Table:
        """The table with labels as the other methods take them: their offsets count characters.

        Raises :class:`StrategyError` for ``offsets`` of a task without spans.
        """
        if columns.offsets != "characters":
            raise StrategyError(
                f"`offsets` {columns.offsets} is of spans, and the task is {self.name}: leave it out"
            )
        return table

    def check_labels(self, table: Table, column: str, columns: Sequence[str]) -> None:
        """Raise DataError, with the row, for labels that contradict their texts in ``columns``."""
        return

    def no_labels(self, table: Table, columns: Sequence[str]) -> Labels:
        """What stands in for labels where there are none: in prediction."""
        return np.zeros(len(table), np.int32)

    def class_counts(self, labels: np.ndarray, names: Sequence[str]) -> dict[str, int]:
        """How many rows, or words, of ``labels`` each class has; {} where labels are no classes."""
        if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
            counts = np.bincount(labels, minlength=len(names))
        elif labels.ndim == 2:  # 0 and 1
            counts = labels.sum(0)
        else:
            return {}
        if not names or len(counts) != len(names):
            return {}
        return dict(zip(names, counts.astype(int).tolist(), strict=True))

    # Examples

    def examples(
        self,
        pretrained: Pretrained,
        table: Table,
        columns: Sequence[str],
        labels: Labels,
        image_column: str | None = None,
    ) -> Examples:
        """The rows of a table, with labels as :meth:`encode_labels` gives them, as examples.

        They are texts of ``columns``, or with an ``image_column`` pictures. Every one is checked
        first.
        """
        hub.check_inputs(pretrained, image_column)
        if image_column is None:
            return self.text_examples(pretrained, table, columns, labels)
        digests = pictures.check_images(table, image_column)
        load = pictures.image_loader(table, image_column)
        return examples.from_images(pretrained, load, digests, labels)  # pyright: ignore

    def text_examples(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str], labels: Labels
    ) -> Examples:
        """The texts of a table as examples.

        Logs a warning where labels lie in what was truncated. Raises DataError for a row without
        text, StrategyError for an encoder that takes none.
        """
        for column in columns:
            tables.check_texts(table, column)
        return examples.from_texts(pretrained, self.sequence_chunks(table, columns), labels)  # pyright: ignore

    def sequence_chunks(self, table: Table, columns: Sequence[str]) -> Iterator[list[Text]]:
        """:meth:`sequences` of a table, some thousand rows at a time."""
        for chunk in tables.chunks(table, columns, CHUNK):
            yield self.sequences([chunk[column] for column in columns])

    def sequences(self, texts: Sequence[Sequence[str]]) -> list[Text]:
        """Columns of texts -> what the encoder reads: one sequence a row, or as many for every row."""
        if len(texts) == 2:
            return list(zip(*texts, strict=True))
        return list(texts[0])

    def strata(self, part: Examples) -> Any:
        """What a split keeps the shares of, [N]: the labels, which only count where they are
        classes.
        """
        return part.labels

    def pair_examples(self, part: Examples, seed: int) -> Examples:
        """What is computed as examples: these, unless the task makes pairs or windows of them."""
        return part

    def training_examples(self, part: Examples) -> Examples:
        """Those that are trained on of what :meth:`pair_examples` made: all of them."""
        return part

    def check_scored(self, part: Examples, where: str, needs_loss: bool = False) -> None:
        """Raise DataError for a set, as :meth:`pair_examples` made it, of which nothing can be
        scored, or with ``needs_loss`` nothing has a loss.

        ``where`` is what the message calls the set.
        """
        return

    # The head

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        """A new head: a Linen module whose class is in ``adapt.models.HEADS``."""
        return classifier(pretrained, options, self.count_outputs(names))

    def count_outputs(self, names: Sequence[str]) -> int:
        return len(names) if self.num_outputs is None else self.num_outputs

    def output_names(self, names: Sequence[str]) -> list[str]:
        """The label names that are kept with the run: those of the head's outputs."""
        return list(names) if self.num_outputs is None else []

    def init_head(self, params: tree.Tree, labels: Labels) -> tree.Tree:
        """The head's fresh parameters, with values that the training labels suggest."""
        return params

    def head_notes(self, run: Pretrained) -> dict[str, str]:
        """What else is to be said of a run's head, by what it is."""
        return {}

    # The loss

    def training_loss(self, options: TaskOptions, labels: np.ndarray, names: Sequence[str]) -> Loss:
        """:meth:`loss` with the weights of classes that the options ask for."""
        if options.class_weights == "none":
            return self.loss
        return balanced(self.loss, labels, len(names))

    def mean_loss(self, outputs: np.ndarray, labels: np.ndarray, size: int = 1024) -> float:
        """The mean over a set, computed ``size`` examples at a time.

        The size matters to a contrast alone: its negatives are those of the same part.
        """
        per_example = len(outputs) // len(labels)
        losses = []
        with on_host():  # the outputs are there, and on an accelerator each size would compile
            for start in range(0, len(labels), size):
                some_outputs = outputs[start * per_example : (start + size) * per_example]
                some_labels = labels[start : start + size]
                arrays: Any = (np.asarray(some_outputs), np.asarray(some_labels))
                losses.append(self.jitted_loss(*arrays))
        return float(np.mean(np.concatenate(losses)))

    @functools.cached_property
    def jitted_loss(self) -> Loss:
        """:meth:`loss` as one program."""
        return jax.jit(self.loss)

    # Decisions

    def decide(self, outputs: np.ndarray, labels: Any) -> Scores:
        """What a run keeps beside its parameters, by name, chosen by the outputs of its validation:
        a threshold, say. None of it here.
        """
        return {}

    def apply_decisions(
        self, outputs: np.ndarray, labels: Any, decisions: Mapping[str, float | None]
    ) -> np.ndarray:
        """The outputs with what :meth:`decide` chose applied, for :meth:`metrics` and
        :meth:`answers`. ``decisions`` may have more entries, and those of other scores.
        """
        return outputs

    def with_decisions(self, head: Any, decisions: Mapping[str, float | None]) -> Any:
        """The head that a run keeps, with these decisions in its fields."""
        return head

    def decisions_of(self, head: Any) -> Scores:
        """The decisions in the fields of a run's head."""
        return {}

    # Scores. Their ``labels`` are those of :meth:`truth`.

    def deciding_metric(self, names: Sequence[str]) -> str:
        """The metric by which validation decides where labels have these names."""
        return self.primary_metric

    def truth(self, part: Examples) -> np.ndarray:
        """What the outputs of an evaluation are scored against: the targets, [N, ...]."""
        return part.targets

    def scored_names(self, part: Examples, names: Sequence[str]) -> Sequence[str]:
        """The names of the classes that :meth:`truth` has: those of the outputs, ``names``, and
        after them those that no output is of.
        """
        return names

    @abc.abstractmethod
    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        """Scores of a set, :meth:`deciding_metric` among them; nan where one is not defined.
        ``names`` are its :meth:`scored_names`.

        A name with a colon, ``f1:PER``, is the score of one class, which epochs do not show.
        """

    def example_scores(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What each example counts in the scores that are means over examples, float64 [N] by
        metric. Other scores are left out.
        """
        return {}

    def score_ratios(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The scores that are ratios of sums, by metric: what each group of examples, such as a
        sentence, adds to (the numerator, the denominator), [G] each.
        """
        return {}

    @abc.abstractmethod
    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        """What scores on the test labels without a look at any input, from the training labels."""

    # Predictions

    def header(self, run: Pretrained, columns: Sequence[str]) -> list[str]:
        """The columns of a prediction, for texts in these columns."""
        return ["prediction", *(f"probability:{name}" for name in run.labels)]

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """What the head's ``outputs`` say of every row of the table, in its order."""
        raise NotImplementedError(f"the task {self.name} has no predictions")

    def cells(self, run: Pretrained, label: Any) -> Row:
        """One of the labels of :meth:`answers` as values of the columns before the probabilities."""
        return [label]

    def rows(self, run: Pretrained, answers: Answers) -> Iterator[Row]:
        """A row of values, as :meth:`header` names them, for every example."""
        for number, label in enumerate(answers.labels):
            row = self.cells(run, label)
            if answers.probabilities is not None:
                row += numbers(answers.probabilities[number])
            yield row

    # Exports

    def output_note(self, classes: Sequence[str]) -> str:
        """What the card of an export says of the outputs, in Markdown."""
        return class_list("Logits by class:", classes)


TASKS: dict[str, Task] = {}


def get_task(name: str) -> Task:
    """The task of this name. Raises :class:`StrategyError` that lists them."""
    if not isinstance(name, str) or name not in TASKS:
        raise StrategyError(f"unknown `task` {name!r}: give one of {', '.join(sorted(TASKS))}")
    return TASKS[name]


def task_of(run: Pretrained) -> Task:
    """The task of a finished run.

    Raises CheckpointError for a run of pre-training, ExtensionError for a task whose module has to
    be imported first.
    """
    if run.task in TASKS:
        return TASKS[run.task]
    hub.check_imported(run.source, run.imports, "task", run.task, TASKS)
    if run.task and not isinstance(run.head, PRETRAINING_HEADS):
        raise CheckpointError(
            f"{run.source} has the task {run.task!r}, which is not registered: import the module "
            "that has it first"
        )
    raise CheckpointError(
        f"{run.source} is a pre-training run ({run.task or 'no task'}): predict takes what "
        "finetune wrote"
    )


def check_pooling(name: str, pretrained: Pretrained) -> None:
    """Raise :class:`StrategyError` for a pooling that is not registered, or not of this encoder."""
    known = hub.known_poolings(pretrained)
    if name not in known:
        raise StrategyError(f"unknown `pooling` {name!r}: give one of {', '.join(known)}")


def classifier(
    pretrained: Pretrained,
    options: TaskOptions,
    num_outputs: int,
    bias: bool = True,
    columns: tuple[int, ...] = (),
) -> Classifier | OnHead:
    """A head that pools and projects, as the options say: on the encoder, or on the checkpoint's
    own head.
    """
    config = pretrained.config
    family = get_family(config.family)
    pooling = options.pooling or default_pooling(pretrained)
    if options.keep_head is not None:
        if columns:
            raise StrategyError(
                f"`keep_head` {options.keep_head} goes with one label column: leave it out"
            )
        pooling = options.pooling or pooling_on_head(pretrained, pooling)
        return on_head(pretrained, options.keep_head, pooling, num_outputs, config.dropout)
    if options.layers and pooling in POOLINGS_OF_CHECKPOINTS:  # which read the last layer alone
        pooling = family.pooling if family.pooling in POOLINGS else "mean"
    layer = {}
    for head in family.sequence_heads:
        # Where the original class has no bias, a head with one could not be exported.
        if head.pooling == pooling and not head.bias:
            bias = False
        if head.pooling == pooling and not options.layers and not columns:
            layer = family.head_layer(config)
    layers = tuple(options.layers)
    return Classifier(
        num_outputs,
        pooling,
        bias,
        config.dropout,
        layers,
        options.mix,
        columns,
        **layer,
        **hub.pooling_fields(pretrained, pooling),
    )


@dataclasses.dataclass(frozen=True)
class Weighted:
    """``loss`` times the weight of the label's class. Equal ones are one loss to a compiled step."""

    loss: Loss
    weights: tuple[float, ...]  # of the classes

    def __call__(self, outputs: jax.Array, label: jax.Array) -> jax.Array:
        weights = jnp.asarray(self.weights, jnp.float32)
        return self.loss(outputs, label) * weights[label]


def balanced(loss: Loss, labels: np.ndarray, num_classes: int) -> Loss:
    """``loss`` with an example counting N / (classes * examples of its class).

    That is scikit-learn's formula; over the set, weights average 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (len(counts) * np.maximum(counts, 1))
    return Weighted(loss, tuple(weights.tolist()))


def numbers(values: np.ndarray) -> list[str]:
    """Floats as text that reads back to the same floats."""
    return [repr(float(value)) for value in values]


def class_list(sentence: str, classes: Sequence[str]) -> str:
    """A sentence and a Markdown list of the classes by their numbers."""
    lines = [f"- {number}: {name}" for number, name in enumerate(classes)]
    return "\n\n".join([sentence, "\n".join(lines)])

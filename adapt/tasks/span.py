"""The part of a text that answers: where it starts and where it ends."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from adapt.data import examples, tables
from adapt.data.examples import Examples
from adapt.data.inputs import Columns
from adapt.data.labels import Labels, shortened
from adapt.data.spans import NO_ANSWER, NULL, STRIDE, UNKNOWN, SpanFile, SpanRows
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError, StrategyError
from adapt.models import Span as SpanHead
from adapt.options import TaskOptions
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Text
from adapt.tasks import span_scores
from adapt.tasks.base import TASKS, Answers, Row, Task
from adapt.tasks.metrics import Scores, mean_of_scored
from adapt.tasks.span_answers import (
    answers_in_texts,
    check_answer,
    in_characters,
    read_answers,
)
from adapt.tasks.span_windows import WindowReader, with_default_stride
from adapt.training import losses
from adapt.training.losses import Loss

logger = logging.getLogger(__name__)


class Span(Task):
    """Characters of a text, with or without a question; outputs [windows, 2, L] by tokens.

    A label is ``[start, end]``, the end exclusive, or SQuAD's ``{"text": ["some words"],
    "answer_start": [7]}``, with empty lists for a question without an answer; either may be JSON in
    a string. Several answers of a row are scored by the best of them, and the first is trained on.
    An answer has to stand at its offset. A text that is too long is read in overlapping windows.
    """

    primary_metric = "f1"
    beats: ClassVar = {"majority_accuracy": ("exact_match", 1)}
    takes_images = False
    num_outputs = 2
    pools = False
    own_options: ClassVar = ("stride",)
    loss = staticmethod(losses.span_cross_entropy)

    # What goes together

    def check_long(self, columns: Sequence[str], pretrained: Pretrained) -> None:
        long = pretrained.tokenizer.long if pretrained.tokenizer else "head"
        if long != "head":
            raise StrategyError(
                f"`long` {long} is for tasks with one vector a text, and `task` {self.name} reads "
                "long texts in windows that `stride` says: give `long` head"
            )

    def with_options(
        self, pretrained: Pretrained, options: TaskOptions, columns: Sequence[str]
    ) -> Pretrained:
        """The checkpoint with the ``stride`` of the options, of the run that it is, or the default."""
        self.check_own_options(options)
        tokenizer = pretrained.tokenizer
        if tokenizer is None:
            return pretrained
        stride = tokenizer.stride if options.stride is None else options.stride
        stride = STRIDE if stride is None else stride
        return dataclasses.replace(pretrained, tokenizer=tokenizer.replaced(stride=stride))

    # Labels

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return []

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        """Characters int64 [N, 2]: the first, and the one after the last; -1 for no answer.

        Where a row has several answers, [N, A, 2]: a row with fewer has its first one again.
        """
        rows = []
        for row, value in numbered_values(table, column):
            answers = read_answers(table, row, value)
            rows.append([answer[:2] for answer in answers] or [(NO_ANSWER, NO_ANSWER)])
        most = max(map(len, rows), default=1)
        spans = [answers + answers[:1] * (most - len(answers)) for answers in rows]
        encoded = np.array(spans, np.int64).reshape(len(rows), most, 2)
        return encoded[:, 0] if most == 1 else encoded

    def with_character_offsets(self, table: Table, columns: Columns) -> Table:
        """The table with offsets that count characters.

        Raises DataError where an answer's text does not stand at its offset.
        """
        if columns.offsets == "characters":
            return table
        unit = columns.offsets
        labels = []
        for where, text, answers in answers_in_texts(table, columns.label, columns.text, unit):
            labels.append(json.dumps(in_characters(where, text, answers, unit)))
        return tables.with_column(table, columns.label, labels)

    def check_labels(self, table: Table, column: str, columns: Sequence[str]) -> None:
        """Raise DataError where an answer's text does not stand at its offset."""
        for where, text, answers in answers_in_texts(table, column, columns[0]):
            for answer in answers:
                check_answer(where, text, answer)

    def no_labels(self, table: Table, columns: Sequence[str]) -> Labels:
        return np.full((len(table), 2), UNKNOWN)

    def class_counts(self, labels: Any, names: Sequence[str]) -> dict[str, int]:
        """How many questions have an answer, and how many none; {} where all have one."""
        is_null = labels.is_unanswerable
        if not is_null.any():
            return {}
        return {"an answer": int((~is_null).sum()), "no answer": int(is_null.sum())}

    # Examples

    def sequences(self, texts: Sequence[Sequence[str]]) -> list[Text]:
        """The question goes first."""
        return super().sequences(texts[::-1])

    def text_examples(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str], labels: Labels
    ) -> Examples:
        """Rows of which each has one or more windows; their labels are SpanRows.

        Raises DataError where a question leaves no room for its text, StrategyError for questions
        without an answer and an encoder that has no first token to say so.
        """
        for column in columns:
            tables.check_texts(table, column)
        tokenizer = with_default_stride(tokenizer_of(pretrained))
        # The first token of a causal encoder sees no text.
        reader = WindowReader(tokenizer, len(columns) - 1, not pretrained.config.causal)
        answers = np.asarray(labels).reshape(len(table), -1, 2)
        for chunk in self.sequence_chunks(table, columns):
            reader.read(table, chunk, answers)
        file = reader.file(answers)
        part = examples.from_tokens(
            pretrained, reader.encoded, SpanRows(file, np.arange(len(table)))
        )
        check_no_answers(pretrained, table, file)
        warn_of_lost(table, file, part.max_length)
        return part

    def strata(self, part: Examples) -> Any:
        """Whether each question has an answer, int32 [N], where some have none."""
        is_unanswerable = part.labels.is_unanswerable
        return is_unanswerable.astype(np.int32) if is_unanswerable.any() else part.labels

    def pair_examples(self, part: Examples, seed: int) -> Examples:
        """The windows of these rows, each an example with the weight and the extras of its row."""
        if not isinstance(part.labels, SpanRows):
            return part
        labels = part.labels.by_window()
        if part.windows is None:  # each row is one
            return dataclasses.replace(part, labels=labels)
        row = part.windows.owners(part.rows)
        return dataclasses.replace(
            part,
            rows=part.windows.sequences(part.rows),
            labels=labels,
            windows=None,
            weights=None if part.weights is None else part.weights[row],
            extras={name: values[row] for name, values in part.extras.items()},
        )

    def training_examples(self, part: Examples) -> Examples:
        """The windows that say something: see :attr:`SpanFile.targets`."""
        says = np.asarray(part.labels)[:, 0] >= 0
        return part if says.all() else part.take(np.flatnonzero(says))

    def check_scored(self, part: Examples, where: str, needs_loss: bool = False) -> None:
        labels = part.labels
        has_loss = bool((np.asarray(labels)[:, 0] >= 0).any())
        is_scored = bool(span_scores.is_counted(labels).any())
        if has_loss or (is_scored and not needs_loss):
            return
        row = int(labels.rows[0])
        start = int(labels.file.answers[row, 0, 0])
        answer = shortened(labels.file.gold(row)[0])
        first = f"the first is {answer!r} at character {start} of row {row + 1}"
        if labels.file.is_cut:
            raise DataError(
                f"{where}: nothing can be scored, as every answer lies in what was cut off beyond "
                f"the {part.max_length} tokens of an example; {first}: train with a larger "
                "`max_length`, or with a `stride` above 0, which reads long texts in windows"
            )
        raise DataError(
            f"{where}: no answer is whole in a window of {part.max_length} tokens, so that there is "
            f"no loss; {first}: train with a larger `max_length`, or leave such rows out"
        )

    # The head and its loss

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        config = pretrained.config
        layer = get_family(config.family).head_layer(config)
        return SpanHead(tokenizer_of(pretrained).max_length, config.dropout, **layer)

    def training_loss(self, options: TaskOptions, labels: Any, names: Sequence[str]) -> Loss:
        return self.loss

    def mean_loss(self, outputs: np.ndarray, labels: Any, size: int = 1024) -> float:
        """The mean over the windows that say something; nan where none does."""
        targets = np.asarray(labels)
        says = targets.reshape(len(targets), -1)[:, 0] >= 0
        if not says.any():
            return float("nan")
        return super().mean_loss(outputs[says], targets[says], size)

    # Decisions

    def decide(self, outputs: np.ndarray, labels: Any) -> Scores:
        """``null_threshold``: by how much no answer has to be better to be given, where some
        question has none (Devlin et al. 2019, 4.3).
        """
        if not (labels.file.has_null and labels.file.is_unanswerable[labels.rows].any()):
            return {}
        return {"null_threshold": span_scores.best_threshold(outputs, labels)}

    def apply_decisions(
        self, outputs: np.ndarray, labels: Any, decisions: Mapping[str, float | None]
    ) -> np.ndarray:
        """Outputs in which no answer is given where it is better than an answer by more than 0;
        without a threshold it never is.
        """
        if not labels.file.has_null:
            return outputs
        threshold = decisions.get("null_threshold")
        outputs = outputs.copy()
        outputs[:, 0, NULL] -= np.inf if threshold is None else threshold
        return outputs

    def with_decisions(self, head: Any, decisions: Mapping[str, float | None]) -> Any:
        return head.clone(null_threshold=decisions.get("null_threshold"))

    def decisions_of(self, head: Any) -> Scores:
        threshold = getattr(head, "null_threshold", None)
        return {} if threshold is None else {"null_threshold": threshold}

    # Scores

    def metrics(self, outputs: np.ndarray, labels: Any, names: Sequence[str]) -> Scores:
        """The means over questions of :func:`span_scores.question_scores`; nan where there are none."""
        scores = {}
        for name, values in self.example_scores(outputs, labels, names).items():
            scores[name] = mean_of_scored(values)
        return scores

    def example_scores(
        self, outputs: np.ndarray, labels: Any, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return span_scores.question_scores(outputs, labels)

    def baseline(self, train: Any, test: Any) -> Scores:
        """The exact match of always answering what most training questions have as their answer."""
        return {"majority_accuracy": span_scores.majority_answer(train, test)}

    # Predictions

    def header(self, run: Pretrained, columns: Sequence[str]) -> list[str]:
        return ["start", "end", "text"]

    def answers(
        self,
        run: Pretrained,
        outputs: np.ndarray,
        part: Examples,
        table: Table,
        columns: Sequence[str],
    ) -> Answers:
        """The labels are (start, end, text): characters, the end exclusive, and what is between.

        None where the run says that there is no answer, or the text has no token.
        """
        decisions = self.decisions_of(run.head)
        found = span_scores.best_answers(
            self.apply_decisions(outputs, part.labels, decisions), part.labels
        )
        labels: list[tuple[int, int, str] | None] = []
        for span, margin in zip(found.spans, found.margins, strict=True):
            labels.append(None if margin > 0 or not span[2] else span)
        return Answers(labels)

    def cells(self, run: Pretrained, label: tuple[int, int, str] | None) -> Row:
        return ["", "", ""] if label is None else list(label)

    # Exports

    def output_note(self, classes: Sequence[str]) -> str:
        return "Logits of where an answer starts and where it ends, by token."


def check_no_answers(pretrained: Pretrained, table: Table, file: SpanFile) -> None:
    """Raise StrategyError for a question without an answer where no token can say so."""
    if file.has_unanswerable and not file.has_null:
        row = int(file.is_unanswerable.argmax()) + 1
        raise StrategyError(
            f"{table.name}: row {row} has no answer, which a first token that sees the text says, "
            f"as BERT's [CLS], and {pretrained.source} has none: leave such rows out"
        )


def warn_of_lost(table: Table, file: SpanFile, max_length: int) -> None:
    """Log how many rows have an answer that no window holds."""
    has_answer = file.answers[:, 0, 0] >= 0
    lost = int((has_answer & ~file.is_found).sum())
    if not lost:
        return
    if file.is_cut:
        said = f"spans lie beyond the {max_length} tokens of an example: not scored"
    else:
        said = f"spans are whole in no window of {max_length} tokens: not trained on"
    logger.warning(f"{table.name}: {lost} of {len(has_answer)} {said}")


TASKS["span"] = Span()

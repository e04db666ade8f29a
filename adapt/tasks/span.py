"""The part of a text that answers: where it starts and where it ends."""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapt.data import examples, tables
from adapt.data.examples import Examples
from adapt.data.labels import Labels
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.models import Span as SpanHead
from adapt.options import TaskOptions
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Text, gather, left_out
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Answers, Row, Task
from adapt.tasks.metrics import Scores
from adapt.training import losses

logger = logging.getLogger(__name__)


class Span(Task):
    """Characters of a text, with or without a question; outputs [N, 2, L] by tokens.

    A label is ``[start, end]``, the end exclusive, or SQuAD's ``{"text": ["some words"],
    "answer_start": [7]}``, whose first answer counts; either may be JSON in a string.
    """

    primary_metric = "f1"
    takes_images = False
    num_outputs = 2
    pools = False
    loss = staticmethod(losses.span_cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return []

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        """Characters int64 [N, 2]: the first, and the one after the last."""
        spans = [read_span(table, row, value) for row, value in numbered_values(table, column)]
        return np.array(spans, np.int64).reshape(-1, 2)

    def no_labels(self, table: Table, columns: Sequence[str]) -> Labels:
        return np.tile([0, 1], (len(table), 1))

    def sequences(self, texts: Sequence[Sequence[str]]) -> list[Text]:
        """The question goes first."""
        return super().sequences(texts[::-1])

    def text_examples(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str], labels: Labels
    ) -> Examples:
        """Labels become int32 [N, 2]: the first and the last token, -1 where they are cut off."""
        for column in columns:
            tables.check_texts(table, column)
        tokenized = []
        spans = []
        for texts, encodings in self.encoded(pretrained, table, columns):
            for text, encoding in zip(texts, encodings, strict=True):
                row = len(spans)
                start, end = without_spaces(table, row, text, *labels[row].tolist())
                first = encoding.char_to_token(start, len(columns) - 1)
                last = encoding.char_to_token(end - 1, len(columns) - 1)
                is_cut_off = first is None or last is None
                spans.append([-1, -1] if is_cut_off else [first, last])
            lost = left_out(encodings, len(columns) - 1)
            tokenized.append(gather(encodings, lost, tokenizer_of(pretrained).max_length))
            tokenizer_of(pretrained).unknown.count(tokenized[-1].tokens, texts)
        tokens = np.array(spans, np.int32)
        part = examples.from_tokens(pretrained, tokenized, tokens)
        lost = int((tokens[:, 0] < 0).sum())
        if lost:
            logger.warning(
                f"{table.name}: {lost} of {len(tokens)} spans lie beyond the {part.max_length} "
                "tokens of an example: not scored"
            )
        return part

    def encoded(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str]
    ) -> Iterator[tuple[list[str], list[Any]]]:
        """(the texts that spans lie in, their encodings), some thousand rows at a time.

        In a pair the text is truncated and never the question. Raises DataError where the question
        leaves no room for the text.
        """
        tokenizer = tokenizer_of(pretrained)
        is_pair = len(columns) == 2
        # A copy: truncation is a setting of the object, and the checkpoint's own keeps its own.
        backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
        backend.enable_truncation(
            tokenizer.max_length, strategy="only_second" if is_pair else "longest_first"
        )
        row = 0
        for chunk in self.sequence_chunks(table, columns):
            try:
                encodings = backend.encode_batch(chunk)
            except Exception:  # the library raises no other
                raise DataError(
                    f"{table.name}: rows {row + 1} to {row + len(chunk)}: a question in column "
                    f"'{columns[1]}' leaves no room for its text in the {tokenizer.max_length} "
                    "tokens of an example"
                ) from None
            row += len(chunk)
            yield [text if isinstance(text, str) else text[-1] for text in chunk], encodings

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        return SpanHead(tokenizer_of(pretrained).max_length, pretrained.config.dropout)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Scores:
        return metrics.spans(outputs, labels)

    def example_scores(
        self, outputs: np.ndarray, labels: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        return metrics.span_scores(outputs, labels)

    def baseline(self, train: np.ndarray, test: np.ndarray) -> Scores:
        return metrics.majority(train, test)

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

        None where the best tokens are not of the text but of the question.
        """
        best = iter(metrics.best_spans(outputs).tolist())
        text_number = len(columns) - 1
        labels: list[tuple[int, int, str] | None] = []
        for texts, encodings in self.encoded(run, table, columns):
            for text, encoding in zip(texts, encodings, strict=True):
                first, last = next(best)
                if {encoding.token_to_sequence(n) for n in (first, last)} != {text_number}:
                    labels.append(None)
                    continue
                start = encoding.token_to_chars(first)[0]
                end = encoding.token_to_chars(last)[1]
                answer = text[start:end].lstrip()  # byte-level tokens begin with their space
                labels.append((end - len(answer), end, answer))
        return Answers(labels)

    def cells(self, run: Pretrained, label: tuple[int, int, str] | None) -> Row:
        return ["", "", ""] if label is None else list(label)


def read_span(table: Table, row: int, value: Any) -> tuple[int, int]:
    """(first character, the one after the last). Raises DataError with the row."""
    try:
        span = json.loads(value) if isinstance(value, str) else value
        if isinstance(span, dict):
            start = int(np.atleast_1d(span["answer_start"])[0])
            end = start + len(np.atleast_1d(span["text"])[0])
        else:
            start, end = map(int, span)
    except (ValueError, TypeError, KeyError, IndexError):
        start = end = 0
    if not 0 <= start < end:
        raise DataError(
            f"{table.name}: row {row}: {value!r} is no span: give [start, end], or answer_start "
            "and text as SQuAD has them"
        )
    return start, end


def without_spaces(table: Table, row: int, text: str, start: int, end: int) -> tuple[int, int]:
    """The span without spaces at its ends. Raises DataError where nothing is left, with the row."""
    answer = text[start:end]
    if end > len(text) or not answer.strip():
        raise DataError(
            f"{table.name}: row {row + 1}: the span {start} to {end} is empty or goes beyond the "
            f"{len(text)} characters of its text"
        )
    start += len(answer) - len(answer.lstrip())
    end -= len(answer) - len(answer.rstrip())
    return start, end


TASKS["span"] = Span()

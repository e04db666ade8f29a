"""The part of a text that answers: where it starts and where it ends."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapt.data import examples, tables
from adapt.data.examples import Examples
from adapt.data.inputs import Columns
from adapt.data.labels import Labels, shortened
from adapt.data.offsets import NAMES, agreeing_unit, characters_before, num_units
from adapt.data.tables import Table, numbered_values
from adapt.errors import DataError
from adapt.files import parse_json
from adapt.models import Span as SpanHead
from adapt.options import Offsets, TaskOptions
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Text, gather, left_out
from adapt.tasks import metrics
from adapt.tasks.base import TASKS, Answers, Row, Task
from adapt.tasks.metrics import Scores
from adapt.training import losses

logger = logging.getLogger(__name__)

Answer = tuple[int, int, str | None]  # first character, the one after the last, the text


class Span(Task):
    """Characters of a text, with or without a question; outputs [N, 2, L] by tokens.

    A label is ``[start, end]``, the end exclusive, or SQuAD's ``{"text": ["some words"],
    "answer_start": [7]}``; either may be JSON in a string. Several answers of a row are scored by
    the best of them, and the first is trained on. Offsets count characters, and an answer has to
    stand at its offset.
    """

    primary_metric = "f1"
    takes_images = False
    num_outputs = 2
    pools = False
    loss = staticmethod(losses.span_cross_entropy)

    def label_names(self, table: Table, column: str, columns: Sequence[str]) -> list[str]:
        return []

    def encode_labels(self, table: Table, column: str, names: Sequence[str]) -> Labels:
        """Characters int64 [N, 2]: the first, and the one after the last.

        Where a row has several answers, [N, A, 2]: a row with fewer has its first one again.
        """
        rows = []
        for row, value in numbered_values(table, column):
            answers = read_answers(table, row, value)
            rows.append([answer[:2] for answer in answers])
        most = max(map(len, rows), default=1)
        spans = [answers + answers[:1] * (most - len(answers)) for answers in rows]
        return one_answer(np.array(spans, np.int64).reshape(len(rows), most, 2))

    def read_table(self, table: Table, columns: Columns) -> Table:
        """The table with offsets that count characters.

        Raises DataError where an answer's text does not stand at its offset.
        """
        if columns.offsets == "characters":
            return table
        labels = []
        contexts = (text for _, text in numbered_values(table, columns.text))
        values = numbered_values(table, columns.label)
        for (row, value), context in zip(values, contexts, strict=True):
            answers = read_answers(table, row, value, columns.offsets)
            where = f"{table.name}: row {row}"
            labels.append(json.dumps(in_characters(where, context or "", answers, columns.offsets)))
        rows = table.rows.remove_columns(columns.label)
        rows = rows.add_column(columns.label, labels)  # pyright: ignore[reportCallIssue]
        return dataclasses.replace(table, rows=rows)

    def check_labels(self, table: Table, column: str, columns: Sequence[str]) -> None:
        """Raise DataError where an answer's text does not stand at its offset."""
        contexts = (text for _, text in numbered_values(table, columns[0]))
        for (row, value), context in zip(numbered_values(table, column), contexts, strict=True):
            for answer in read_answers(table, row, value):
                check_answer(f"{table.name}: row {row}", context or "", answer)

    def no_labels(self, table: Table, columns: Sequence[str]) -> Labels:
        return np.full((len(table), 2), -1)

    def is_scored(self, labels: Labels) -> np.ndarray:
        """Whether the first answer, which is trained on, was not cut off."""
        return first_answers(np.asarray(labels))[:, 0] >= 0

    def sequences(self, texts: Sequence[Sequence[str]]) -> list[Text]:
        """The question goes first."""
        return super().sequences(texts[::-1])

    def text_examples(
        self, pretrained: Pretrained, table: Table, columns: Sequence[str], labels: Labels
    ) -> Examples:
        """Labels become int32, the first and the last token, -1 where they are cut off.

        They are [N, 2], or [N, A, 2] where a row has several answers.
        """
        answers = np.asarray(labels).reshape(len(table), -1, 2)
        for column in columns:
            tables.check_texts(table, column)
        tokenized = []
        spans = []
        for texts, encodings in self.encoded(pretrained, table, columns):
            for text, encoding in zip(texts, encodings, strict=True):
                row = len(spans)
                of_row = []
                for start, end in answers[row].tolist():
                    if start >= 0:
                        start, end = without_spaces(table, row, text, start, end)
                    of_row.append(token_span(encoding, start, end, len(columns) - 1))
                spans.append(of_row)
            lost = left_out(encodings, len(columns) - 1)
            tokenized.append(gather(encodings, lost, tokenizer_of(pretrained).max_length))
            tokenizer_of(pretrained).unknown.count(tokenized[-1].tokens, texts)
        tokens = one_answer(np.array(spans, np.int32))
        part = examples.from_tokens(pretrained, tokenized, tokens)
        lost = int((~self.is_scored(tokens)).sum())
        if lost and (answers >= 0).any():
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
            tokenizer.max_length,
            strategy="only_second" if is_pair else "longest_first",
            direction=tokenizer.side,
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
        return metrics.majority_span(first_answers(train), test)

    def mean_loss(self, outputs: np.ndarray, labels: np.ndarray, size: int = 1024) -> float:
        """The mean over the spans that were not cut off; nan where there is none."""
        scored = self.is_scored(labels)
        if not scored.any():
            return float("nan")
        return super().mean_loss(outputs[scored], labels[scored], size)

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


def one_answer(spans: np.ndarray) -> np.ndarray:
    """Spans [N, A, 2] as [N, 2] where there is one a row."""
    return spans[:, 0] if spans.shape[1] == 1 else spans


def first_answers(spans: np.ndarray) -> np.ndarray:
    """Spans [N, 2] or [N, A, 2] -> the first of every row, [N, 2]."""
    return spans.reshape(len(spans), -1, 2)[:, 0]


def token_span(encoding: Any, start: int, end: int, text_number: int) -> tuple[int, int]:
    """(first token, last token) of characters; (-1, -1) where they are cut off."""
    if start < 0:
        return -1, -1
    first = encoding.char_to_token(start, text_number)
    last = encoding.char_to_token(end - 1, text_number)
    return (-1, -1) if first is None or last is None else (first, last)


def read_answers(table: Table, row: int, value: Any, unit: Offsets = "characters") -> list[Answer]:
    """The answers of a row: (where it begins, where it has ended, the text or None), in units.

    Raises DataError with the row.
    """
    answers: list[Answer] = []
    try:
        span = parse_json(value) if isinstance(value, str) else value
        if isinstance(span, dict):
            starts = as_answers(span["answer_start"])
            texts = as_answers(span["text"])
            for start, text in zip(starts, texts, strict=True):
                end = whole(start) + num_units(text, unit)
                answers.append((whole(start), end, str(text)))
        else:
            start, end = map(whole, span)
            answers.append((start, end, None))
    except (ValueError, TypeError, KeyError, AttributeError):
        answers = []
    if not answers or not all(0 <= start < end for start, end, _ in answers):
        raise DataError(
            f"{table.name}: row {row}: {value!r} is no span: give [start, end], or answer_start "
            f"and text as SQuAD has them{without_answer(value)}"
        )
    return answers


def as_answers(value: Any) -> list[Any]:
    """The values of several answers; one answer may stand without a list."""
    return value if isinstance(value, list) else [value]


def whole(value: Any) -> int:
    """A whole number. Raises ValueError for another, which int() would cut, and for a boolean."""
    if isinstance(value, bool) or not float(value).is_integer():
        raise ValueError(f"{value} is no whole number")
    return int(value)


def without_answer(value: Any) -> str:
    """What is said of a question that has no answer."""
    if isinstance(value, dict) and value.get("text") == []:
        return "; questions without an answer are not learned here: leave their rows out"
    return ""


def in_characters(where: str, context: str, answers: Sequence[Answer], unit: Offsets) -> Any:
    """The answers of a row as a label whose offsets count characters.

    Raises DataError where one does not stand at its offset, or where that is no place in the text.
    """
    spans = []
    for answer in answers:
        check_answer(where, context, answer, unit)
        places = [characters_before(context, offset, unit) for offset in answer[:2]]
        if None in places:
            raise DataError(
                f"{where}: the span {answer[0]} to {answer[1]} lies beyond its text or within a "
                f"character, counted in {NAMES[unit]} as `offsets` {unit} says"
            )
        spans.append(places)
    if any(text is None for _, _, text in answers):
        return spans[0]
    starts = [start for start, _ in spans]
    return {"text": [text for _, _, text in answers], "answer_start": starts}


def check_answer(where: str, context: str, answer: Answer, unit: Offsets = "characters") -> None:
    """Raise DataError where an answer's text does not stand at its offset."""
    start, _, text = answer
    if text is None:
        return
    place = characters_before(context, start, unit)
    if place is not None and context.startswith(text, place):
        return
    shown = "nothing" if place is None else shortened(context[place : place + len(text)])
    said = f"{where}: the answer {shortened(text)!r} is not at {start}, where its text has "
    said += f"{shown!r}: "
    if text not in context:
        raise DataError(f"{said}it is nowhere in the text, so answer or text was changed")
    agreeing = agreeing_unit(context, start, text)
    if agreeing is not None:
        raise DataError(
            f"{said}its offset counts {NAMES[agreeing]}, not {NAMES[unit]}: give `offsets` "
            f"{agreeing}"
        )
    first = num_units(context[: context.index(text)], unit)
    raise DataError(f"{said}it begins at {first}; offsets count {NAMES[unit]} from 0")


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

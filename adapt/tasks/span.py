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
from adapt.data.offsets import NAMES, agreeing_unit, characters_before, num_units
from adapt.data.spans import (
    NO_ANSWER,
    NOWHERE,
    NULL,
    STRIDE,
    UNKNOWN,
    SpanFile,
    SpanRows,
    window_starts,
)
from adapt.data.tables import Table, numbered_values
from adapt.data.text_windows import TextWindows
from adapt.errors import DataError, StrategyError
from adapt.files import parse_json
from adapt.models import Span as SpanHead
from adapt.options import Long, Offsets, TaskOptions
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.pretrained.tokenizer import Encoded, LongTexts, Text, Tokenizer, texts_of
from adapt.ragged import Ragged, ragged
from adapt.tasks import span_scores
from adapt.tasks.base import TASKS, Answers, Row, Task
from adapt.tasks.metrics import Scores
from adapt.training import losses
from adapt.training.losses import Loss

logger = logging.getLogger(__name__)

Answer = tuple[int, int, str | None]  # where it begins, where it has ended, the text


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
    loss = staticmethod(losses.span_cross_entropy)

    # What goes together

    def check_long(self, columns: Sequence[str], pretrained: Pretrained) -> None:
        long = pretrained.tokenizer.long if pretrained.tokenizer else "head"
        if long != "head":
            raise StrategyError(
                f"`long` {long} is for tasks with one vector a text, and `task` {self.name} reads "
                "long texts in windows that `stride` says: give `long` head"
            )

    def with_options(self, pretrained: Pretrained, options: TaskOptions) -> Pretrained:
        """The checkpoint with the ``stride`` of the options, of the run that it is, or the default."""
        tokenizer = pretrained.tokenizer
        if tokenizer is None:
            return pretrained
        stride = tokenizer.stride if options.stride is None else options.stride
        stride = STRIDE if stride is None else stride
        return dataclasses.replace(pretrained, tokenizer=tokenizer.with_stride(stride))

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
        without an answer and an encoder that puts no token before a text.
        """
        for column in columns:
            tables.check_texts(table, column)
        tokenizer = with_default_stride(tokenizer_of(pretrained))
        reader = WindowReader(tokenizer, text_number=len(columns) - 1)
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

    # The head and its loss

    def head(self, pretrained: Pretrained, options: TaskOptions, names: Sequence[str]) -> Any:
        return SpanHead(tokenizer_of(pretrained).max_length, pretrained.config.dropout)

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

    def decided(
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
            scored = values[~np.isnan(values)]
            scores[name] = float(scored.mean()) if len(scored) else float("nan")
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
        found = span_scores.best_answers(self.decided(outputs, part.labels, decisions), part.labels)
        labels: list[tuple[int, int, str] | None] = []
        for span, margin in zip(found.spans, found.margins, strict=True):
            labels.append(None if margin > 0 or not span[2] else span)
        return Answers(labels)

    def cells(self, run: Pretrained, label: tuple[int, int, str] | None) -> Row:
        return ["", "", ""] if label is None else list(label)

    # Exports

    def output_note(self, classes: Sequence[str]) -> str:
        return "Logits of where an answer starts and where it ends, by token."


class WindowReader:
    """Reads texts in windows, some thousand rows at a time; :meth:`file` is what all of them are."""

    def __init__(self, tokenizer: Tokenizer, text_number: int):
        self.tokenizer = tokenizer
        self.text_number = text_number  # 1 where a question goes before the text
        self.encoded: list[Encoded] = []  # of each chunk
        self.contexts: list[str] = []  # of each row
        self.tokens: list[tuple[int, int]] = []  # of the first answer in each window
        self.offsets: list[np.ndarray] = []  # of each window's tokens
        self.shared: dict[str, str] = {}  # a text that many questions are about is held once
        self.has_null = True

    def read(self, table: Table, chunk: Sequence[Text], answers: np.ndarray) -> None:
        """Read the texts of a chunk. ``answers`` int64 [N, A, 2] are those of the whole table."""
        sequences = []
        counts = []
        seconds = []
        long = LongTexts(self.rule, self.tokenizer.max_length)
        encodings = self.tokenizer.uncut.encode_batch(list(chunk))
        for text, encoding in zip(chunk, encodings, strict=True):
            row = len(self.contexts)
            context = text if isinstance(text, str) else text[1]
            self.contexts.append(self.shared.setdefault(context, context))
            spans = [self.token_span(table, row, encoding, span) for span in answers[row].tolist()]
            pieces = self.pieces(table, row, encoding)
            ids = np.array(encoding.ids, np.int32)
            types = np.array(encoding.type_ids, np.int32)
            offsets = self.offsets_of(encoding)
            for places in pieces:
                sequences.append(ids[places])
                seconds.append(len(places) - int(types[places].sum()))
                self.offsets.append(offsets[places])
                self.tokens.append(tokens_in(places, spans[0]))
            counts.append(len(pieces))
            if len(ids) > self.tokenizer.max_length:
                long += self.count(len(ids), pieces)
            self.has_null = self.has_null and encoding.sequence_ids[:1] == [None]
        tokens = ragged(sequences)
        if self.text_number:
            tokens = dataclasses.replace(tokens, second_start=np.array(seconds))
        windows = np.array(counts)
        self.tokenizer.unknown.count(tokens, chunk, windows)
        self.encoded.append(Encoded(tokens, long, windows if long.windows else None))

    @property
    def rule(self) -> Long:
        """What becomes of long texts, as it is said of them."""
        return "windows" if self.tokenizer.stride else "head"

    def count(self, length: int, pieces: Sequence[np.ndarray]) -> LongTexts:
        """What became of a text that is too long."""
        lost = 0 if self.tokenizer.stride else length - len(pieces[0])
        windows = len(pieces) if self.tokenizer.stride else 0
        return LongTexts(self.rule, self.tokenizer.max_length, 1, windows, lost)

    def pieces(self, table: Table, row: int, encoding: Any) -> list[np.ndarray]:
        """The places of the tokens of each window: all but those of the text, and a piece of these.

        Raises DataError where a question leaves no room for a piece.
        """
        max_length = self.tokenizer.max_length
        if len(encoding) <= max_length:
            return [np.arange(len(encoding))]
        is_text = texts_of(encoding) == self.text_number
        own = np.flatnonzero(is_text)
        others = np.flatnonzero(~is_text)
        room = max_length - len(others)
        if room < 1:
            raise DataError(
                f"{table.name}: row {row + 1}: its question leaves no room for its text in the "
                f"{max_length} tokens of an example"
            )
        stride = self.tokenizer.stride
        if stride:
            starts = window_starts(len(own), room, stride)
        else:
            starts = [len(own) - room if self.tokenizer.side == "left" else 0]
        return [np.sort(np.concatenate([others, own[at : at + room]])) for at in starts]

    def token_span(
        self, table: Table, row: int, encoding: Any, span: Sequence[int]
    ) -> tuple[int, int]:
        """The first and the last token of characters, in the whole text; NOWHERE for none."""
        start, end = span
        if start < 0:
            return NOWHERE, NOWHERE
        start, end = without_spaces(table, row, self.contexts[row], start, end)
        first = encoding.char_to_token(start, self.text_number)
        last = encoding.char_to_token(end - 1, self.text_number)
        return (NOWHERE, NOWHERE) if first is None or last is None else (first, last)

    def offsets_of(self, encoding: Any) -> np.ndarray:
        """The characters of each token, int32 [n, 2]; -1 for a token that is not of the text."""
        offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return np.where(texts_of(encoding)[:, None] == self.text_number, offsets, -1)

    def file(self, answers: np.ndarray) -> SpanFile:
        """All rows that were read, with their answers."""
        lengths = np.array([len(offsets) for offsets in self.offsets], np.int64)
        counts = [one.windows for one in self.encoded]
        sizes = [len(one.tokens) for one in self.encoded]
        by_chunk = []
        for of_chunk, size in zip(counts, sizes, strict=True):
            by_chunk.append(np.ones(size, np.int64) if of_chunk is None else of_chunk)
        return SpanFile(
            contexts=self.contexts,
            answers=answers,
            windows=TextWindows(np.concatenate(by_chunk)),
            offsets=Ragged(np.concatenate(self.offsets), np.cumsum(lengths) - lengths, lengths),
            tokens=np.array(self.tokens, np.int32),
            has_null=self.has_null,
            is_cut=not self.tokenizer.stride,
        )


def with_default_stride(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a stride; runs from before there was one have none."""
    return tokenizer if tokenizer.stride is not None else tokenizer.with_stride(STRIDE)


def tokens_in(places: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """The first and the last token of a span in a window, which has the tokens at ``places``;
    NOWHERE where it has not both.
    """
    first, last = np.searchsorted(places, span).tolist()
    if last >= len(places) or (places[first], places[last]) != span:
        return NOWHERE, NOWHERE
    return first, last


def check_no_answers(pretrained: Pretrained, table: Table, file: SpanFile) -> None:
    """Raise StrategyError for a question without an answer where no token can say so."""
    if file.has_unanswerable and not file.has_null:
        row = int(file.is_unanswerable.argmax()) + 1
        raise StrategyError(
            f"{table.name}: row {row} has no answer, which the first token of an example says, and "
            f"{pretrained.source} puts none before its texts: leave such rows out, or give `pretrained` "
            "of BERT's kind"
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


def read_answers(table: Table, row: int, value: Any, unit: Offsets = "characters") -> list[Answer]:
    """The answers of a row: (where it begins, where it has ended, the text or None), in units; []
    for a question without an answer.

    Raises DataError with the row.
    """
    answers: list[Answer] = []
    try:
        span = parse_json(value) if isinstance(value, str) else value
        if isinstance(span, dict) and span["text"] == span["answer_start"] == []:
            return []
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
            "and text as SQuAD has them, both [] for no answer"
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
        return spans[0]  # [start, end], which is one
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

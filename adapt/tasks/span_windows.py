"""Texts as overlapping windows of tokens, each with the whole question.

A text that fits is one window.

    reader = WindowReader(tokenizer, text_number=1)
    reader.read(table, [("Who left?", "Ines left.")], answers)
    reader.encoded, reader.file(answers)            # token ids, and the file that they are of
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.spans import NOWHERE, STRIDE, SpanFile, window_starts
from adapt.data.tables import Table
from adapt.data.text_windows import TextWindows
from adapt.errors import DataError
from adapt.options import Long
from adapt.pretrained.tokenizer import Encoded, LongTexts, Text, Tokenizer, texts_of
from adapt.ragged import Ragged, ragged


class WindowReader:
    """Reads texts in windows, some thousand rows at a time; :meth:`file` gives all of them."""

    def __init__(self, tokenizer: Tokenizer, text_number: int, has_null: bool = True):
        self.tokenizer = tokenizer
        self.text_number = text_number  # 1 where a question goes before the text
        self.encoded: list[Encoded] = []  # of each chunk
        self.contexts: list[str] = []  # of each row
        self.tokens: list[tuple[int, int]] = []  # of the first answer in each window
        self.offsets: list[np.ndarray] = []  # of each window's tokens
        self.shared: dict[str, str] = {}  # a text that many questions are about is held once
        self.has_null = has_null  # whether a token before the text can say that there is no answer

    def read(self, table: Table, chunk: Sequence[Text], answers: np.ndarray) -> None:
        """Read the texts of a chunk. ``answers`` int64 [N, A, 2] are those of the whole table."""
        sequences = []  # the ids of each window
        seconds = []  # where its second text begins
        counts = []  # how many windows each text has
        long = LongTexts(self.rule, self.tokenizer.max_length)
        encodings = self.tokenizer.uncut.encode_batch(list(chunk))
        for text, encoding in zip(chunk, encodings, strict=True):
            row = len(self.contexts)
            context = text if isinstance(text, str) else text[1]
            self.contexts.append(self.shared.setdefault(context, context))
            # The first answer is trained on; the others have to be in the text, too.
            spans = [self.token_span(table, row, encoding, span) for span in answers[row].tolist()]
            pieces = self.pieces(table, row, encoding)
            ids = np.array(encoding.ids, np.int32)
            types = np.array(encoding.type_ids, np.int32)  # 0 of the question, 1 of the text
            offsets = self.offsets_of(encoding)
            for places in pieces:
                sequences.append(ids[places])
                seconds.append(len(places) - int(types[places].sum()))
                self.offsets.append(offsets[places])
                self.tokens.append(tokens_in(places, spans[0]))
            counts.append(len(pieces))
            if len(ids) > self.tokenizer.max_length:
                long += self.count(len(ids), pieces)
            # NULL is the first token of a window, so it must not be one of a text.
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
    return tokenizer if tokenizer.stride is not None else tokenizer.replaced(stride=STRIDE)


def tokens_in(places: np.ndarray, span: tuple[int, int]) -> tuple[int, int]:
    """The first and the last token of a span in a window, which has the tokens at ``places``;
    NOWHERE where it has not both.
    """
    first, last = np.searchsorted(places, span).tolist()
    if last >= len(places) or (places[first], places[last]) != span:
        return NOWHERE, NOWHERE
    return first, last


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

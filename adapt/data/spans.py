"""Answers in texts that are read in overlapping windows: which row each window of a file is of, and
where in it the answer is.

A row is a text, with or without a question; a window is one sequence of tokens, with the question
and a piece of the text. A split draws rows, and weights are of rows; the model reads windows, each
an example of its own. The labels of rows are :class:`SpanRows`, those of windows
:class:`SpanWindows`; both refer to the :class:`SpanFile` that all examples of a file share.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.data.text_windows import TextWindows
from adapt.ragged import Ragged

STRIDE = 128  # tokens from one window to the next, as in Devlin et al.'s run_squad
NO_ANSWER = -1  # in place of characters: the question has no answer
UNKNOWN = -2  # in place of characters: nobody says the answer, in prediction
NOWHERE = -1  # in place of tokens: the answer is not in this window
NULL = 0  # the token of no answer: the first of every window, [CLS]


def window_starts(count: int, room: int, stride: int) -> range:
    """Where the windows of ``room`` tokens begin that hold ``count`` tokens, ``stride`` apart.

    They overlap by half a window at least, so that an answer of up to half a window lies whole in
    one of them. Every token is in a window, and only the last window is shorter than the others.

        list(window_starts(10, room=6, stride=3))      # [0, 3, 6]: tokens 0-5, 3-8, 6-9
    """
    step = max(min(stride, room // 2), 1)
    after_first = max(count - room, 0)
    return range(0, after_first + step, step)


@dataclasses.dataclass(frozen=True)
class SpanFile:
    """The N rows of a file and the W windows of their texts; what all examples of the file share."""

    contexts: Sequence[str]  # the text of each row
    # int64 [N, A, 2]: the characters of each answer, the end exclusive; a row with fewer answers
    # has its first one again
    answers: np.ndarray
    windows: TextWindows  # how many each row has
    # int32 [tokens, 2] by window: the characters of each token, -1 for one not of the text
    offsets: Ragged
    tokens: np.ndarray  # int32 [W, 2]: the first and the last token of the first answer
    has_null: bool  # whether the first token is no token of a text, and sees it: [CLS]
    is_cut: bool  # whether texts were cut and the rest of them is read by nobody

    @functools.cached_property
    def row_of(self) -> np.ndarray:
        """The row of each window, int64 [W]."""
        return np.repeat(np.arange(len(self.contexts)), self.windows.counts)

    @functools.cached_property
    def is_unanswerable(self) -> np.ndarray:
        """Which questions have no answer, bool [N]."""
        return self.answers[:, 0, 0] == NO_ANSWER

    @functools.cached_property
    def has_unanswerable(self) -> bool:
        """Whether it is a file as SQuAD 2.0 is, where a question may have no answer."""
        return bool(self.is_unanswerable.any())

    @functools.cached_property
    def is_found(self) -> np.ndarray:
        """Whether the first answer of a row is whole in one of its windows, bool [N]."""
        found = np.zeros(len(self.contexts), bool)
        found[self.row_of[self.tokens[:, 0] >= 0]] = True
        return found

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """What each window is to say, int32 [W, 2]: the first and the last token, or -1: nothing.

        As in Devlin et al.'s run_squad, a window says NULL where its question has no answer, or has
        it elsewhere in the text. Where every question of the file has an answer, a window without
        it says nothing (run_squad's comment says so, its code trains such windows on NULL), and
        neither do those of an answer that is whole in none.
        """
        is_null = self.is_unanswerable
        if self.has_unanswerable:
            is_null = is_null | self.is_found
        is_null = is_null[self.row_of] & (self.tokens[:, 0] < 0) & self.has_null
        return np.where(is_null[:, None], NULL, self.tokens).astype(np.int32)

    def gold(self, row: int) -> list[str]:
        """The texts of all answers of a row; [] for none."""
        context = self.contexts[row]
        return [context[start:end] for start, end in self.answers[row].tolist() if start >= 0]


@dataclasses.dataclass(frozen=True)
class SpanRows:
    """The labels of some rows of a file."""

    file: SpanFile
    rows: np.ndarray  # int64 [n]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: np.ndarray) -> "SpanRows":
        return SpanRows(self.file, self.rows[index])

    @property
    def content(self) -> dict[str, np.ndarray]:
        """What a digest is made of."""
        return {"characters": self.file.answers[self.rows]}

    @property
    def is_unanswerable(self) -> np.ndarray:
        """Which of the questions have no answer, bool [n]."""
        return self.file.is_unanswerable[self.rows]

    def by_window(self) -> "SpanWindows":
        """The labels of all windows of these rows, those of a row one after the other."""
        return SpanWindows(self.file, self.file.windows.sequences(self.rows))


@dataclasses.dataclass(frozen=True)
class SpanWindows:
    """The labels of some windows of a file: as an array those of a loss, int32 [n, 2]."""

    file: SpanFile
    windows: np.ndarray  # int64 [n]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: Any) -> "SpanWindows":
        return SpanWindows(self.file, self.windows[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.file.targets[self.windows].astype(dtype or np.int32)

    @property
    def content(self) -> dict[str, np.ndarray]:
        """What a digest is made of."""
        characters = self.file.answers[self.file.row_of[self.windows]]
        return {"characters": characters, "tokens": np.asarray(self)}

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """The rows that these are windows of, int64 [Q], in the file's order."""
        return np.unique(self.file.row_of[self.windows])

    @functools.cached_property
    def questions(self) -> np.ndarray:
        """For each window, which of :attr:`rows` it is of, int64 [n]."""
        return np.searchsorted(self.rows, self.file.row_of[self.windows])

    def in_text(self, length: int) -> np.ndarray:
        """Which tokens are of the text, and not of the question or special: bool [n, length]."""
        offsets = self.file.offsets
        lengths = offsets.lengths[self.windows]
        is_own = np.arange(length) < lengths[:, None]
        mask = np.zeros((len(self), length), bool)
        mask[is_own] = offsets.values[offsets.flat_indices(self.windows), 0] >= 0
        return mask

    def text(self, number: int, first: int, last: int) -> tuple[int, int, str]:
        """(start, end, text) of tokens of the window ``number``, in characters of the row's text."""
        window = int(self.windows[number])
        offsets = self.file.offsets[window]
        start = int(offsets[first, 0])
        end = int(offsets[last, 1])
        # Byte-level tokens begin with their space.
        text = self.file.contexts[int(self.file.row_of[window])][start:end].lstrip()
        return end - len(text), end, text

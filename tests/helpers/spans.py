"""Labels and outputs of spans by hand: a word is a token, and [CLS] is the first of every window."""

import re
from collections.abc import Sequence

import numpy as np

from adapt.data.spans import NO_ANSWER, NOWHERE, SpanFile, SpanRows, SpanWindows, window_starts
from adapt.data.text_windows import TextWindows
from adapt.ragged import Ragged

CLS = (-1, -1)


def labels(
    rows: Sequence[tuple[str, Sequence[str]]],
    room: int = 100,
    stride: int = 100,
    is_cut: bool = False,
) -> SpanWindows:
    """The windows of texts with their answers, the words of which stand in them; [] for none.

    A window has ``room`` words; with ``is_cut`` there is one of each text.
    """
    most = max(max(len(answers) for _, answers in rows), 1)
    answers = np.full((len(rows), most, 2), NO_ANSWER)
    offsets, counts, tokens = [], [], []
    for row, (text, golds) in enumerate(rows):
        words = [match.span() for match in re.finditer(r"\S+", text)]
        spans = [(text.index(gold), text.index(gold) + len(gold)) for gold in golds]
        for number in range(most if spans else 0):
            answers[row, number] = spans[number if number < len(spans) else 0]
        starts = [0] if is_cut else window_starts(len(words), room, stride)
        counts.append(len(starts))
        for start in starts:
            piece = words[start : start + room]
            offsets.append(np.array([CLS, *piece], np.int32))
            tokens.append(place_of(piece, spans))
    lengths = np.array([len(one) for one in offsets])
    file = SpanFile(
        contexts=[text for text, _ in rows],
        answers=answers,
        windows=TextWindows(np.array(counts)),
        offsets=Ragged(np.concatenate(offsets), np.cumsum(lengths) - lengths, lengths),
        tokens=np.array(tokens, np.int32),
        has_null=True,
        is_cut=is_cut,
    )
    return SpanRows(file, np.arange(len(rows))).by_window()


def place_of(words: list[tuple[int, int]], spans: list[tuple[int, int]]) -> tuple[int, int]:
    """The first and the last token of the first of ``spans`` in a window."""
    first = [start for start, _ in words]
    last = [end for _, end in words]
    if not spans or spans[0][0] not in first or spans[0][1] not in last:
        return NOWHERE, NOWHERE
    return first.index(spans[0][0]) + 1, last.index(spans[0][1]) + 1


def outputs(
    places: Sequence[tuple[int, int]], length: int = 12, scores: Sequence[float] = ()
) -> np.ndarray:
    """Logits that say one span of tokens in each window, float32 [windows, 2, length].

    ``scores`` are theirs, by default 9 each; all other tokens have -9, and so [CLS].
    """
    logits = np.full((len(places), 2, length), -9.0, np.float32)
    for window, (start, end) in enumerate(places):
        score = scores[window] if scores else 9
        logits[window, 0, start] = logits[window, 1, end] = score
    return logits

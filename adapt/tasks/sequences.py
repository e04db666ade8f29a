"""Rows of text as examples of a task: one text, a pair, words with tags, a span in a text, choices, a contrast.

The columns are the text's and those that ``--text-pair-column`` names. Labels are as :mod:`adapt.tasks.targets`
encodes them, and become places of tokens here where the task wants places.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adapt import features
from adapt.data import examples, tables
from adapt.errors import DataError
from adapt.pretrained import hub
from adapt.pretrained.tokenizer import Text, Tokenizer, gather
from adapt.ragged import Ragged
from adapt.tasks.targets import listed

CHUNK = 4096  # rows that are tokenized together
PAIRS = 20  # pairs of one class, and as many of two, that a labelled text begins (Tunstall et al. 2022, R)


def make(
    pretrained: hub.Pretrained, table: tables.Table, columns: Sequence[str], task: str, labels: Any
) -> tuple[examples.Examples, int]:
    """The rows as examples, and how many labels (words, spans) lie in what was truncated: they count nowhere.

    Raises :class:`DataError` for a row without text.
    """
    if task == "tags":
        return with_tags(pretrained, table, columns[0], labels)
    for column in columns:
        tables.check_texts(table, column)
    if task == "span":
        return with_spans(pretrained, table, columns, labels)
    return examples.texts(pretrained, chunks(table, columns, task), labels), 0


def chunks(table: tables.Table, columns: Sequence[str], task: str) -> Iterator[list[Text]]:
    """The sequences of every row, one after the other: as many as the task takes of a row."""
    for chunk in tables.chunks(table, columns, CHUNK):
        texts = [chunk[column] for column in columns]
        if task == "choice":
            yield [
                (first, other) for first, *others in zip(*texts, strict=True) for other in others
            ]
        elif task == "contrastive":
            yield list(itertools.chain.from_iterable(zip(*texts, strict=True)))
        elif task == "span":
            yield (
                list(zip(*texts[::-1], strict=True)) if len(texts) == 2 else texts[0]
            )  # the question goes first
        else:
            yield list(zip(*texts, strict=True)) if len(texts) == 2 else texts[0]


def with_tags(
    pretrained: hub.Pretrained, table: tables.Table, column: str, labels: Ragged
) -> tuple[examples.Examples, int]:
    """Words with a label each (Ragged int32) -> examples whose labels are (place, class) of every word that has a token."""
    tokenizer = features.tokenizer_of(pretrained)
    parts = []
    found = []
    row = 0
    for chunk in word_chunks(table, column):
        for index, words in enumerate(chunk):
            if len(words) != labels.lengths[row + index]:
                raise DataError(
                    f"{table.where}: row {row + index + 1} has {len(words)} words and {labels.lengths[row + index]} labels"
                )
        tokens, cut, word = tokenized_words(tokenizer, chunk)
        at = np.flatnonzero(word >= 0)
        owner = np.repeat(np.arange(len(chunk)), tokens.lengths)[at]
        _, firsts = np.unique(owner * (word.max(initial=0) + 1) + word[at], return_index=True)
        at = at[firsts]
        owner = owner[firsts]
        kinds = labels.values[labels.starts[row + owner] + word[at]]
        parts.append((tokens, cut))
        found.append(
            (
                np.bincount(owner, minlength=len(chunk)),
                np.stack([at - tokens.starts[owner], kinds], 1),
            )
        )
        row += len(chunk)
    lengths, places = (np.concatenate(each) for each in zip(*found, strict=True))
    placed = Ragged(places.astype(np.int32), np.cumsum(lengths) - lengths, lengths)
    return examples.tokenized(pretrained, parts, placed), int(labels.lengths.sum() - lengths.sum())


def tokenized_words(
    tokenizer: Tokenizer, sentences: list[list[str]]
) -> tuple[Ragged, int, np.ndarray]:
    """(token ids, how many sentences were truncated, the word from 0 that each token is of, or -1: int64 [total]).

    Words but the first get a space before them, which tells byte-level tokenizers that they begin one.
    """
    spaced = [
        [f" {word}" if place else word for place, word in enumerate(words)] for words in sentences
    ]
    encodings = tokenizer.backend.encode_batch(spaced, is_pretokenized=True)
    of_token = [
        -1 if word is None else word for encoding in encodings for word in encoding.word_ids
    ]
    return *gather(encodings), np.array(of_token, np.int64)


def word_chunks(table: tables.Table, column: str) -> Iterator[list[list[str]]]:
    """Each row's words. Raises :class:`DataError` for a row without any."""
    row = 0
    for chunk in tables.chunks(table, [column], CHUNK):
        made = [listed(value) for value in chunk[column]]
        for words in made:
            row += 1
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise DataError(
                    f"{table.where}: row {row} has no words in column '{column}', or one that is no text"
                )
        yield made


def with_spans(
    pretrained: hub.Pretrained, table: tables.Table, columns: Sequence[str], labels: np.ndarray
) -> tuple[examples.Examples, int]:
    """Characters from and to (labels int [N, 2], the end exclusive) -> the first and the last token, -1 where cut off."""
    parts = []
    places = []
    for texts, encodings in located(pretrained, table, columns):
        for text, encoding in zip(texts, encodings, strict=True):
            start, end = labels[len(places)].tolist()
            if end > len(text) or not (chosen := text[start:end]).strip():
                raise DataError(
                    f"{table.where}: row {len(places) + 1}: the span {start} to {end} is empty or goes beyond "
                    f"the {len(text)} characters of its text"
                )
            start = start + len(chosen) - len(chosen.lstrip())
            end = end - len(chosen) + len(chosen.rstrip())
            found = [encoding.char_to_token(at, len(columns) - 1) for at in (start, end - 1)]
            places.append([-1, -1] if None in found else found)
        parts.append(gather(encodings))
    spans = np.array(places, np.int32)
    return examples.tokenized(pretrained, parts, spans), int((spans[:, 0] < 0).sum())


def located(
    pretrained: hub.Pretrained, table: tables.Table, columns: Sequence[str]
) -> Iterator[tuple[list[str], list[Any]]]:
    """(the texts that spans lie in, their encodings), a chunk at a time: the question goes first, the text is truncated."""
    tokenizer = features.tokenizer_of(pretrained)
    row = 0
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.enable_truncation(
        tokenizer.max_length, strategy="only_second" if len(columns) == 2 else "longest_first"
    )
    for chunk in chunks(table, columns, "span"):
        try:
            encodings = backend.encode_batch(chunk)
        except Exception:  # the library raises no other
            raise DataError(
                f"{table.where}: rows {row + 1} to {row + len(chunk)}: a question in column '{columns[1]}' leaves no room "
                f"for its text in the {tokenizer.max_length} tokens of an example"
            ) from None
        row += len(chunk)
        yield [text if isinstance(text, str) else text[-1] for text in chunk], encodings


def in_pairs(part: examples.Examples, seed: int) -> examples.Examples:
    """Labelled texts as :func:`class_pairs` of them."""
    pairs, same = class_pairs(part.labels, seed)
    return dataclasses.replace(part, rows=part.rows[pairs], labels=same)


def class_pairs(labels: np.ndarray, seed: int, each: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """SetFit's pairs of labelled texts: (rows int [M, 2], 1 for the same class and 0 for another, int32 [M]).

    Every text begins ``each`` pairs of either kind, with partners drawn at random; the only one of its class, none of its
    own.
    """
    random = np.random.RandomState(seed)
    rows = []
    same = []
    for row, label in enumerate(labels):
        for equal in (1, 0):
            others = np.flatnonzero((labels == label) == equal)
            others = others[others != row]
            if len(others):
                rows += [[row, other] for other in random.choice(others, each)]
                same += [equal] * each
    return np.array(rows).reshape(-1, 2), np.array(same, np.int32)

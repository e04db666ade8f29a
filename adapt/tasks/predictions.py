"""Outputs of a head as rows of a CSV file: what ``predict`` writes for each task."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from adapt.data import tables
from adapt.data.examples import Examples
from adapt.errors import CheckpointError
from adapt.pretrained import hub
from adapt.ragged import ragged
from adapt.tasks import registry, sequences

Rows = Iterator[list[Any]]
TOGETHER = (
    "classification",
    "multilabel",
    "regression",
)  # tasks whose outputs are [N, classes], side by side


def check(run: hub.Pretrained) -> None:
    """Raise :class:`CheckpointError` for a run that predicts nothing."""
    if run.task not in registry.TASKS:
        raise CheckpointError(
            f"{run.source} is a pre-training run ({run.task or 'no task'}): predict takes what finetune wrote"
        )
    if registry.TASKS[run.task].classes == 0:
        raise CheckpointError(
            f"{run.source} was trained for embeddings ({run.task}), which extract computes: use that"
        )


def no_labels(table: tables.Table, columns: Sequence[str], task: str) -> Any:
    """In the place of labels; of words, their numbers, so that it is known which one an output is of."""
    if task == "tags":
        return ragged(
            [
                np.arange(len(words))
                for chunk in sequences.word_chunks(table, columns[0])
                for words in chunk
            ]
        )
    return np.tile([0, 1], (len(table), 1)) if task == "span" else np.zeros(len(table), np.int32)


def header(run: hub.Pretrained, columns: Sequence[str]) -> list[str]:
    if run.task == "span":
        return ["start", "end", "text"]
    if run.task in ("tags", "regression"):
        return ["prediction"]
    if run.task == "multitask":
        return [
            *(f"prediction:{name}" for name, _ in by_column(run)),
            *(f"probability:{name}" for name in run.labels),
        ]
    names = map(str, range(len(columns) - 1)) if run.task == "choice" else run.labels
    return ["prediction", *(f"probability:{name}" for name in names)]


def rows(
    run: hub.Pretrained,
    outputs: np.ndarray,
    part: Examples,
    table: tables.Table,
    columns: Sequence[str],
) -> Rows:
    """A row a row of the table."""
    if run.task == "regression":
        return ([repr(float(value))] for value in outputs[:, 0])
    if run.task == "tags":
        return tag_rows(run, outputs, part, table, columns)
    if run.task == "span":
        return span_rows(run, outputs, table, columns)
    if run.task == "multitask":
        return column_rows(run, outputs)
    if run.task == "multilabel":
        return several_rows(run, registry.sigmoid(outputs))
    p = registry.softmax(outputs.reshape(len(table), -1))
    names = range(p.shape[1]) if run.task == "choice" else run.labels
    return ([names[int(values.argmax())], *numbers(values)] for values in p)


def numbers(values: np.ndarray) -> list[str]:
    return [repr(float(value)) for value in values]


def several_rows(run: hub.Pretrained, p: np.ndarray) -> Rows:
    """Names joined by ``;``, or a JSON list where a label has one in its name."""
    for values in p:
        chosen = [name for name, value in zip(run.labels, values, strict=True) if value > 0.5]
        joined = json.dumps(chosen) if any(";" in name for name in run.labels) else ";".join(chosen)
        yield [joined, *numbers(values)]


def by_column(run: hub.Pretrained) -> list[tuple[str, list[str]]]:
    """(label column, its classes) of a run on several."""
    split = [name.partition("=")[::2] for name in run.labels]
    return [
        (column, [name for _, name in pairs])
        for column, pairs in groupby(split, lambda pair: pair[0])
    ]


def column_rows(run: hub.Pretrained, logits: np.ndarray) -> Rows:
    for values in registry.softmax(logits):
        own = [
            (names, p[: len(names)]) for (_, names), p in zip(by_column(run), values, strict=True)
        ]
        yield [
            *(names[int(p.argmax())] for names, p in own),
            *(each for _, p in own for each in numbers(p)),
        ]


def tag_rows(
    run: hub.Pretrained,
    logits: np.ndarray,
    part: Examples,
    table: tables.Table,
    columns: Sequence[str],
) -> Rows:
    """A JSON list with a tag for each word; null for words of which no token is left."""
    ends = np.cumsum(part.labels.lengths)
    row = 0
    tags = logits.argmax(-1)
    numbers = part.truth
    for chunk in sequences.word_chunks(table, columns[0]):
        for words in chunk:
            found: list[str | None] = [None] * len(words)
            for at in range(ends[row] - part.labels.lengths[row], ends[row]):
                found[numbers[at]] = run.labels[tags[at]]
            row += 1
            yield [json.dumps(found, ensure_ascii=False)]


def span_rows(
    run: hub.Pretrained, logits: np.ndarray, table: tables.Table, columns: Sequence[str]
) -> Rows:
    """Characters from and to (the end exclusive) and the text there; nothing where the tokens found are not the text's."""
    best = iter(registry.best_spans(logits).tolist())
    for texts, encodings in sequences.located(run, table, columns):
        for text, encoding in zip(texts, encodings, strict=True):
            tokens = next(best)
            if any(encoding.token_to_sequence(token) != len(columns) - 1 for token in tokens):
                yield ["", "", ""]
                continue
            (start, _), (_, end) = (encoding.token_to_chars(token) for token in tokens)
            start += len(text[start:end]) - len(
                text[start:end].lstrip()
            )  # byte-level tokens begin with their space
            yield [start, end, text[start:end]]

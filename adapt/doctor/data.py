"""Checks on data: rows that leak or contradict each other, texts the encoder can't read, classes."""

from collections.abc import Iterator, Mapping

import numpy as np

from adapt.data.examples import Examples
from adapt.data.labels import is_class_numbers
from adapt.data.sources import TokenSource
from adapt.data.spans import SpanWindows
from adapt.doctor.cases import FEW, DataCase
from adapt.doctor.findings import Finding

SHOWN = 5  # rows of the evidence
# Rows that a short text repeats by chance ("ok") are few; the bundled sets have less than these.
HELD_OUT_SHARE = 0.05
CONTRADICTORY_SHARE = 0.02
SAME_SHARE = 0.3
UNKNOWN_SHARE = 0.1  # of all tokens
TRUNCATED_SHARE = 0.25  # of all tokens; news of 500 tokens and more lose 15% in 512
LOST_SHARE = 0.02  # of the answers
# Rows of a class that a set would have by the shares of training: to have none of ten by chance has
# a probability of 5e-5.
EXPECTED = 10.0
MAJORITY = 0.9  # the share of a class beyond which accuracy says little


def repeated_rows(case: DataCase) -> Iterator[Finding]:
    """Rows of another part whose inputs are in the training data, whatever their labels."""
    for name, count in case.data.repeated.items():
        size = len(case.data.sets[name])
        if not count:
            continue
        yield Finding(
            severity="error" if count > HELD_OUT_SHARE * size else "warning",
            seen=f"{count:,} of {size:,} {name} rows are in the training data, too",
            cause="the sets were split before copies were taken out, or overlap",
            fix="take these rows out of one of the two sets",
            evidence={"set": name, "rows": count, "of": size},
            is_logged=True,
        )


def held_out_rows_in_training(case: DataCase) -> Iterator[Finding]:
    """Copies in the training file, of which some were held out: their score says nothing."""
    if not case.is_held_out:
        return
    train = fingerprints(case.data.sets["train"])
    held_out = fingerprints(case.data.sets["validation"])
    if train is None or held_out is None or len(held_out) < FEW:
        return
    count = int(np.isin(held_out, train).sum())
    share = count / len(held_out)
    if share <= HELD_OUT_SHARE:
        return
    yield Finding(
        severity="warning",
        seen=f"{count:,} of {len(held_out):,} rows that were held out for validation have a copy "
        "among those that train",
        cause="the training file has rows several times",
        fix="take copies out of the file, or give `validation` data of their own",
        evidence={"rows": count, "of": len(held_out), "share": share},
    )


def contradictory_labels(case: DataCase) -> Iterator[Finding]:
    """Training rows of the same input with different labels: no model can have both right."""
    train = case.data.sets["train"]
    keys = fingerprints(train)
    labels = classes_of(case, train)
    if keys is None or labels is None:
        return
    _, group = np.unique(keys, return_inverse=True)
    low = np.full(group.max(initial=0) + 1, labels.max(initial=0))
    high = np.zeros_like(low)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    rows = np.flatnonzero((low != high)[group])
    share = len(rows) / max(len(keys), 1)
    if share <= CONTRADICTORY_SHARE or len(keys) < FEW:
        return
    yield Finding(
        severity="warning",
        seen=f"{len(rows):,} of {len(keys):,} training rows have the same input as another row, and "
        "another label",
        cause="labels were shuffled or are noise, or another column belongs to the input",
        fix="look at these rows, or name the second column as `text_pair_column`",
        certainty="possible",
        evidence={"rows": len(rows), "share": share, "first": first_rows(train, rows)},
    )


def same_inputs(case: DataCase) -> Iterator[Finding]:
    """A large share of training rows with one and the same input."""
    train = case.data.sets["train"]
    keys = fingerprints(train)
    if keys is None or len(keys) < FEW:
        return
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    most = int(counts.max())
    share = most / len(keys)
    if share <= SAME_SHARE:
        return
    rows = np.flatnonzero(keys == keys[first[counts.argmax()]])
    yield Finding(
        severity="error",
        seen=f"{most:,} of {len(keys):,} training rows have the same input",
        cause="the text column is another one, or what tells rows apart is truncated or unknown to "
        "the tokenizer",
        fix="look at what `text_column` names, and at a row's tokens",
        certainty="likely",
        evidence={"rows": most, "share": share, "first": first_rows(train, rows)},
    )


def first_rows(examples: Examples, index: np.ndarray) -> list[int]:
    """The rows of the file, counted from 1, that the first of some examples are."""
    return (examples.rows[index[:SHOWN]] + 1).tolist()


def unknown_tokens(case: DataCase) -> Iterator[Finding]:
    """A large share of tokens that the vocabulary does not have."""
    tokenizer = case.pretrained.tokenizer
    if tokenizer is None or tokenizer.unknown.unknown is None:
        return
    number, spelling = tokenizer.unknown.unknown
    for name, examples in distinct_files(case.data.sets).items():
        source = examples.file_sequences
        if not isinstance(source, TokenSource) or not len(source.tokens.values):
            continue
        own = len(source.tokens.values) - tokenizer.unknown.num_special * len(source.tokens)
        count = int((source.tokens.values == number).sum())
        share = count / max(own, 1)
        if share > UNKNOWN_SHARE:
            yield Finding(
                severity="warning",
                seen=f"{name}: {share:.0%} of the tokens are {spelling}",
                cause="the vocabulary is of another language, script or domain, or the tokenizer's "
                "settings are another model's",
                fix="take a checkpoint whose vocabulary has these texts",
                certainty="likely",
                evidence={"set": name, "tokens": own, "unknown": count},
                is_logged=tokenizer.unknown.mostly_unknown > 0,
            )


def truncated_texts(case: DataCase) -> Iterator[Finding]:
    """A large share of tokens that the encoder does not read, as their texts are too long."""
    for name, examples in distinct_files(case.data.sets).items():
        long = examples.long
        source = examples.file_sequences
        if not isinstance(source, TokenSource):
            continue
        total = len(examples)
        if name == "train" and case.is_held_out:  # what was too long is counted for the whole file
            total += len(case.data.sets["validation"])
        share = long.tokens_left_out / max(long.tokens_left_out + len(source.tokens.values), 1)
        if share <= TRUNCATED_SHARE or total < FEW:
            continue
        yield Finding(
            severity="note",
            seen=f"{name}: {long.truncated:,} of {total:,} texts are longer than "
            f"{long.max_length} tokens, and {share:.0%} of all tokens are left out",
            cause="the texts are longer than `max_length`, or than what the checkpoint reads",
            fix="give a larger `max_length` where the checkpoint has the positions, or `long` "
            "head+tail or windows",
            evidence={
                "set": name,
                "texts": long.truncated,
                "of": total,
                "tokens": long.tokens_left_out,
                "share": share,
            },
            is_logged=True,
        )


def answers_cut_off(case: DataCase) -> Iterator[Finding]:
    """Answers that no example holds whole: they lie in what was cut off, or are too long."""
    for name, examples in distinct_files(case.data.sets).items():
        if not isinstance(examples.labels, SpanWindows):
            continue
        file = examples.labels.file
        has_answer = ~file.is_unanswerable
        lost = np.flatnonzero(has_answer & ~file.is_found)
        total = int(has_answer.sum())
        share = len(lost) / max(total, 1)
        if share <= LOST_SHARE:
            continue
        where = "are in what is cut off" if file.is_cut else "are whole in no window"
        yield Finding(
            severity="warning",
            seen=f"{name}: {len(lost):,} of {total:,} answers {where}, with {examples.max_length} "
            "tokens an example",
            cause="`stride` 0, which cuts texts, or `max_length`",
            fix="leave `stride` out, or give a larger `max_length` where the checkpoint has the "
            "positions",
            evidence={
                "set": name,
                "answers": len(lost),
                "of": total,
                "first": (lost[:SHOWN] + 1).tolist(),
            },
            is_logged=True,
        )


def distinct_files(sets: Mapping[str, Examples]) -> dict[str, Examples]:
    """The sets that are of a file of their own: without rows that were held out of another's."""
    distinct: dict[str, Examples] = {}
    for name, examples in sets.items():
        source = examples.file_sequences
        if all(source is not other.file_sequences for other in distinct.values()):
            distinct[name] = examples
    return distinct


def imbalance(case: DataCase) -> Iterator[Finding]:
    """A class so frequent that accuracy is high without a look at any input."""
    counts = case.data.class_counts
    total = sum(counts.values())
    if case.data.task.label_kind != "classes" or case.data.primary_metric != "accuracy":
        return
    if total < FEW:
        return
    name = max(counts, key=lambda one: counts[one])
    share = counts[name] / total
    if share <= MAJORITY:
        return
    yield Finding(
        severity="warning",
        seen=f"{share:.0%} of the training rows are '{name}', and accuracy decides",
        cause="classes too uneven for accuracy: answering this class to everything is right as often",
        fix="give `score` macro_f1, perhaps with `class_weights` balanced",
        evidence={"class": name, "share": share, "rows": total},
    )


def absent_classes(case: DataCase) -> Iterator[Finding]:
    """A validation or test set that has one class, where training has several."""
    names = case.data.names
    for name, examples in case.data.sets.items():
        labels = classes_of(case, examples)
        if name == "train" or len(examples) < FEW or labels is None:
            continue
        present = np.unique(labels)
        if len(present) > 1 or len(names) < 2:
            continue
        only = names[int(present[0])]
        yield Finding(
            severity="error",
            seen=f"all {len(examples):,} {name} rows are '{only}'",
            cause="the file is sorted by class and was cut, or the labels are of another column",
            fix="draw the rows at random, with some of every class",
            certainty="likely",
            evidence={"set": name, "class": only, "rows": len(examples)},
        )


def constant_values(case: DataCase) -> Iterator[Finding]:
    """A set in which every row has one and the same value to predict."""
    if case.data.task.label_kind != "values":
        return
    for name, examples in case.data.sets.items():
        values = np.asarray(examples.targets, np.float64)
        if len(values) < FEW or np.ptp(values) > 0:
            continue
        yield Finding(
            severity="error",
            seen=f"all {len(values):,} {name} rows have the value {values[0]:g}",
            cause="the labels are of another column, or the file was cut",
            fix="look at what `label_column` names",
            evidence={"set": name, "value": float(values[0]), "rows": len(values)},
        )


def missing_classes(case: DataCase) -> Iterator[Finding]:
    """A validation or test set without rows of a class that training has many of."""
    train = classes_of(case, case.data.sets["train"])
    if train is None:
        return
    names = case.data.names
    shares = np.bincount(train, minlength=len(names)) / len(train)
    for name, examples in case.data.sets.items():
        labels = classes_of(case, examples)
        if name == "train" or labels is None or len(np.unique(labels)) < 2:
            continue
        expected = shares * len(labels)
        counts = np.bincount(labels, minlength=len(shares))
        is_missing = (counts == 0) & (expected >= EXPECTED)
        missing = np.flatnonzero(is_missing).tolist()
        if not missing:
            continue
        shown = ", ".join(f"'{names[number]}'" for number in missing[:SHOWN])
        yield Finding(
            severity="warning",
            seen=f"{name}: no row is {shown}, where {expected[is_missing].sum():.0f} of {len(labels):,} "
            "would be by the shares of training",
            cause="the set was drawn from other rows, or cut from a file that is sorted by class",
            fix="draw the rows at random; until then its scores say nothing of these classes",
            certainty="likely",
            evidence={
                "set": name,
                "classes": [names[number] for number in missing],
                "expected": float(expected[is_missing].sum()),
            },
        )


def classes_of(case: DataCase, examples: Examples) -> np.ndarray | None:
    """The class of each example, int [N]; None where they have none, or several."""
    # A class that a word says is the label of its token, and the target of its example.
    has_classes = case.data.task.label_kind == "classes"
    labels = examples.targets if has_classes else examples.labels
    return labels if is_class_numbers(labels) else None


def fingerprints(examples: Examples) -> np.ndarray | None:
    """A number for the tokens of each example, uint64 [N]: equal for equal tokens, and else all but
    never. None for pictures, and for examples of several sequences.
    """
    source = examples.file_sequences
    if (
        not isinstance(source, TokenSource)
        or examples.rows.ndim > 1
        or examples.windows is not None
    ):
        return None
    tokens = source.tokens.take(examples.rows)
    order = np.arange(len(tokens))
    values = source.tokens.values[tokens.flat_indices(order)].astype(np.uint64)
    ends = np.cumsum(tokens.lengths)
    positions = np.arange(len(values)) - np.repeat(ends - tokens.lengths, tokens.lengths)
    factors = np.random.default_rng(0).integers(2**63, size=max(source.max_length, 1) + 1)
    factors = factors.astype(np.uint64) | np.uint64(1)
    mixed = (values + np.uint64(1)) * factors[np.minimum(positions, len(factors) - 1)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    keys = sums[ends] - sums[ends - tokens.lengths]
    if tokens.second_start is not None:
        keys += tokens.second_start.astype(np.uint64) * factors[-1]
    return keys

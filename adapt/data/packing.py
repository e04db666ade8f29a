"""Packing: examples of any length in rows of one static shape, so that a step compiles once and pads almost nothing.

R rows of C tokens hold N examples. ``segments`` [R, C] says which example owns a token (N: nobody), ``positions`` [R, C]
restart at each example, ``first`` and ``length`` [N] say where in R*C each example lies. One example a row is the
special case. Everything here is NumPy on the host.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from adapt.parallel.sharding import Layout
from adapt.ragged import Ragged, concat_ranges

Arrays = dict[str, np.ndarray]
BATCH = 256  # examples that are packed with more care, since they are few
IMAGES_PER_BATCH = 32  # of an evaluation
POOLED_PER_BATCH = 1024  # vectors, of an evaluation


def pack(
    lengths: np.ndarray, width: int, most: int | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Best-fit decreasing: lengths [N] into rows of ``width`` -> (row [N], start [N], number of rows).

    ``most`` limits the examples a row. Free space is a bit set of capacities, so each example costs one shift.
    Without ``most``, best-fit decreasing needs at most 11/9 of the optimal rows plus 4 (Johnson 1973). Where it needs more
    rows than the tokens alone would, :func:`fill_rows` is tried too. Raises :class:`ValueError` for an example too long.
    """
    if len(lengths) and lengths.max() > width:
        raise ValueError(f"an example of {lengths.max()} tokens does not fit a row of {width}")
    rows = np.zeros(len(lengths), np.int32)
    starts = np.zeros(len(lengths), np.int32)
    by_space: list[list[int]] = [[] for _ in range(width + 1)]
    held: list[int] = []
    spaces = 0  # bit s is set while some row has s tokens free
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        fitting = spaces >> length
        if fitting:
            space = length + ((fitting & -fitting).bit_length() - 1)
            row = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            row = len(held)
            space = width
            held.append(0)
        rows[index], starts[index] = row, width - space
        held[row] += 1
        if space > length and held[row] != most:
            by_space[space - length].append(row)
            spaces |= 1 << (space - length)
    found = rows, starts, len(held)
    if most is None and len(lengths) <= BATCH and len(held) > -(-int(lengths.sum()) // width):
        return min(found, fill_rows(lengths, width), key=lambda each: each[2])
    return found


def fill_rows(lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Row by row: the longest example left, and those of the rest that fill the row best, by subset sums in a bit set.

    The minimum bin slack of Gupta and Ho (1999). Some 0.2 ms for a batch of 32.
    """
    rows = np.zeros(len(lengths), np.int32)
    starts = np.zeros(len(lengths), np.int32)
    left = np.argsort(-lengths, kind="stable").tolist()
    used = 0
    sizes = lengths.tolist()
    fits = (1 << (width + 1)) - 1
    while left:
        reached = [
            1 << sizes[left[0]]
        ]  # bit s: the examples so far can take up s tokens, the longest among them
        for index in left[1:]:
            reached.append((reached[-1] | reached[-1] << sizes[index]) & fits)
        space = reached[-1].bit_length() - 1
        chosen = {left[0]}
        for place in range(len(left) - 1, 0, -1):
            if not reached[place - 1] >> space & 1:
                chosen.add(left[place])
                space -= sizes[left[place]]
        at = 0
        for index in (index for index in left if index in chosen):
            rows[index], starts[index] = used, at
            at += sizes[index]
        left = [index for index in left if index not in chosen]
        used = used + 1
    return rows, starts, used


def assemble(
    tokens: Ragged,
    index: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    shape: tuple[int, int, int],
    pad: int = 0,
) -> Arrays:
    """The arrays of one batch of ``shape`` (R, C, N): examples ``index`` of ``tokens`` at their rows and starts.

    Token ids [total] become ``tokens``, ``positions`` and, of pairs, ``types``; token states [total, D] become
    ``hidden`` [R, C, D].
    """
    count_rows, width, slots = shape
    first = (rows.astype(np.int64) * width + starts).astype(np.int32)
    lengths = tokens.lengths[index].astype(np.int32)
    where, held = concat_ranges(first, lengths), tokens.values[tokens.flat_indices(index)]

    def laid(values: np.ndarray, empty: int = 0) -> np.ndarray:
        out = np.full((count_rows * width, *values.shape[1:]), empty, values.dtype)
        out[where] = values
        return out.reshape(count_rows, width, *values.shape[1:])

    inputs = {"hidden": laid(held)}
    if held.ndim == 1:
        positions = (where - np.repeat(first, lengths)).astype(np.int32)
        inputs = {"tokens": laid(held, pad), "positions": laid(positions)}
        if tokens.second_start is not None:
            inputs["types"] = laid(
                (positions >= np.repeat(tokens.second_start[index], lengths)).astype(np.int32)
            )
    segments = laid(np.repeat(np.arange(len(index), dtype=np.int32), lengths), slots)
    return {
        "segments": segments,
        **inputs,
        "first": pad_to(first, slots),
        "length": pad_to(lengths, slots),
    }


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static shapes of training batches: a row width and at most three budgets of rows, in growing order."""

    width: int
    rows: tuple[int, ...]
    examples: int

    def rows_for(self, needed: int) -> int:
        """The least budget that holds ``needed`` rows. Raises :class:`ValueError` for a batch that was not planned."""
        for rows in self.rows:
            if rows >= needed:
                return rows
        raise ValueError(
            f"a batch needs {needed} rows and the plan has {self.rows}: plan for all epochs that are run"
        )


Part = list[np.ndarray]  # the examples of each micro-batch
Make = Callable[
    [Part, Sequence[int], Plan], list[Arrays]
]  # of a whole step the parts at these places -> inputs of one shape


def plan(lengths: np.ndarray, examples: int, seed: int, epochs: int, parts: int = 1) -> Plan:
    """The budgets that pad least over ``epochs`` epochs: every batch is packed once, some 50 microseconds each.

    ``lengths`` are [N], or [N, K] for examples of K sequences. Deterministic, so a resumed run has the same shapes.
    """
    width = max(-(-int(lengths.max()) // 16) * 16, 64)
    steps = (
        step
        for epoch in range(epochs)
        for step in micro_batches(len(lengths), examples, parts, seed, epoch)
    )
    needed = np.array(
        [max(pack(lengths[part].reshape(-1), width)[2] for part in step) for step in steps]
    )
    values, counts = np.unique(needed, return_counts=True)
    fits = np.cumsum(counts)  # fits[i]: batches that a budget of values[i] holds
    most = values[-1]
    low, middle = np.triu_indices(len(values))
    padded = (
        values[low] * fits[low]
        + values[middle] * (fits[middle] - fits[low])
        + most * (fits[-1] - fits[middle])
    )
    best = padded.argmin()
    return Plan(
        width,
        tuple(sorted({int(values[low[best]]), int(values[middle[best]]), int(most)})),
        examples,
    )


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch: a pure function of seed and epoch, so any step of any run can be found again."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def micro_batches(
    count: int, examples: int, parts: int, seed: int, epoch: int, skip: int = 0
) -> Iterator[list[np.ndarray]]:
    """The examples of every step of an epoch from step ``skip`` on: ``parts`` index arrays of up to ``examples`` each."""
    permutation = order(count, seed, epoch)
    for start in range(skip * examples * parts, count, examples * parts):
        cuts = range(start, start + examples * parts, examples)
        yield [permutation[cut : cut + examples] for cut in cuts]


def batches(
    make: Make,
    labels: np.ndarray | Ragged,
    plan: Plan,
    seed: int,
    epoch: int,
    skip: int = 0,
    parts: int = 1,
    layout: Layout | None = None,
) -> Iterator[Arrays]:
    """The training batches of one epoch from batch ``skip`` on: what ``make`` makes of each step, and its targets.

    For packed tokens that is ``functools.partial(packed, tokens)``. The last batch may have empty slots (weight 0). With
    ``parts`` > 1 each batch is ``parts`` micro-batches of ``plan.examples``, stacked on a leading axis. With a ``layout``
    the next axis is its groups, of ``plan.examples`` each, and this process makes its own.
    """
    groups, own = (layout.groups, layout.local_groups) if layout else (1, (0,))
    for step in micro_batches(len(labels), plan.examples, parts * groups, seed, epoch, skip):
        kept = [place for place in range(len(step)) if place % groups in own]
        made = [
            inputs
            | (
                pad_word_labels(of, inputs)
                if isinstance(of := labels[step[place]], Ragged)
                else pad_labels(of, plan.examples)
            )
            for place, inputs in zip(kept, make(step, kept, plan), strict=True)
        ]
        if layout is None:
            yield made[0] if parts == 1 else stack(made)
        else:
            lead = (parts, len(own)) if parts > 1 else (len(own),)
            yield {
                name: array.reshape(*lead, *array.shape[1:]) for name, array in stack(made).items()
            }


def packed(
    tokens: Ragged, step: Part, kept: Sequence[int], plan: Plan, pad: int = 0
) -> list[Arrays]:
    """The examples of the parts at the places ``kept`` packed, in the one shape that holds every part of ``step``."""
    found = [pack(tokens.lengths[part], plan.width) for part in step]
    shape = (plan.rows_for(max(used for *_, used in found)), plan.width, plan.examples)
    return [assemble(tokens, step[place], *found[place][:2], shape, pad) for place in kept]


def pad_labels(labels: np.ndarray, slots: int) -> Arrays:
    """Labels [n, ...] in ``slots`` places, with weight 1 where there is an example."""
    return {
        "label": pad_to(labels, slots),
        "weight": (np.arange(slots) < len(labels)).astype(np.float32),
    }


def pad_word_labels(labels: Ragged, inputs: Arrays) -> Arrays:
    """The labels of words, int32 [words, 2] of (place in the example, class), for a batch of R*C tokens, all [R*C]:
    ``targets``, where each word's token is in it, ``label``, and ``weight`` 1 where there is a word."""
    values = labels.values[labels.flat_indices(np.arange(len(labels)))]
    size = inputs["segments"].size
    at = np.repeat(inputs["first"][: len(labels)], labels.lengths) + values[:, 0]
    return {"targets": pad_to(at, size)} | pad_labels(values[:, 1], size)


def pad_to(array: np.ndarray, slots: int) -> np.ndarray:
    """[n, ...] -> [slots, ...], with zeros where there is no example."""
    return np.concatenate([array, np.zeros((slots - len(array), *array.shape[1:]), array.dtype)])


def stack(parts: Sequence[Arrays]) -> Arrays:
    """Micro-batches of one shape on a leading axis."""
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def widths(max_length: int) -> tuple[int, ...]:
    """Row widths for forward-only passes: short examples do not pay for the attention of long rows."""
    longest = -(-max_length // 8) * 8
    return tuple(sorted({min(64, longest), min(128, longest), longest}))


def eval_batches(
    tokens: Ragged, max_length: int, budget: int = 1024, pad: int = 0, layout: Layout | None = None
) -> Iterator[tuple[Any, Arrays]]:
    """All examples once, in whatever order packs best: (index [n], batch), at most three shapes in all.

    ``budget`` is the number of tokens R*C of a batch. Features of example ``index[i]`` come out in slot i; with a
    ``layout`` see :func:`in_groups`. Raises :class:`ValueError` for an example longer than ``max_length``.
    """
    lengths = tokens.lengths
    shorter = -1
    if lengths.max(initial=0) > max_length:
        raise ValueError(
            f"an example of {lengths.max()} tokens is longer than the {max_length} of the windows"
        )
    for width in widths(max_length):
        chosen = np.flatnonzero((lengths > shorter) & (lengths <= width))
        shorter = width
        per_row = width // 4
        rows = max(budget // width, 1)
        where, starts, used = pack(lengths[chosen], width, per_row)
        by_row = np.argsort(where, kind="stable")
        cuts = np.searchsorted(where[by_row], np.arange(0, used, rows))
        shape = (rows, width, rows * per_row)
        parts = [part for part in np.split(by_row, cuts[1:]) if len(part)]
        made = functools.partial(laid_out, tokens, chosen, where, starts, shape, pad)
        for index, batch in group_batches(parts, made, layout):
            yield map_index(index, chosen.__getitem__), batch


def laid_out(
    tokens: Ragged,
    chosen: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    shape: Any,
    pad: int,
    members: np.ndarray,
) -> Arrays:
    """One window: the ``members`` of the ``chosen`` examples, whose rows count on over the windows."""
    return assemble(tokens, chosen[members], rows[members] % shape[0], starts[members], shape, pad)


def group_batches(
    parts: Sequence[np.ndarray], make: Callable[[np.ndarray], Arrays], layout: Layout | None = None
) -> Iterator[tuple[Any, Arrays]]:
    """(part, what ``make`` makes of it); with a ``layout`` ([part of each group], the batch of this process's own groups)."""
    if layout is None:
        yield from ((part, make(part)) for part in parts)
        return
    for start in range(0, len(parts), layout.groups):
        index = [*parts[start : start + layout.groups]]
        index += [np.zeros(0, np.int64)] * (layout.groups - len(index))
        yield index, stack([make(index[group]) for group in layout.local_groups])


def map_index(index: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """``change`` of the index of a batch, or of that of each of its groups."""
    return [change(part) for part in index] if isinstance(index, list) else change(index)


def num_examples(index: Any) -> int:
    """How many examples a batch holds, or all its groups."""
    return sum(map(len, index)) if isinstance(index, list) else len(index)


def image_batch(pixels: np.ndarray, tokens: int, slots: int) -> Arrays:
    """One image a row: pixels float32 [n, S, S, channels], n <= slots, as a batch of ``slots`` rows of ``tokens``."""
    return {
        "pixels": pad_to(pixels, slots),
        "segments": np.broadcast_to(np.arange(slots, dtype=np.int32)[:, None], (slots, tokens)),
        "first": np.arange(slots, dtype=np.int32) * tokens,
        "length": np.where(np.arange(slots) < len(pixels), tokens, 0).astype(np.int32),
    }

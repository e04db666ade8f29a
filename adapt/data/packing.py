"""Packing: examples of any length in rows of one static shape, so that a step compiles once and
pads almost nothing.

R rows of C tokens hold N examples. ``segments`` [R, C] says which example owns a token (N: nobody),
``positions`` [R, C] restart at each example, ``first`` and ``length`` [N] say where in R*C each
example lies. One example a row is the special case. Everything here is NumPy on the host.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adapt.data.shapes import BUDGET, CPU_SHAPES, ShapeRule
from adapt.errors import DataError
from adapt.parallel.sharding import Layout
from adapt.ragged import Ragged, concat_ranges
from adapt.training.loop import Index

Arrays = dict[str, np.ndarray]
FEW = 256  # so many examples are packed with more care
NARROW = (16, 32)  # row widths for a few short sequences
KEPT = 4_000_000  # sequences of all epochs whose places are kept, 8 bytes each
NO_EXAMPLES = np.zeros(0, np.int64)


class Placement(NamedTuple):
    """Where N examples lie in the rows of a batch."""

    rows: np.ndarray  # int32 [N]
    starts: np.ndarray  # int32 [N]
    num_rows: int


def pack(lengths: np.ndarray, width: int, most: int | None = None) -> Placement:
    """Pack examples of ``lengths`` [N] into rows of ``width`` tokens by best-fit decreasing.

    ``most`` limits the examples in a row. Free space is a bit set of capacities, so each example
    costs one shift. Without ``most``, best-fit decreasing needs at most 11/9 of the optimal rows
    plus 4 (Johnson 1973). Where it needs more rows than the tokens alone would, :func:`fill_rows`
    is tried too. Raises :class:`ValueError` for an example that is too long.
    """
    if len(lengths) and lengths.max() > width:
        raise ValueError(f"an example of {lengths.max()} tokens does not fit a row of {width}")
    rows = np.zeros(len(lengths), np.int32)
    starts = np.zeros(len(lengths), np.int32)
    examples_in: list[int] = []  # of each row
    rows_by_space: list[list[int]] = [[] for _ in range(width + 1)]
    spaces = 0  # bit s is set while some row has s tokens free
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        fitting = spaces >> length
        if fitting:
            lowest_bit = fitting & -fitting
            space = length + lowest_bit.bit_length() - 1
            row = rows_by_space[space].pop()
            if not rows_by_space[space]:
                spaces ^= 1 << space
        else:
            space = width
            row = len(examples_in)
            examples_in.append(0)
        rows[index] = row
        starts[index] = width - space
        examples_in[row] += 1
        if space > length and examples_in[row] != most:
            rows_by_space[space - length].append(row)
            spaces |= 1 << (space - length)

    placement = Placement(rows, starts, len(examples_in))
    fewest = -(-int(lengths.sum()) // width)
    if most is None and len(lengths) <= FEW and placement.num_rows > fewest:
        filled = fill_rows(lengths, width)
        if filled.num_rows < placement.num_rows:
            return filled
    return placement


def fill_rows(lengths: np.ndarray, width: int) -> Placement:
    """Pack row by row: the longest example left, and those of the rest that fill the row best.

    Subset sums in a bit set find these: the minimum bin slack of Gupta and Ho (1999). Some 0.2 ms
    for a batch of 32.
    """
    rows = np.zeros(len(lengths), np.int32)
    starts = np.zeros(len(lengths), np.int32)
    sizes = lengths.tolist()
    left = np.argsort(-lengths, kind="stable").tolist()
    row = 0
    while left:
        chosen = fullest_row([sizes[index] for index in left], width)
        start = 0
        rest = []
        for index, is_chosen in zip(left, chosen, strict=True):
            if is_chosen:
                rows[index] = row
                starts[index] = start
                start += sizes[index]
            else:
                rest.append(index)
        left = rest
        row += 1
    return Placement(rows, starts, row)


def fullest_row(sizes: list[int], width: int) -> list[bool]:
    """Which of ``sizes`` fill ``width`` best, if the first of them has to be among them."""
    fits = (1 << (width + 1)) - 1
    # Bit s of sums[i]: some of the first i + 1 sizes, with the first, sum to s.
    sums = [1 << sizes[0]]
    for size in sizes[1:]:
        sums.append((sums[-1] | sums[-1] << size) & fits)

    # Backwards: a size is taken where the sum can't be reached without it.
    chosen = [True] + [False] * (len(sizes) - 1)
    total = sums[-1].bit_length() - 1
    for i in range(len(sizes) - 1, 0, -1):
        if not sums[i - 1] >> total & 1:
            chosen[i] = True
            total -= sizes[i]
    return chosen


def assemble(
    sequences: Ragged,
    index: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    shape: tuple[int, int, int],
    pad: int = 0,
) -> Arrays:
    """The arrays of one batch of ``shape`` (R, C, N): the sequences ``index`` at their rows and
    starts.

    Token ids [total] become ``tokens``, ``positions`` and, for pairs, ``types``; token states
    [total, D] become ``hidden`` [R, C, D].
    """
    num_rows, width, slots = shape
    first = (rows.astype(np.int64) * width + starts).astype(np.int32)
    lengths = sequences.lengths[index].astype(np.int32)
    places = concat_ranges(first, lengths)
    values = sequences.values[sequences.flat_indices(index)]

    def in_rows(values: np.ndarray, empty: int = 0) -> np.ndarray:
        out = np.full((num_rows * width, *values.shape[1:]), empty, values.dtype)
        out[places] = values
        return out.reshape(num_rows, width, *values.shape[1:])

    batch = {"segments": in_rows(np.repeat(np.arange(len(index), dtype=np.int32), lengths), slots)}
    if values.ndim == 1:
        positions = (places - np.repeat(first, lengths)).astype(np.int32)
        batch["tokens"] = in_rows(values, pad)
        batch["positions"] = in_rows(positions)
        if sequences.second_start is not None:
            in_second = positions >= np.repeat(sequences.second_start[index], lengths)
            batch["types"] = in_rows(in_second.astype(np.int32))
    else:
        batch["hidden"] = in_rows(values)
    batch["first"] = pad_to(first, slots)
    batch["length"] = pad_to(lengths, slots)
    return batch


def assemble_several(
    sequences: Ragged,
    indices: Sequence[np.ndarray],
    placements: Sequence[Placement],
    shapes: Sequence[tuple[int, int, int]],
    pad: int = 0,
) -> list[Arrays]:
    """What :func:`assemble` makes of several batches, by one pass over all of them: their arrays
    are parts of larger ones.

    ``shapes`` (R, C, N) differ in R alone. NumPy takes some microseconds a call, whatever the
    size: for 16 batches of 32 short texts this is a fifth of the time.
    """
    _, width, slots = shapes[0]
    counts = np.array([len(index) for index in indices])
    num_rows = np.array([shape[0] for shape in shapes])
    row_ends = np.cumsum(num_rows)
    index = np.concatenate(indices)
    rows = np.concatenate([placement.rows for placement in placements])
    starts = np.concatenate([placement.starts for placement in placements])
    whole = assemble(
        sequences,
        index,
        rows + np.repeat(row_ends - num_rows, counts),
        starts,
        (int(row_ends[-1]), width, len(index)),
        pad,
    )

    # Segments count the examples of all batches, and an empty place is of none.
    ends = np.cumsum(counts)
    own = np.arange(len(index), dtype=np.int32) - np.repeat(ends - counts, counts)
    of_place = np.append(own.astype(np.int32), np.int32(slots))
    whole["segments"] = of_place[whole["segments"]]
    first = np.zeros((len(counts), slots), np.int32)
    length = np.zeros((len(counts), slots), np.int32)
    batch_of = np.repeat(np.arange(len(counts)), counts)
    first[batch_of, own] = whole.pop("first") - width * (row_ends - num_rows)[batch_of]
    length[batch_of, own] = whole.pop("length")

    batches = []
    for number, (end, taken) in enumerate(zip(row_ends, num_rows, strict=True)):
        batch = {name: array[end - taken : end] for name, array in whole.items()}
        batches.append(batch | {"first": first[number], "length": length[number]})
    return batches


def image_batch(pixels: np.ndarray, tokens: int, slots: int) -> Arrays:
    """One image a row: pixels float32 [n, S, S, channels], n <= slots, as ``slots`` rows of
    ``tokens``.
    """
    slot = np.arange(slots, dtype=np.int32)
    return {
        "pixels": pad_to(pixels, slots),
        "segments": np.broadcast_to(slot[:, None], (slots, tokens)),
        "first": slot * tokens,
        "length": np.where(slot < len(pixels), tokens, 0).astype(np.int32),
    }


def pad_to(array: np.ndarray, slots: int) -> np.ndarray:
    """[n, ...] -> [slots, ...], with zeros where there is no example."""
    return np.concatenate([array, np.zeros((slots - len(array), *array.shape[1:]), array.dtype)])


def stack(batches: Sequence[Arrays]) -> Arrays:
    """Batches of one shape on a leading axis."""
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def with_common_rows(batches: Sequence[Arrays]) -> list[Arrays]:
    """The same batches, all with as many rows as the largest; they may differ in nothing else.

    Rows are added after the others, so ``first`` and ``targets`` stay, and so does the dropout of
    what was there. Batches without ``segments`` stay as they are.
    """
    if "segments" not in batches[0]:
        return list(batches)
    rows = max(len(batch["segments"]) for batch in batches)
    return [with_rows(batch, rows) for batch in batches]


def with_rows(batch: Arrays, rows: int) -> Arrays:
    """The same batch with empty rows after its own, ``rows`` in all."""
    if len(batch["segments"]) == rows:
        return batch
    width = batch["segments"].shape[1]
    padding = len(batch["first"])  # the segment of no example
    wider = dict(batch)
    for name in ("tokens", "positions", "types", "hidden"):
        if name in batch:
            wider[name] = pad_to(batch[name], rows)
    added = np.full((rows - len(batch["segments"]), width), padding, np.int32)
    wider["segments"] = np.concatenate([batch["segments"], added])
    if "targets" in batch:  # labels of words, as many as there is room for
        for name in ("targets", "label", "weight"):
            wider[name] = pad_to(batch[name], rows * width)
    return wider


# Batches of one


def batches_of_one(batch: Mapping[str, Any], length: int | None = None) -> Arrays:
    """The examples of a batch as N batches of one, arrays [N, ...], for :func:`jax.vmap`.

        ones = batches_of_one(batch)
        gradients = jax.vmap(jax.grad(summed_loss), (None, 0))(params, ones)    # leaves [N, ...]

    Each example is alone in a row of ``length`` tokens (default: the longest of this batch), one of
    K sequences in K rows. An empty slot becomes an empty example of weight 0. Losses that compare
    the examples of a batch, as a contrast does, have nothing to compare.

    Raises :class:`DataError` for what is no batch, for micro-batches, for a batch on a mesh, and
    for a ``length`` that is too short.
    """
    if "window_of" in batch:
        raise DataError("`batch` has texts in several windows: give `long` head or head+tail")
    if "first" not in batch and "hidden" in batch:  # vectors that a frozen prefix has pooled
        return one_each(batch, len(batch["label"]))
    if "first" not in batch or np.ndim(batch["first"]) != 1:
        raise DataError("`batch` is no single batch: give one without micro-batches and mesh")
    longest = int(np.max(batch["length"], initial=1))
    if "pixels" in batch:
        length = batch["segments"].shape[1]
    length = longest if length is None else length
    if length < longest:
        raise DataError(f"`length` {length}: an example of the batch has {longest} tokens")

    examples = len(batch["first"])
    if "label" in batch and "targets" not in batch:
        examples = len(batch["label"])
    ones = tokens_of_one(batch, examples, length)
    if "targets" in batch:
        ones |= words_of_one(batch, length)
    others = {name: array for name, array in batch.items() if name not in ones}
    return ones | one_each(others, examples)


def tokens_of_one(batch: Mapping[str, Any], examples: int, length: int) -> Arrays:
    """The arrays of tokens of N examples of K sequences, [N, K, length, ...], and where they lie."""
    first = np.asarray(batch["first"])
    lengths = np.asarray(batch["length"])
    rows = len(first) // examples
    is_own = np.arange(length) < lengths[:, None]
    places = np.where(is_own, first[:, None] + np.arange(length), 0)
    is_own = is_own.reshape(examples, rows, length)
    own_row = np.arange(rows)[:, None]
    ones = {
        "segments": np.where(is_own, own_row, rows).astype(np.int32),
        "first": np.tile(np.arange(rows, dtype=np.int32) * length, (examples, 1)),
        "length": lengths.reshape(examples, rows),
    }
    for name in ("tokens", "positions", "types", "hidden"):
        if name in batch:
            array = np.asarray(batch[name])
            flat = array.reshape(-1, *array.shape[2:])
            alone = flat[places].reshape(*is_own.shape, *array.shape[2:])
            mask = is_own.reshape(*is_own.shape, *[1] * (array.ndim - 2))
            ones[name] = np.where(mask, alone, np.zeros((), array.dtype))
    return ones


def one_each(arrays: Mapping[str, Any], examples: int) -> Arrays:
    """Arrays [N * K, ...] of N examples as [N, K, ...]."""
    split = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        split[name] = array.reshape(examples, -1, *array.shape[1:])
    return split


def words_of_one(batch: Mapping[str, Any], length: int) -> Arrays:
    """The labelled words of each example, [N, length]: ``targets``, ``label`` and ``weight``."""
    weight = np.asarray(batch["weight"])
    words = np.flatnonzero(weight)
    tokens = np.asarray(batch["targets"])[words]
    owners = np.asarray(batch["segments"]).reshape(-1)[tokens]
    in_order = np.argsort(owners, kind="stable")
    words = words[in_order]
    owners = owners[in_order]
    counts = np.bincount(owners, minlength=len(batch["first"]))
    number = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = {
        "targets": tokens[in_order] - np.asarray(batch["first"])[owners],
        "label": np.asarray(batch["label"])[words],
        "weight": weight[words],
    }
    ones = {}
    for name, of_words in values.items():
        ones[name] = np.zeros((len(counts), length), of_words.dtype)
        ones[name][owners, number] = of_words
    return ones


# Groups of a mesh


def groups_of(layout: Layout | None) -> tuple[int, tuple[int, ...]]:
    """(how many groups a batch has, which of them this process makes): without a mesh it is one."""
    if layout is None:
        return 1, (0,)
    return layout.groups, layout.local_groups


def stack_groups(batches: Sequence[Arrays], layout: Layout | None, accumulate: int = 1) -> Arrays:
    """The batches of a step on leading axes [accumulate, groups]: micro-batches, each in groups of
    the mesh.

    The axis of a single micro-batch is left out, and without a mesh that of the groups.
    """
    if layout is None:
        return batches[0] if accumulate == 1 else stack(batches)
    _, local_groups = groups_of(layout)
    lead = (accumulate, len(local_groups)) if accumulate > 1 else (len(local_groups),)
    stacked = stack(batches)
    return {name: array.reshape(*lead, *array.shape[1:]) for name, array in stacked.items()}


# Training: the examples of an epoch in random order


@dataclasses.dataclass(frozen=True)
class BatchShapes:
    """The static shapes of training batches: a row width and at most three budgets of rows, in
    growing order.

    ``sequences`` is how many a batch may have, where texts are cut into windows; None: as many as
    examples, or as these have.
    """

    width: int
    rows: tuple[int, ...]
    examples: int
    sequences: int | None = None
    # where the examples of an epoch lie, by (fingerprint of their lengths, seed, epoch): what was
    # packed to find the budgets
    packed: Mapping[tuple[int, int, int], "PackedEpoch"] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def rows_for(self, needed: int) -> int:
        """The smallest budget that holds ``needed`` rows. Raises :class:`ValueError` for a batch
        that was not planned.
        """
        for rows in self.rows:
            if rows >= needed:
                return rows
        raise ValueError(
            f"a batch needs {needed} rows and the shapes have {self.rows}: "
            "make them for all epochs that are run"
        )


@dataclasses.dataclass(frozen=True)
class PackedEpoch:
    """Where the sequences of the micro-batches of an epoch lie, one micro-batch after the other."""

    rows: np.ndarray  # int32 [sequences]
    starts: np.ndarray  # int32 [sequences]
    ends: np.ndarray  # int64 [micro-batches]: of their sequences
    num_rows: np.ndarray  # int64 [micro-batches]

    @classmethod
    def of(cls, placements: Sequence[Placement]) -> "PackedEpoch":
        return cls(
            rows=np.concatenate([placement.rows for placement in placements]),
            starts=np.concatenate([placement.starts for placement in placements]),
            ends=np.cumsum([len(placement.rows) for placement in placements]),
            num_rows=np.array([placement.num_rows for placement in placements]),
        )

    def placement(self, number: int) -> Placement:
        """That of a micro-batch, counted from the epoch's first."""
        start = self.ends[number - 1] if number else 0
        part = slice(start, self.ends[number])
        return Placement(self.rows[part], self.starts[part], int(self.num_rows[number]))


def batch_shapes(
    lengths: np.ndarray | Ragged,
    examples: int,
    seed: int,
    epochs: int,
    parts: int = 1,
    width: int = 64,
    rule: ShapeRule = CPU_SHAPES,
) -> BatchShapes:
    """The budgets that pad least over ``epochs`` epochs: every batch is packed once, some 50
    microseconds each.

    ``lengths`` are [N], or [N, K] for examples of K sequences, or Ragged where examples have one or
    more windows; a step has ``parts`` micro-batches
    of up to ``examples``. ``width`` is the least that a row may have, ``rule`` says how many
    budgets there are to be. Deterministic, so a resumed run has the same shapes.
    """
    has_windows = isinstance(lengths, Ragged)
    longest = lengths.values.max() if has_windows else lengths.max()
    width = max(-(-int(longest) // 16) * 16, width)
    needed = []
    most = 0  # sequences of a batch
    packed: dict[tuple[int, int, int], PackedEpoch] = {}
    of_lengths = fingerprint(lengths.values if has_windows else lengths)
    kept = 0
    for epoch in range(epochs):
        placements = []
        for step in micro_batches(len(lengths), examples, parts, seed, epoch):
            of_step = [pack(lengths_of(lengths, part), width) for part in step]
            needed.append(max(placement.num_rows for placement in of_step))
            most = max(most, *(len(placement.rows) for placement in of_step))
            placements += of_step
        kept += sum(len(placement.rows) for placement in placements)
        if kept <= KEPT:
            packed[of_lengths, seed, epoch] = PackedEpoch.of(placements)
    rows = rule.row_budgets(np.array(needed), width)
    return BatchShapes(width, rows, examples, most if has_windows else None, packed)


def fingerprint(lengths: np.ndarray) -> int:
    """A number that tells the lengths of all sequences of one set from those of another."""
    return zlib.crc32(lengths.astype(np.int64).tobytes())


def lengths_of(lengths: np.ndarray | Ragged, index: np.ndarray) -> np.ndarray:
    """The lengths of all sequences of some examples, one after the other."""
    if isinstance(lengths, Ragged):
        return lengths.values[lengths.flat_indices(index)]
    return lengths[index].reshape(-1)


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch: a pure function of seed and epoch, so any step of any run can
    be found again.
    """
    return np.random.default_rng([seed, epoch]).permutation(count)


def micro_batches(
    count: int, examples: int, parts: int, seed: int, epoch: int, skip: int = 0
) -> Iterator[list[np.ndarray]]:
    """The examples of every step of an epoch from step ``skip`` on: ``parts`` arrays of up to
    ``examples`` indices.
    """
    permutation = order(count, seed, epoch)
    for start in range(skip * examples * parts, count, examples * parts):
        cuts = range(start, start + examples * parts, examples)
        yield [permutation[cut : cut + examples] for cut in cuts]


class StepParts(NamedTuple):
    """The sequences of every micro-batch of a step, and where they lie, if that is known."""

    parts: Sequence[np.ndarray]
    placements: Sequence[Placement] | None = None


def pack_steps(
    sequences: Ragged,
    steps: Sequence[StepParts],
    local: Sequence[int],
    shapes: BatchShapes,
    pad: int = 0,
) -> list[list[Arrays]]:
    """The micro-batches ``local`` of each step, packed into the one shape that holds every
    micro-batch of it.
    """
    indices = []
    placements = []
    batch_shapes = []
    for step in steps:
        of_step = step.placements
        if of_step is None:
            of_step = [pack(sequences.lengths[part], shapes.width) for part in step.parts]
        needed = max(placement.num_rows for placement in of_step)
        shape = (shapes.rows_for(needed), shapes.width, shapes.examples)
        for i in local:
            indices.append(step.parts[i])
            placements.append(of_step[i])
            batch_shapes.append(shape)
    batches = assemble_several(sequences, indices, placements, batch_shapes, pad)
    return [batches[start : start + len(local)] for start in range(0, len(batches), len(local))]


def make_targets(
    labels: np.ndarray | Ragged, inputs: Arrays, slots: int, weights: np.ndarray | None = None
) -> Arrays:
    """What a loss compares outputs with: the labels of examples [n, ...], or those of words,
    padded.

    ``weights`` float32 [n] are those of the examples, and so of all their words; default: 1.
    """
    if isinstance(labels, Ragged):
        targets = pad_word_labels(labels, inputs)
        if weights is not None:
            weights = np.repeat(weights, labels.lengths)
    else:
        targets = pad_labels(np.asarray(labels), slots)
    if weights is not None:
        targets["weight"] = pad_to(weights, len(targets["weight"]))
    return targets


def pad_labels(labels: np.ndarray, slots: int) -> Arrays:
    """Labels [n, ...] in ``slots`` places, with weight 1 where there is an example."""
    if len(labels) == slots:
        return {"label": labels, "weight": np.ones(slots, np.float32)}
    weight = np.arange(slots) < len(labels)
    return {"label": pad_to(labels, slots), "weight": weight.astype(np.float32)}


def pad_word_labels(labels: Ragged, inputs: Arrays) -> Arrays:
    """The labels of words, int32 [words, 2] of (token in the example, class), for a batch of R*C
    tokens.

    All are [R*C]: ``targets``, the token of each word; ``label``; and ``weight``, 1 where there is
    a word.
    """
    values = labels.values[labels.flat_indices(np.arange(len(labels)))]
    first = np.repeat(inputs["first"][: len(labels)], labels.lengths)
    size = inputs["segments"].size
    return {"targets": pad_to(first + values[:, 0], size)} | pad_labels(values[:, 1], size)


# Evaluation: every example once, in the order that packs best


@dataclasses.dataclass(frozen=True)
class Windows:
    """Evaluation batches of one shape: the examples of each, and what makes the arrays of some."""

    members: list[np.ndarray]
    make: Callable[[np.ndarray], Arrays]


def pack_few(
    sequences: Ragged, max_length: int, pad: int = 0, rule: ShapeRule = CPU_SHAPES
) -> Iterator[Windows]:
    """A few sequences in one batch, of the smallest shape that holds them; more of them as
    :func:`pack_windows` packs them.

    The rows are a power of two, so that there are some twenty shapes in all. For an answer to one
    short text a window of 1,024 tokens would compute sixty times as much as is asked for. A
    ``rule`` that spares shapes has one of 1,024 tokens for each width.
    """
    lengths = sequences.lengths
    longest = lengths.max(initial=1)
    widths = rule.row_widths(lengths, max_length)
    if not rule.is_sparing:
        widths = (*NARROW, *widths)
    fitting = [width for width in widths if width >= longest]
    if len(lengths) and fitting and lengths.sum() <= BUDGET:
        width = fitting[0]
        per_row = width // 4
        placement = pack(lengths, width, per_row)
        num_rows = 1 << (placement.num_rows - 1).bit_length()
        if rule.is_sparing:
            num_rows = max(num_rows, BUDGET // width)
        if num_rows * width <= max(BUDGET, width):
            shape = (num_rows, width, num_rows * per_row)
            arguments = (sequences, placement.rows, placement.starts, shape, pad)
            make = functools.partial(assemble_window, *arguments)
            yield Windows([np.arange(len(lengths))], make)
            return
    yield from pack_windows(sequences, max_length, pad=pad, rule=rule)


def pack_windows(
    sequences: Ragged,
    max_length: int,
    budget: int | None = None,
    pad: int = 0,
    rule: ShapeRule = CPU_SHAPES,
) -> Iterator[Windows]:
    """All sequences once, packed by length into batches of ``budget`` tokens R*C, by default those
    of the ``rule``: a shape for each of its widths that some sequence needs.

    Raises :class:`ValueError` for a sequence longer than ``max_length``.
    """
    lengths = sequences.lengths
    longest = lengths.max(initial=0)
    if longest > max_length:
        raise ValueError(
            f"an example of {longest} tokens is longer than the {max_length} of the windows"
        )
    rows = np.zeros(len(lengths), np.int32)  # counted over all windows of a width
    starts = np.zeros(len(lengths), np.int32)
    budget = rule.tokens if budget is None else budget
    shorter = -1
    for width in rule.row_widths(lengths, max_length):
        chosen = np.flatnonzero((lengths > shorter) & (lengths <= width))
        shorter = width
        per_row = width // 4
        num_rows = max(budget // width, 1)
        placement = pack(lengths[chosen], width, per_row)
        rows[chosen] = placement.rows
        starts[chosen] = placement.starts
        by_row = chosen[np.argsort(placement.rows, kind="stable")]
        cuts = np.searchsorted(rows[by_row], np.arange(num_rows, placement.num_rows, num_rows))
        members = [part for part in np.split(by_row, cuts) if len(part)]
        shape = (num_rows, width, num_rows * per_row)
        make = functools.partial(assemble_window, sequences, rows, starts, shape, pad)
        yield Windows(members, make)


def assemble_window(
    sequences: Ragged,
    rows: np.ndarray,
    starts: np.ndarray,
    shape: tuple[int, int, int],
    pad: int,
    index: np.ndarray,
) -> Arrays:
    """One window of ``shape``; ``rows`` and ``starts`` [N] are those of all sequences, over many
    windows.
    """
    return assemble(sequences, index, rows[index] % shape[0], starts[index], shape, pad)


def eval_batches(
    windows: Iterable[Windows], layout: Layout | None = None, skip: int = 0
) -> Iterator[tuple[Index, Arrays]]:
    """(which examples each group has, the arrays of this process's groups) of every batch from
    batch ``skip`` on.

    Outputs for example ``index[g][i]`` come out in slot i of group g. Without a ``layout`` there is
    one group, and the arrays have no axis of groups.
    """
    groups, local_groups = groups_of(layout)
    for window in windows:
        for start in range(0, len(window.members), groups):
            if skip:
                skip -= 1
                continue
            index = window.members[start : start + groups]
            index += [NO_EXAMPLES] * (groups - len(index))
            batches = [window.make(index[group]) for group in local_groups]
            yield index, stack_groups(batches, layout)


def num_examples(index: Index) -> int:
    """How many examples a batch holds in all its groups."""
    return sum(len(group) for group in index)

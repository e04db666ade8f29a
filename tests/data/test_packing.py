"""Packing: nothing overlaps, is split or lost, whatever the lengths; few shapes; an order that any step can find again."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data import packing
from adapt.data.examples import Examples
from adapt.data.shapes import ShapeRule
from adapt.data.sources import TokenSource
from adapt.errors import DataError
from adapt.ragged import Ragged, ragged

LENGTHS = st.lists(st.integers(0, 40), max_size=60).map(lambda found: np.array(found, np.int64))
SOME = st.lists(st.integers(1, 40), min_size=1, max_size=60).map(
    lambda found: np.array(found, np.int64)
)


def numbered(lengths: np.ndarray) -> Ragged:
    """Examples of these lengths in which every token id is different, and none is 0, the padding."""
    return ragged(
        np.split(np.arange(1, lengths.sum() + 1), np.cumsum(lengths)[:-1]) if len(lengths) else []
    )


def examples_in(batch: packing.Arrays, count: int) -> list[np.ndarray]:
    flat = batch["tokens"].reshape(-1)
    return [
        flat[first : first + n]
        for first, n in zip(batch["first"][:count], batch["length"][:count], strict=True)
    ]


@given(LENGTHS, st.integers(40, 80), st.none() | st.integers(1, 5))
def test_no_two_examples_share_a_token_and_none_leaves_its_row(lengths, width, most):
    rows, starts, used = packing.pack(lengths, width, most)
    taken = np.zeros((used, width), int)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        assert start >= 0 and start + length <= width
        taken[row, start : start + length] += 1
    assert taken.max(initial=0) <= 1 and taken.sum() == lengths.sum()
    assert set(rows) == set(range(used))  # no empty row
    assert most is None or np.bincount(rows, minlength=1).max() <= most


@given(SOME, st.integers(40, 80))
def test_no_two_rows_would_fit_in_one(lengths, width):
    """Hence more than half of all tokens are owned, whatever the lengths (one row may be the exception)."""
    rows, _, used = packing.pack(lengths, width)
    held = np.sort(np.bincount(rows, lengths, used))
    assert used == 1 or held[0] + held[1] > width
    assert lengths.sum() > (used - 1) * width / 2


@given(SOME, st.integers(40, 80))
def test_filling_row_by_row_is_a_packing_too(lengths, width):
    rows, starts, used = packing.fill_rows(lengths, width)
    taken = np.zeros((used, width), int)
    for row, start, length in zip(rows, starts, lengths, strict=True):
        taken[row, start : start + length] += 1
    assert taken.max() <= 1 and taken.sum() == lengths.sum() and set(rows) == set(range(used))


def test_what_best_fit_leaves_half_empty_is_filled_row_by_row():
    """44 + 24 + 24 fill a row of 92, but best-fit decreasing puts 44 beside 44."""
    lengths = np.array([44, 44, 24, 24, 24, 24])
    assert packing.pack(lengths, 92, most=6)[2] == 3 and packing.pack(lengths, 92)[2] == 2


def test_sentences_pad_less_than_4_percent():
    lengths = np.clip(np.random.default_rng(0).gamma(4, 7, 2000).astype(int) + 3, 3, 128)
    assert 1 - lengths.sum() / (packing.pack(lengths, 128)[2] * 128) < 0.04


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="an example of 9 tokens does not fit a row of 8"):
        packing.pack(np.array([3, 9]), 8)


@given(SOME, st.integers(40, 80), st.randoms(use_true_random=False))
def test_assembled_rows_hold_every_token_with_its_owner_and_position(lengths, width, random):
    tokens = numbered(lengths)
    index = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    rows, starts, used = packing.pack(lengths[index], width)
    slots = len(index) + random.randint(0, 3)
    batch = packing.assemble(tokens, index, rows, starts, (used + 1, width, slots), pad=0)
    assert (
        batch["tokens"].shape
        == batch["segments"].shape
        == batch["positions"].shape
        == (used + 1, width)
    )
    for slot, (example, found) in enumerate(
        zip(index, examples_in(batch, len(index)), strict=True)
    ):
        np.testing.assert_array_equal(found, tokens[example])
        mine = batch["segments"] == slot
        np.testing.assert_array_equal(batch["tokens"][mine], tokens[example])
        np.testing.assert_array_equal(batch["positions"][mine], np.arange(lengths[example]))
    nobody = batch["segments"] == slots
    assert nobody.sum() == nobody.size - lengths[index].sum()
    assert not batch["tokens"][nobody].any() and not batch["positions"][nobody].any()
    assert not batch["length"][len(index) :].any()
    assert all(array.dtype == np.int32 for array in batch.values())


# Training batches


@settings(max_examples=20)
@given(SOME, st.integers(1, 12), st.integers(0, 9), st.integers(1, 3), st.integers(1, 3))
def test_a_plan_has_at_most_3_shapes_and_is_a_pure_function(lengths, examples, seed, epochs, parts):
    shapes = packing.batch_shapes(lengths, examples, seed, epochs, parts)
    assert 1 <= len(shapes.rows) <= 3 and list(shapes.rows) == sorted(set(shapes.rows))
    assert shapes.width >= lengths.max() and shapes.width % 16 == 0
    assert shapes == packing.batch_shapes(lengths.copy(), examples, seed, epochs, parts)


@settings(max_examples=20)
@given(SOME, st.integers(1, 6), st.integers(1, 3))
def test_a_plan_pads_least_of_all_budgets_of_three_sizes(lengths, examples, epochs):
    shapes = packing.batch_shapes(lengths, examples, 0, epochs)
    steps = [
        step
        for epoch in range(epochs)
        for step in packing.micro_batches(len(lengths), examples, 1, 0, epoch)
    ]
    needed = [packing.pack(lengths[part], shapes.width)[2] for (part,) in steps]

    def rows(budgets):
        return sum(min(budget for budget in budgets if budget >= need) for need in needed)

    others = itertools.combinations_with_replacement(sorted(set(needed)), 2)
    assert rows(shapes.rows) == min(rows({*two, max(needed)}) for two in others)


def test_a_batch_that_was_not_planned_is_refused():
    with pytest.raises(ValueError, match="needs 4 rows and the shapes have"):
        packing.BatchShapes(64, (1, 3), 2).rows_for(4)


EPOCH = dict(
    lengths=SOME,
    examples=st.integers(1, 9),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
    parts=st.integers(1, 3),
)


def epoch_of(lengths, examples, seed, epoch, parts, skip=0):
    shapes = packing.batch_shapes(lengths, examples, seed, epoch + 1, parts)
    made = examples_of(numbered(lengths), np.arange(len(lengths)))
    return shapes, list(made.batches(shapes, seed, epoch, skip, parts))


def examples_of(tokens: Ragged, labels: np.ndarray | Ragged) -> Examples:
    """One example for each sequence."""
    return Examples(TokenSource(tokens, 512), np.arange(len(tokens)), labels)


def micro(batch: packing.Arrays) -> list[packing.Arrays]:
    """The micro-batches of a batch."""
    if batch["weight"].ndim == 1:
        return [batch]
    return [
        {name: array[part] for name, array in batch.items()} for part in range(len(batch["weight"]))
    ]


@settings(max_examples=25)
@given(**EPOCH)
def test_every_example_comes_exactly_once_an_epoch_with_its_label(
    lengths, examples, seed, epoch, parts
):
    shapes, batches = epoch_of(lengths, examples, seed, epoch, parts)
    tokens, seen = numbered(lengths), []
    assert len(batches) == -(-len(lengths) // (examples * parts))
    assert {batch["tokens"].shape[-2:] for batch in batches} <= {
        (rows, shapes.width) for rows in shapes.rows
    }
    for part in (part for batch in batches for part in micro(batch)):
        count = int(part["weight"].sum())
        np.testing.assert_array_equal(part["weight"], np.arange(examples) < count)
        for label, found in zip(part["label"], examples_in(part, count), strict=False):
            np.testing.assert_array_equal(found, tokens[label])
        seen += part["label"][:count].tolist()
    assert sorted(seen) == list(range(len(lengths)))


@settings(max_examples=25)
@given(**EPOCH, skip=st.integers(0, 8))
def test_the_order_is_a_pure_function_and_skipping_gives_the_tail(
    lengths, examples, seed, epoch, parts, skip
):
    _, whole = epoch_of(lengths, examples, seed, epoch, parts)
    _, tail = epoch_of(lengths, examples, seed, epoch, parts, skip)
    assert len(tail) == len(whole[skip:])
    for one, other in zip(whole[skip:], tail, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@given(st.integers(0, 300), st.integers(0, 99), st.integers(0, 99))
def test_epochs_are_permutations_and_differ(count, seed, epoch):
    one = packing.order(count, seed, epoch)
    assert sorted(one) == list(range(count))
    if count > 20:
        assert not np.array_equal(one, packing.order(count, seed, epoch + 1))
        assert not np.array_equal(one, packing.order(count, seed + 1, epoch))


@given(st.integers(0, 5), st.sampled_from([(), (3,)]))
def test_empty_slots_weigh_nothing(count, tail):
    labels = np.ones((count, *tail), np.float32)
    found = packing.pad_labels(labels, 5)
    assert found["label"].shape == (5, *tail) and found["label"].dtype == labels.dtype
    assert found["weight"].tolist() == [1.0] * count + [0.0] * (5 - count)
    assert not found["label"][count:].any()


# Windows


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 150), max_size=80).map(lambda found: np.array(found, np.int64)),
    st.integers(150, 512),
    st.sampled_from([64, 256, 1024]),
)
def test_windows_cover_every_example_once_in_at_most_3_shapes(lengths, max_length, budget):
    tokens, seen, shapes = numbered(lengths), [], set()
    windows = packing.pack_windows(tokens, max_length, budget)
    for (index,), batch in packing.eval_batches(windows):
        shapes.add(tuple((name, array.shape) for name, array in batch.items()))
        assert batch["tokens"].size <= max(budget, batch["tokens"].shape[1])
        for example, found in zip(index, examples_in(batch, len(index)), strict=True):
            np.testing.assert_array_equal(found, tokens[example])
        seen += index.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    assert len(shapes) <= 3


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 150), max_size=40).map(lambda found: np.array(found, np.int64)),
    st.integers(150, 512),
)
def test_a_few_examples_come_once_in_one_batch_of_few_tokens(lengths, max_length):
    tokens = numbered(lengths)
    batches = list(packing.eval_batches(packing.pack_few(tokens, max_length)))
    seen = []
    for (index,), batch in batches:
        for example, found in zip(index, examples_in(batch, len(index)), strict=True):
            np.testing.assert_array_equal(found, tokens[example])
        seen += index.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    if len(lengths) and lengths.sum() <= 64 and lengths.max() <= 16:
        ((_, batch),) = batches
        assert batch["tokens"].shape[1] == 16 and batch["tokens"].size <= 16 * 64


def test_windows_refuse_an_example_that_no_row_would_hold():
    with pytest.raises(
        ValueError, match="an example of 40 tokens is longer than the 32 of the windows"
    ):
        next(packing.pack_windows(numbered(np.array([3, 40])), 32))


@given(st.integers(1, 2000))
def test_window_widths_hold_the_longest_example(max_length):
    widths = ShapeRule().row_widths(np.zeros(0), max_length)
    assert len(widths) <= (3 if max_length <= 512 else 5)
    assert list(widths) == sorted(set(widths))
    assert max_length <= widths[-1] < max_length + 8


def test_an_image_is_a_row_of_its_own():
    pixels = np.random.default_rng(0).standard_normal((3, 4, 4, 1)).astype(np.float32)
    batch = packing.image_batch(pixels, 5, 4)
    np.testing.assert_array_equal(batch["pixels"][:3], pixels)
    assert not batch["pixels"][3:].any()
    np.testing.assert_array_equal(batch["segments"], np.repeat(np.arange(4)[:, None], 5, 1))
    np.testing.assert_array_equal(batch["segments"].reshape(-1)[batch["first"]], np.arange(4))
    np.testing.assert_array_equal(batch["length"], [5, 5, 5, 0])


# Pairs, words, several sequences


@given(SOME, st.randoms(use_true_random=False))
def test_the_types_of_a_pair_turn_where_its_second_text_begins(lengths, random):
    second_start = np.array([random.randint(0, n) for n in lengths])
    tokens = dataclasses.replace(numbered(lengths), second_start=second_start)
    index = np.array(random.sample(range(len(lengths)), random.randint(1, len(lengths))))
    rows, starts, used = packing.pack(lengths[index], 64)
    batch = packing.assemble(tokens, index, rows, starts, (used + 1, 64, len(index)))
    for slot, example in enumerate(index):
        own = batch["types"][batch["segments"] == slot]
        assert own.tolist() == [0] * second_start[example] + [1] * (
            lengths[example] - second_start[example]
        )
    assert (
        not batch["types"][batch["segments"] == len(index)].any()
        and batch["types"].dtype == np.int32
    )
    assert "types" not in packing.assemble(
        numbered(lengths), index, rows, starts, (used + 1, 64, len(index))
    )


@given(SOME, st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_label_of_a_word_goes_with_its_token(lengths, seed, random):
    places = [sorted(random.sample(range(n), random.randint(0, n))) for n in lengths]
    counts = np.array([len(each) for each in places])
    values = np.array(
        [[place, example] for example, each in enumerate(places) for place in each], np.int32
    )
    labels = Ragged(values.reshape(-1, 2), np.cumsum(counts) - counts, counts)
    tokens, shapes = numbered(lengths), packing.batch_shapes(lengths, 3, seed, 1)
    found = []
    for batch in examples_of(tokens, labels).batches(shapes, seed, 0):
        assert (
            len(batch["targets"])
            == len(batch["label"])
            == len(batch["weight"])
            == batch["segments"].size
        )
        real = batch["weight"] > 0
        found += zip(
            batch["tokens"].reshape(-1)[batch["targets"][real]], batch["label"][real], strict=True
        )
        assert (batch["targets"][~real] == 0).all()
    expected = [
        (tokens[example][place], example) for example, each in enumerate(places) for place in each
    ]
    assert sorted(found) == sorted(expected)


@given(SOME.filter(lambda lengths: len(lengths) > 2), st.integers(0, 9))
def test_the_sequences_of_an_example_stay_together_and_in_order(lengths, seed):
    rows = np.arange(len(lengths) - len(lengths) % 3).reshape(-1, 3)
    labels = np.arange(len(rows), dtype=np.int32)
    tokens = numbered(lengths)
    examples = Examples(TokenSource(tokens, 100), rows, labels)
    shapes = examples.batch_shapes(2, seed, 1)
    seen = []
    for batch in examples.batches(shapes, seed, 0):
        assert len(batch["first"]) == 6 and len(batch["label"]) == 2
        for slot in np.flatnonzero(batch["weight"]):
            seen.append(int(batch["label"][slot]))
            for place, row in enumerate(rows[seen[-1]]):
                mine = batch["tokens"][batch["segments"] == 3 * slot + place]
                np.testing.assert_array_equal(mine, tokens[row])
    assert sorted(seen) == list(range(len(rows)))
    once = np.concatenate([index for (index,), _ in examples.eval_batches()])
    assert sorted(once) == list(range(rows.size)) and examples.num_outputs == rows.size


# Batches of one


@given(SOME, st.integers(0, 9))
def test_every_example_is_alone_in_a_batch_of_one(lengths, seed):
    tokens = numbered(lengths)
    labels = np.arange(len(lengths), dtype=np.int32)
    part = Examples(TokenSource(tokens, 100), np.arange(len(lengths)), labels)
    for batch in part.batches(part.batch_shapes(4, seed, 1), seed, 0):
        ones = packing.batches_of_one(batch)
        assert {len(array) for array in ones.values()} == {len(batch["label"])}
        for slot, weight in enumerate(ones["weight"]):
            one = {name: array[slot] for name, array in ones.items()}
            assert one["segments"].shape == (1, batch["length"].max())
            is_own = one["segments"] == 0
            expected = tokens[int(one["label"][0])] if weight[0] else []
            np.testing.assert_array_equal(one["tokens"][is_own], expected)
            np.testing.assert_array_equal(one["positions"][is_own], np.arange(len(expected)))
            assert one["first"] == [0] and one["length"] == [len(expected)]
            assert (one["segments"][~is_own] == 1).all() and not one["tokens"][~is_own].any()


def test_the_length_of_a_batch_of_one_can_be_fixed():
    part = Examples(TokenSource(numbered(np.array([3, 5])), 100), np.arange(2), np.zeros(2))
    (batch,) = part.batches(part.batch_shapes(2, 0, 1), 0, 0)
    assert packing.batches_of_one(batch, 16)["tokens"].shape == (2, 1, 16)
    with pytest.raises(DataError, match="length"):
        packing.batches_of_one(batch, 4)
    for wrong in (packing.stack([batch, batch]), {"label": batch["label"]}, {}):
        with pytest.raises(DataError, match="batch"):
            packing.batches_of_one(wrong)

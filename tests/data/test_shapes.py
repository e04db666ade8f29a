"""Few shapes where a program compiles slowly, and on a CPU where a run is short."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.data import packing
from adapt.data.packing import Arrays
from adapt.data.shapes import BUDGET, ShapeRule, least_padding, shape_rule
from adapt.devices import CPU, Device
from adapt.models import EncoderConfig
from adapt.ragged import Ragged, ragged

MINILM = EncoderConfig("bert", 6, 384, 12, 1536, 512, vocabulary=30522, types=2)
LARGE = EncoderConfig("bert", 24, 1024, 16, 4096, 512, vocabulary=30522, types=2)
H100 = Device("gpu", "NVIDIA H100 80GB HBM3", (9, 0), 60 << 30)
SPARING = shape_rule(MINILM, H100)
NEEDED = st.lists(st.integers(1, 40), min_size=1, max_size=200).map(np.array)


def texts(lengths: list[int]) -> Ragged:
    return ragged([np.arange(1, length + 1, dtype=np.int32) for length in lengths])


def batches_of(sequences: Ragged, max_length: int, rule: ShapeRule, few: bool) -> list[Arrays]:
    pack = packing.pack_few if few else packing.pack_windows
    made = packing.eval_batches(pack(sequences, max_length, rule=rule))
    return [batch for _, batch in made]


def test_a_cpu_has_several_shapes_in_evaluation():
    rule = shape_rule(MINILM, CPU)
    assert rule.tokens == BUDGET == 1024 and not rule.is_sparing
    assert rule.row_widths(np.array([3]), 512) == (64, 128, 512)
    assert rule.images(197) == 32


def test_rows_are_no_wider_than_a_text_needs_where_positions_are_many():
    lengths = np.array([3, 213])
    for rule in (ShapeRule(), SPARING):
        widths = rule.row_widths(lengths, 40_960)
        assert min(width for width in widths if width >= 213) == 512
    assert ShapeRule().row_widths(lengths, 3000) == (64, 128, 512, 1024, 2048, 3000)
    assert SPARING.row_widths(np.array([2500]), 3000) == (3000,)
    for batch in batches_of(texts([213, 3]), 40_960, ShapeRule(), few=True):
        assert batch["segments"].shape[1] <= 512


def test_a_batch_of_an_evaluation_is_as_large_as_model_and_memory_allow():
    assert SPARING.tokens == 32_768
    assert shape_rule(LARGE, H100).tokens == 8192
    small = dataclasses.replace(H100, memory=1 << 30)
    assert shape_rule(LARGE, small).tokens == 1024
    assert shape_rule(LARGE, Device("gpu")).tokens <= shape_rule(LARGE, H100).tokens
    assert SPARING.images(197) == 160


@given(NEEDED)
def test_three_budgets_pad_no_more_than_two_and_two_than_one(needed):
    padded = []
    for count in (1, 2, 3):
        budgets, rows = least_padding(needed, count)
        assert 1 <= len(budgets) <= count
        assert budgets[-1] == needed.max()
        held = np.array(budgets)[np.searchsorted(budgets, needed)]
        assert held.sum() == rows
        padded.append(rows)
    assert padded == sorted(padded, reverse=True)


@given(NEEDED)
def test_a_cpu_has_the_budgets_that_pad_least(needed):
    assert ShapeRule().row_budgets(needed, 64) == least_padding(needed)[0]


def test_a_further_budget_has_to_save_more_than_its_program_costs():
    needed = np.array([2] * 50 + [8])
    saved = 50 * 6 * 64  # tokens of rows that two budgets do not pad
    assert ShapeRule(compile_tokens=saved - 1).row_budgets(needed, 64) == (2, 8)
    assert ShapeRule(compile_tokens=saved + 1).row_budgets(needed, 64) == (8,)


def test_a_short_run_on_a_cpu_has_one_program_and_a_long_one_several():
    rule = shape_rule(MINILM, CPU)
    epoch = np.array([2] * 10 + [3] * 10)
    assert rule.row_budgets(epoch, 64) == (3,)
    assert rule.row_budgets(np.tile(epoch, 50), 64) == (2, 3)
    assert shape_rule(LARGE, CPU).compile_tokens < rule.compile_tokens
    embedding = dataclasses.replace(MINILM, layers=0)
    assert shape_rule(embedding, CPU).row_budgets(np.tile(epoch, 50), 64) == (3,)


def test_short_texts_share_the_rows_of_long_ones_where_that_costs_less_than_a_program():
    short, mixed = np.array([20, 128]), np.array([20, 400])
    assert SPARING.row_widths(short, 512) == (128,)
    assert SPARING.row_widths(mixed, 512) == (512,)
    assert SPARING.row_widths(np.array([20]), 64) == (64,)
    eager = dataclasses.replace(SPARING, compile_tokens=1)
    assert eager.row_widths(mixed, 512) == (128, 512)


@pytest.mark.parametrize("few", [False, True])
@given(lengths=st.lists(st.lists(st.integers(1, 300), max_size=40), min_size=1, max_size=4))
def test_a_stream_of_texts_has_few_shapes_on_an_accelerator(few, lengths):
    shapes = set()
    for chunk in lengths:
        for batch in batches_of(texts(chunk), 512, SPARING, few):
            shapes.add(batch["segments"].shape)
    widths = {(64, 512), (256, 128)}
    assert shapes <= (widths | {(2, 512), (8, 128)} if few else widths)

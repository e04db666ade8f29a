"""Offsets of answers in characters, UTF-16 units and UTF-8 bytes: each is read, or its unit is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapt
from adapt.data import tables
from adapt.data.inputs import Columns
from adapt.data.offsets import agreeing_unit, characters_before, num_units
from adapt.errors import DataError, StrategyError
from adapt.tasks import TASKS

UNITS = ("characters", "utf16", "bytes")
TOWN = "\U0001f600\U0001f680 Ines moved to Cork last year."
AT = TOWN.index("Cork")
# Letters of one to four bytes, of one unit and of two.
CONTEXTS = st.text(st.sampled_from("ab é好\U0001f600\u200d\U0001f680"), min_size=1, max_size=12)


def table_of(label, context=TOWN):
    return tables.from_columns({"text": [context], "label": [label]}, "some.csv")


def in_characters(label, offsets, context=TOWN):
    """The characters that a label is understood as."""
    span = TASKS["span"]
    table = span.with_character_offsets(table_of(label, context), Columns(offsets=offsets))
    assert table.name == "some.csv" and set(table.columns) == {"text", "label"}
    span.check_labels(table, "label", ["text"])
    return span.encode_labels(table, "label", [])[0].tolist()


@given(CONTEXTS, st.sampled_from(UNITS), st.data())
def test_an_offset_in_any_unit_comes_to_the_same_characters(context, unit, data):
    start = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(start + 1, len(context)))
    offset = num_units(context[:start], unit)
    assert characters_before(context, offset, unit) == start
    answer = {"text": [context[start:end]], "answer_start": [offset]}
    assert in_characters(answer, unit, context) == [start, end]
    both = [offset, num_units(context[:end], unit)]
    assert in_characters(both, unit, context) == [start, end]
    assert in_characters(json.dumps(both), unit, context) == [start, end]


@given(CONTEXTS, st.sampled_from(UNITS), st.integers(0, 60))
def test_an_offset_within_a_character_or_beyond_the_text_is_no_place(context, unit, offset):
    units_before = [num_units(context[:place], unit) for place in range(len(context) + 1)]
    place = characters_before(context, offset, unit)
    assert place == (units_before.index(offset) if offset in units_before else None)


@pytest.mark.parametrize(
    ("unit", "offset"), [("characters", AT), ("utf16", AT + 2), ("bytes", AT + 6)]
)
def test_the_error_of_an_answer_that_is_elsewhere_names_the_unit_that_would_agree(unit, offset):
    assert agreeing_unit(TOWN, offset, "Cork") == unit
    answer = {"text": ["Cork"], "answer_start": [offset]}
    for other in UNITS:
        if other == unit:
            assert in_characters(answer, other) == [AT, AT + 4]
            continue
        with pytest.raises(DataError, match=rf"some\.csv: row 1: .*`offsets` {unit}"):
            in_characters(answer, other)


@pytest.mark.parametrize("label", [[1, 6], [0, 400], {"text": ["Rome"], "answer_start": [0]}])
def test_what_is_no_place_in_the_text_is_named_with_its_row(label):
    with pytest.raises(DataError, match=r"some\.csv: row 1"):
        in_characters(label, "bytes")


def test_only_spans_have_offsets_and_only_of_these_units():
    with pytest.raises(StrategyError, match="offsets"):
        TASKS["classification"].with_character_offsets(table_of("good"), Columns(offsets="utf16"))
    with pytest.raises(StrategyError, match=r"offsets.*characters, utf16, bytes"):
        Columns(offsets="utf32")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StrategyError, match="offsets"):
        adapt.finetune("tiny-bert", ["a", "b"] * 9, ["x", "y"] * 9, offsets="bytes")

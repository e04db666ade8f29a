"""Windows of long texts: together they are the text, and a place in one is a place in the text."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data import tables
from adapt.data.spans import window_starts
from adapt.errors import StrategyError
from adapt.options import TaskOptions
from adapt.pretrained import hub
from adapt.tasks import TASKS, span_scores
from tests.helpers import tiny

SPAN = TASKS["span"]
WORDS = [*tiny.PLAIN, *tiny.GOOD, "\U0001f600", "caf\u00e9", "\u597d"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)


@st.composite
def places(draw):
    """(a text, the characters of some of it)."""
    text = draw(TEXTS)
    start = draw(st.integers(0, len(text) - 1))
    end = draw(st.integers(start + 1, len(text)))
    return text, start, end


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 200))
def test_windows_hold_every_token_and_every_answer_of_half_a_window(count, room, stride):
    pieces = [
        range(start, min(start + room, count)) for start in window_starts(count, room, stride)
    ]
    assert set().union(*pieces) == set(range(count))
    assert all(len(piece) == room for piece in pieces[:-1])
    assert len(set(pieces)) == len(pieces)  # none is there twice
    for length in range(1, room // 2 + 1):
        for first in range(count - length + 1):
            assert any(first in piece and first + length - 1 in piece for piece in pieces)


@pytest.fixture(scope="module", params=["bert_mlm_tied", "gpt2_lm_tied"])
def encoder(request, tmp_path_factory):
    return hub.load(tiny.checkpoint(tmp_path_factory.mktemp(request.param) / "it", request.param))


def read(encoder, text, spans, question=None, max_length=16, stride=4):
    """The windows of a text, as examples."""
    tokenizer = encoder.tokenizer.replaced(max_length=max_length, stride=stride)
    encoder = dataclasses.replace(encoder, tokenizer=tokenizer)
    columns = {"text": [text]} | ({"question": [question]} if question else {})
    table = tables.from_columns(columns, "some.csv")
    part = SPAN.examples(encoder, table, list(columns), np.array([spans]))
    return SPAN.pair_examples(part, seed=0)


@settings(max_examples=40, deadline=None)
@given(places(), st.sampled_from([None, "so a film"]), st.integers(1, 9))
def test_a_span_in_a_window_is_the_right_characters_of_the_text(encoder, place, question, stride):
    text, start, end = place
    if not text[start:end].strip():
        return
    part = read(encoder, text, [start, end], question, max_length=20, stride=stride)
    labels, file = part.labels, part.labels.file
    assert len(part) == file.windows.counts[0]
    assert part.file_sequences.lengths.max() <= 20
    # Together the windows have every token of the text.
    whole = read(encoder, text, [start, end], question, max_length=24, stride=0)
    uncut = encoder.tokenizer.uncut.encode(*((question, text) if question else (text,)))
    of_text = {
        span
        for span, n in zip(uncut.offsets, uncut.sequence_ids, strict=True)
        if n == bool(question)
    }
    assert {tuple(span) for span in file.offsets.values.tolist() if span[0] >= 0} == of_text
    assert len(whole) == 1
    # Where a window has the answer, its tokens begin and end with its characters.
    targets = np.asarray(labels)
    for number, (first, last) in enumerate(targets.tolist()):
        if first < 0:
            continue
        found_start, found_end, found = labels.text(number, first, last)
        assert text[found_start:found_end] == found
        assert found_start <= start + len(text[start:end]) - len(text[start:end].lstrip())
        assert found_end >= start + len(text[start:end].rstrip())
        logits = np.full((len(part), 2, 24), -9.0, np.float32)
        logits[number, 0, first] = logits[number, 1, last] = 9
        assert span_scores.best_answers(logits, labels).spans == [(found_start, found_end, found)]


def test_a_window_without_the_answer_says_nothing_unless_questions_may_have_none(encoder):
    text = " ".join(["the film was so good"] * 8)
    place = [text.rindex("good"), text.rindex("good") + 4]
    part = read(encoder, text, place, "so a film")
    says = np.asarray(part.labels)[:, 0] >= 0
    assert 0 < says.sum() < len(part)
    assert len(SPAN.training_examples(part)) == says.sum()


@pytest.mark.parametrize("encoder", ["bert_mlm_tied"], indirect=True)
def test_in_a_file_with_questions_without_an_answer_such_a_window_says_the_first_token(encoder):
    text = " ".join(["the film was so good"] * 8)
    place = [text.rindex("good"), text.rindex("good") + 4]
    encoder = dataclasses.replace(
        encoder, tokenizer=encoder.tokenizer.replaced(max_length=16, stride=4)
    )
    columns = {"text": [text, text], "question": ["so a film", "the plot"]}
    table = tables.from_columns(columns, "some.csv")
    rows = SPAN.examples(encoder, table, list(columns), np.array([place, [-1, -1]]))
    assert SPAN.strata(rows).tolist() == [0, 1]
    part = SPAN.pair_examples(dataclasses.replace(rows, weights=np.array([2.0, 3.0])), seed=0)
    targets = np.asarray(part.labels)
    first, second = np.split(targets, [rows.windows.counts[0]])
    assert (second == 0).all()
    assert ((first == 0).all(1) | (first > 0).all(1)).all() and (first > 0).any()
    assert part.weights.tolist() == [2.0] * len(first) + [3.0] * len(second)
    assert len(SPAN.training_examples(part)) == len(part)
    # A drawn row brings all of its windows, and no other.
    assert len(SPAN.pair_examples(rows.take(np.array([1])), seed=0)) == len(second)


@pytest.mark.parametrize("encoder", ["gpt2_lm_tied"], indirect=True)
def test_an_encoder_without_a_first_token_learns_no_questions_without_an_answer(encoder):
    with pytest.raises(StrategyError, match=r"some\.csv: row 1 has no answer"):
        read(encoder, "the film", [-1, -1], "so a film")


def test_the_stride_is_of_spans_and_travels_with_the_tokenizer(encoder):
    chosen = SPAN.with_options(encoder, TaskOptions(stride=5), [])
    assert chosen.tokenizer.stride == 5 and encoder.tokenizer.stride is None
    assert SPAN.with_options(chosen, TaskOptions(), []).tokenizer.stride == 5
    assert SPAN.with_options(encoder, TaskOptions(), []).tokenizer.stride == 128
    with pytest.raises(StrategyError, match="stride"):
        TASKS["classification"].with_options(encoder, TaskOptions(stride=5), [])

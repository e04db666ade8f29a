"""Pairs of sentences: what of a text they are made of, and that they are the same wherever they are made."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapt.data import tables
from adapt.errors import DataError, StrategyError
from adapt.objectives import documents
from adapt.objectives.documents import Documents, Pairs, Special
from adapt.pretrained import hub
from adapt.ragged import ragged

SPECIAL = Special(*(np.array([number], np.int32) for number in (-1, -2, -3)))


def numbered(lengths: list[list[int]]) -> Documents:
    """Documents of sentences of these lengths, whose tokens are their places."""
    of_sentence = [length for document in lengths for length in document]
    values = np.arange(sum(of_sentence))
    document = np.repeat(np.arange(len(lengths)), [len(document) for document in lengths])
    return Documents(ragged(np.split(values, np.cumsum(of_sentence)[:-1])), document)


texts = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=2, max_size=5)


@given(texts, st.booleans(), st.integers(0, 3))
def test_pairs_are_whole_neighbours_or_a_part_from_elsewhere(lengths, swaps, number):
    made = numbered(lengths)
    chunks = made.chunks(12)
    pairs, labels = Pairs(made, chunks, SPECIAL, swaps, seed=1).of_pass(number)
    again, _ = Pairs(made, chunks, SPECIAL, swaps, seed=1).of_pass(number + 1)
    np.testing.assert_array_equal(pairs.lengths, again.lengths)
    starts = made.sentences.starts.tolist()
    first_of = np.repeat(made.document, made.sentences.lengths)
    for index, (first, last) in enumerate(chunks):
        ids = pairs[index]
        assert ids[0] == -1 and ids[-1] == -3 and len(ids) <= 12 + 3
        one, two = np.split(ids[1:-1], [pairs.second_start[index] - 2])
        one = one[one != -2]
        two = two[two != -2]
        chunk = np.arange(starts[first], made.ends[last - 1])
        assert len(one) and len(two) and len(one) + len(two) == len(chunk)
        if not labels[index]:
            np.testing.assert_array_equal(np.concatenate([one, two]), chunk)
            assert two[0] in starts
        elif swaps:
            np.testing.assert_array_equal(np.concatenate([two, one]), chunk)
        else:
            np.testing.assert_array_equal(one, chunk[: len(one)])
            assert two[0] in starts
            assert made.document[first] not in first_of[two]


@given(texts, st.data())
def test_no_text_of_what_is_held_out_is_in_a_training_pair(lengths, data):
    made = numbered(lengths)
    chunks = made.chunks(12)
    size = {"min_size": len(chunks), "max_size": len(chunks)}
    held_out = np.array(data.draw(st.lists(st.booleans(), **size)), bool)
    pairs = Pairs(made, chunks[~held_out], SPECIAL, swaps=False, seed=1)
    training = pairs.without(chunks[held_out])
    hypothesis.assume(len(training.chunks) and not training.documents.is_one)
    own = [np.arange(made.sentences.starts[a], made.ends[b - 1]) for a, b in chunks[held_out]]
    for number in range(3):
        tokens, labels = training.of_pass(number)
        assert not np.isin(tokens.values, np.concatenate([[], *own])).any()
        before, before_labels = pairs.of_pass(number)
        np.testing.assert_array_equal(labels, before_labels)
        for index in np.flatnonzero(labels == 0):
            np.testing.assert_array_equal(tokens[index], before[index])


def test_second_halves_of_training_come_from_the_sentences_that_are_not_held_out(bert, monkeypatch):
    drawn_from = []
    elsewhere = Documents.elsewhere

    def spied(self, *draws):
        drawn_from.append(len(self.document))
        return elsewhere(self, *draws)

    monkeypatch.setattr(Documents, "elsewhere", spied)
    table = tables.from_columns({"text": ["a film", "the plot", ""] * 20}, "texts")
    training, held_out = documents.read_pairs(bert, table, 0, swaps=False)
    assert (len(training), len(held_out)) == (19, 1)
    assert drawn_from == [38, 40]


@given(texts)
def test_only_the_end_of_a_document_of_which_every_pair_is_full_is_left_out(lengths):
    made = numbered(lengths)
    chunks = made.chunks(12)
    numbers = np.concatenate([[], *(np.arange(*chunk) for chunk in chunks)])
    assert len(np.unique(numbers)) == len(numbers)
    ends = np.flatnonzero(np.append(np.diff(made.document), 1))
    for left in np.setdiff1d(np.arange(len(made.document)), numbers):
        assert left in ends
        before = chunks[chunks[:, 1] == left]
        first, _ = made.bounds(left)
        assert left == first or before[0, 1] - before[0, 0] == 2


def test_the_last_sentence_is_joined_to_the_one_before_it():
    assert numbered([[4, 4, 4, 6]]).chunks(12).tolist() == [[0, 2], [2, 4]]
    assert numbered([[4, 4, 4, 4, 4, 6, 6]]).chunks(12).tolist() == [[0, 3], [3, 5], [5, 7]]
    assert numbered([[6, 6, 6], [6, 6]]).chunks(12).tolist() == [[0, 2], [3, 5]]


def test_what_is_left_out_is_counted(bert, caplog):
    table = tables.from_columns({"text": ["a film", "the plot", "", "a film"] * 2}, "texts")
    documents.read_pairs(bert, table, 0, swaps=True)
    assert "texts: 1 of 6 sentences make no pair" in caplog.text


def test_pairs_are_new_in_every_pass_and_half_of_them_are_changed():
    made = numbered([[2, 3, 2, 3]] * 100)
    pairs = Pairs(made, made.chunks(12), SPECIAL, swaps=True, seed=0)
    one, labels = pairs.of_pass(0)
    other, others = pairs.of_pass(1)
    assert 0.35 < labels.mean() < 0.65 and not np.array_equal(labels, others)
    assert not np.array_equal(one.values, other.values)
    again, _ = dataclasses.replace(pairs).of_pass(0)
    np.testing.assert_array_equal(one.values, again.values)


@pytest.fixture(scope="module")
def bert(inputs):
    return hub.load(inputs.checkpoint("bert_pretraining", 1))


def test_a_pair_reads_as_the_tokenizer_writes_it(bert):
    table = tables.from_columns({"text": ["the film", "was good", "", "a plot"] * 2}, "texts")
    training, held_out = documents.read_pairs(bert, table, 0, swaps=False)
    assert len(training) + len(held_out) == 2
    passes = (training.of_pass(number) for number in range(20))
    examples = next(made for made in passes if (made.labels == 0).any())
    (unchanged,) = np.nonzero(examples.labels == 0)
    written = bert.tokenizer.backend.encode("the film", "was good")
    tokens = examples.file_sequences.tokens
    assert tokens[int(unchanged[0])].tolist() == written.ids
    assert tokens.second_start[0] == written.type_ids.index(1)


@pytest.mark.parametrize(
    ("lines", "swaps", "named"),
    [
        (["the film", "", "a plot", ""], True, "0 pairs of neighbouring sentences"),
        (["the film"] * 30, False, "is one document"),
        (["the film", "a plot", "", "was good", "a film"], False, "beside what is held out"),
    ],
)
def test_a_text_without_pairs_is_refused(bert, lines, swaps, named):
    table = tables.from_columns({"text": lines}, "texts")
    with pytest.raises(DataError, match=named):
        documents.read_pairs(bert, table, 0, swaps)


def test_pairs_need_room(bert):
    narrow = dataclasses.replace(bert, tokenizer=bert.tokenizer.cut_to(4))
    table = tables.from_columns({"text": ["the film"] * 4}, "texts")
    with pytest.raises(StrategyError, match="give 5 or more"):
        documents.read_pairs(narrow, table, 0, swaps=True)

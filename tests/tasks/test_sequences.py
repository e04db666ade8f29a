"""Rows as the sequences that a task takes: which word, which character a token is of; what is cut off; pairs of a few."""

import dataclasses

import numpy as np
import pytest

from adapt.data import tables
from adapt.errors import DataError
from adapt.pretrained import hub
from adapt.ragged import ragged
from adapt.tasks import TASKS
from adapt.tasks.setfit import class_pairs
from adapt.tasks.tags import tokenize_words, word_chunks
from tests.helpers import tiny


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """BERT, whose words are `film`, `plot`, ... with `##`, and GPT-2, to which a letter is a token; cut to 12 tokens."""
    root, found = tmp_path_factory.mktemp("encoders"), {}
    for case in ("bert_mlm_tied", "gpt2_lm_tied"):
        folder = tiny.checkpoint(root / case, case)
        if case == "bert_mlm_tied":
            (folder / "vocab.txt").write_text(
                "\n".join([*tiny.SPECIAL, *tiny.PLAIN, *tiny.GOOD, "##s", "##plot"])
            )
        loaded = hub.load(folder)
        assert loaded.tokenizer is not None
        found[case[:4]] = dataclasses.replace(loaded, tokenizer=loaded.tokenizer.cut_to(12))
    return found


def make(encoder, table, columns: list[str], task: str, labels):
    return TASKS[task].examples(encoder, table, columns, labels)


def make_spans(encoder, table, columns: list[str], labels, stride: int = 0):
    """Spans by window, as they are trained on; a stride of 0 cuts texts."""
    tokenizer = encoder.tokenizer.replaced(stride=stride)
    encoder = dataclasses.replace(encoder, tokenizer=tokenizer)
    return TASKS["span"].pair_examples(make(encoder, table, columns, "span", labels), seed=0)


def pieces_of(encoder, tokens) -> list[str]:
    return [encoder.tokenizer.backend.id_to_token(int(token)) for token in tokens]


# Words


SENTENCES = [["films", "a", "filmplot", "the"], ["was"], ["\u200b", "was"], ["so", "so"]]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_every_token_knows_its_word_also_where_a_word_is_several_tokens(encoders, family):
    encoded, word = tokenize_words(encoders[family].tokenizer, SENTENCES)
    tokens = encoded.tokens
    assert encoded.long.truncated == (family == "gpt2")  # 5 + 1 + 6 of the 8 letters
    for row, words in enumerate(SENTENCES):
        own = word[tokens.starts[row] : tokens.starts[row] + tokens.lengths[row]]
        pieces = pieces_of(encoders[family], tokens[row])
        whole = [
            "".join(p for p, at in zip(pieces, own, strict=True) if at == n)
            for n in range(len(words))
        ]
        found = [text.replace("##", "").replace("Ġ", "") for text in whole]
        assert found == (
            [each.strip("\u200b") for each in words]
            if row or family == "bert"
            else ["films", "a", "filmpl", ""]
        )
        assert [p for p, at in zip(pieces, own, strict=True) if at < 0] == (
            ["[CLS]", "[SEP]"] * (family == "bert")
        )


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_label_of_a_word_is_that_of_its_first_token(encoders, family, caplog):
    """A word that is cut off, or that the tokenizer drops, has none, and each is counted as such."""
    table = tables.from_columns({"words": SENTENCES}, "some.csv")
    labels = ragged([np.arange(len(words)) + 10 * row for row, words in enumerate(SENTENCES)])
    examples = make(encoders[family], table, ["words"], "tags", labels)
    lost = 1 + (family == "gpt2")  # the character without width, and `the`
    cut, dropped = caplog.messages if family == "gpt2" else ("", *caplog.messages)
    assert not cut or "1 of 9 words lie beyond the 12 tokens" in cut
    assert "no token of 1 of 9 words, such as '\\u200b'" in dropped
    assert examples.num_outputs == len(examples.targets) == 9 - lost
    for row, words in enumerate(SENTENCES):
        pieces = pieces_of(encoders[family], examples.file_sequences.tokens[row])
        for place, label in examples.labels[row]:
            first = pieces[place].replace("Ġ", "") or pieces[place + 1]
            assert words[label - 10 * row].startswith(first)


def test_labels_and_words_are_as_many(encoders):
    table = tables.from_columns({"words": [["a"], ["a", "film"]]}, "some.csv")
    for row, counts in ((1, [2, 2]), (2, [1, 1])):
        with pytest.raises(
            DataError, match=f"some.csv: row {row} has {row} words and {counts[0]} labels"
        ):
            make(
                encoders["bert"],
                table,
                ["words"],
                "tags",
                ragged([np.zeros(n, int) for n in counts]),
            )


@pytest.mark.parametrize("words", [[], None, "", ["a", ""], ["a", None], [1]])
def test_a_row_without_words_is_named(words):
    table = tables.from_columns(
        {"words": [words]} if isinstance(words, list) else {"words": ["a", words]}, "some.csv"
    )
    with pytest.raises(DataError, match=r"some\.csv: row \d has no words in column 'words'"):
        list(word_chunks(table, "words"))


# Spans


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("question", ["so a film", None])
def test_a_span_is_the_tokens_that_its_characters_are_in(encoders, family, question, caplog):
    text = "the film was so good"
    columns = {"text": [text] * 2, "question": [question or ""] * 2}
    at = text.index("film"), text.index("film") + 4
    names = ["text", "question"] if question else ["text"]
    wide = dataclasses.replace(encoders[family], tokenizer=encoders[family].tokenizer.cut_to(40))
    labels = np.array([at, (at[0] - 1, at[1] + 1)])  # spaces at its ends do not matter
    examples = make_spans(wide, tables.from_columns(columns, "some.csv"), names, labels)
    tokens = np.asarray(examples.labels)
    assert not caplog.messages and tokens[0].tolist() == tokens[1].tolist()
    start, end = tokens[0]
    found = "".join(pieces_of(wide, examples.file_sequences.tokens[0][start : end + 1]))
    assert found.replace("Ġ", "") == "film"
    if question:  # it goes first
        turn = examples.file_sequences.tokens.second_start[0] if family == "bert" else 0
        assert start >= turn and pieces_of(wide, examples.file_sequences.tokens[0])[:2] != [
            "[CLS]",
            "the",
        ]


def test_the_text_is_cut_and_not_the_question_and_a_span_in_what_is_cut_is_lost(encoders):
    text, question = "the film was so good " * 3, "a film so warm"
    table = tables.from_columns({"text": [text], "question": [question]}, "some.csv")
    span = np.array([[len(text) - 5, len(text) - 1]])
    examples = make_spans(encoders["bert"], table, ["text", "question"], span)
    assert np.asarray(examples.labels).tolist() == [[-1, -1]] and examples.long.truncated == 1
    pieces = pieces_of(encoders["bert"], examples.file_sequences.tokens[0])
    assert pieces == [
        "[CLS]",
        *question.split(),
        "[SEP]",
        "the",
        "film",
        "was",
        "so",
        "good",
        "[SEP]",
    ]
    long = tables.from_columns({"text": [text], "question": [text]}, "some.csv")
    with pytest.raises(
        DataError,
        match="row 1: its question leaves no room for its text in the 12",
    ):
        make_spans(encoders["bert"], long, ["text", "question"], np.array([[0, 3]]))
    assert (
        encoders["bert"].tokenizer.encode([(text, "a")])[1] == 1
    )  # the tokenizer itself cuts as it did


# Several sequences a row


def test_a_choice_is_as_many_pairs_and_a_contrast_two_texts(encoders):
    table = tables.from_columns(
        {"a": ["the film", "so"], "b": ["was good", "a"], "c": ["a plot", "very"]}, "some.csv"
    )
    choices = make(encoders["bert"], table, ["a", "b", "c"], "choice", np.zeros(2, np.int32))
    assert choices.rows.tolist() == [[0, 1], [2, 3]]
    assert pieces_of(encoders["bert"], choices.file_sequences.tokens[1]) == [
        "[CLS]",
        "the",
        "film",
        "[SEP]",
        "a",
        "plot",
        "[SEP]",
    ]
    contrast = make(encoders["bert"], table, ["a", "b"], "contrastive", np.ones(2, np.int32))
    assert (
        contrast.rows.tolist() == [[0, 1], [2, 3]]
        and contrast.file_sequences.tokens.second_start is None
    )
    assert pieces_of(encoders["bert"], contrast.file_sequences.tokens[3]) == ["[CLS]", "a", "[SEP]"]
    pair = make(encoders["bert"], table, ["a", "b"], "classification", np.zeros(2, np.int32))
    assert pair.rows.tolist() == [0, 1] and pair.file_sequences.tokens.second_start.tolist() == [
        4,
        3,
    ]


def test_the_types_are_in_the_digest_of_the_inputs(encoders):
    """`a, b | c` and `a | b, c` have other types, though a tokenizer without [SEP] would make the same ids of them."""
    one = make(
        encoders["gpt2"],
        tables.from_columns({"a": ["the"], "b": ["film"]}, "x"),
        ["a", "b"],
        "classification",
        np.zeros(1),
    )
    other = make(
        encoders["gpt2"],
        tables.from_columns({"a": ["th"], "b": ["efilm"]}, "x"),
        ["a", "b"],
        "classification",
        np.zeros(1),
    )
    assert one.file_sequences.tokens.values.tolist() == other.file_sequences.tokens.values.tolist()
    assert one.file_sequences.digest != other.file_sequences.digest


def test_setfit_pairs_each_text_with_as_many_of_its_class_as_of_others():
    labels = np.array([0, 1, 0, 2, 1, 0])
    rows, same = class_pairs(labels, seed=0, num_pairs=5)
    assert (
        len(rows) == len(same) == 5 * 5 + 6 * 5
    )  # the only text of class 2 has no partner of its own
    assert (rows[:, 0] != rows[:, 1]).all()
    assert ((labels[rows[:, 0]] == labels[rows[:, 1]]) == same).all()
    again, other = class_pairs(labels, 0, 5)[0], class_pairs(labels, 1, 5)[0]
    assert (again == rows).all() and (other != rows).any()

"""Texts that a vocabulary does not have are said, with their share and an example."""

import logging

import pytest

from adapt import features
from adapt.pretrained import hub
from tests.helpers import tiny


@pytest.fixture
def loaded(tmp_path):
    return hub.load(tiny.checkpoint(tmp_path / "model", "bert_bare_pooler"))


def said(caplog, function, *arguments) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "adapt"):
        function(*arguments)
    return [record.getMessage() for record in caplog.records]


def test_texts_of_other_letters_are_said(loaded, caplog):
    texts = ["the film was good", "Привет мир", "the cast 映画", "映画 end"]
    (line,) = said(caplog, features.encode, loaded, texts)
    assert line.startswith("2 texts are mostly [UNK], of 4 tokenized so far (80% of the tokens)")
    assert "'Привет мир'" in line


def test_half_of_a_text_is_not_most_of_it(loaded, caplog):
    assert not said(caplog, features.encode, loaded, ["the film мир мир"])
    assert said(caplog, features.encode, loaded, ["the мир мир"])
    (note,) = said(caplog, features.encode, loaded, ["", "the film"])
    assert "is empty" in note and "[UNK]" not in note


def test_it_is_said_again_when_there_are_twice_as_many(loaded, caplog):
    lines = []
    for _ in range(8):
        lines += said(caplog, features.encode, loaded, ["мир"])
    starts = [line.split(" mostly")[0] for line in lines]
    assert starts == ["1 text is", "2 texts are", "4 texts are", "8 texts are"]


def test_pairs_count_both_texts(loaded, caplog):
    assert not said(caplog, loaded.tokenizer.encode, [("the film was", "мир")])
    (line,) = said(caplog, loaded.tokenizer.encode, [("the", "мир мир мир мир")])
    assert "'the мир мир мир мир'" in line


def test_a_byte_level_tokenizer_knows_everything(tmp_path, caplog):
    loaded = hub.load(tiny.checkpoint(tmp_path / "model", "gpt2_bare"))
    assert loaded.tokenizer.unknown.unknown is None
    assert not said(caplog, features.encode, loaded, ["the film"])

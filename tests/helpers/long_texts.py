"""Texts of which some are long, and how they are read."""

from tests.helpers import tiny

SHORT, LABELS = map(list, zip(*tiny.sentences(30), strict=True))
SENTENCES = [text for text, _ in tiny.sentences(40, seed=2)]
# Some have more than the 12 tokens of the tiny checkpoint, up to six windows of them.
TEXTS = list(SHORT)
TEXTS[3] = " ".join(SENTENCES[:4])
TEXTS[4] = " ".join(SENTENCES[4:14])
TEXTS[11] = " ".join(SENTENCES[14:20])
TEXTS[20] = " ".join(SENTENCES[20:26])
LONG = (3, 4, 11, 20)

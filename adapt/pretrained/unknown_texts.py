"""Texts whose letters a vocabulary does not have: counted, and said."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.ragged import Ragged

logger = logging.getLogger(__name__)

MOSTLY = 0.5  # of the tokens of a text; more of them unknown, and it is said
SHOWN = 40  # letters of an example


class UnknownTexts:
    """Counts the texts of one tokenizer that become mostly its unknown token.

    It is said at the first of them, and whenever there are twice as many as when it was said last.
    ``unknown`` is the id and the spelling of that token; None for a tokenizer that has none.
    """

    def __init__(self, unknown: tuple[int, str] | None, num_special: int):
        self.unknown = unknown
        self.num_special = num_special
        self.texts = 0
        self.mostly_unknown = 0
        self.said_at = 0

    def count(
        self, tokens: Ragged, texts: Sequence[Any], windows: np.ndarray | None = None
    ) -> None:
        """Count ``texts``, or pairs or lists of words, which became ``tokens``.

        ``windows`` says how many sequences each text has; None: one.
        """
        self.texts += len(texts)
        if self.unknown is None or not len(tokens):
            return
        number, spelling = self.unknown
        is_unknown = tokens.values == number
        if not is_unknown.any():
            return
        sums = np.concatenate([[0], np.cumsum(is_unknown)])
        ends = tokens.starts + tokens.lengths
        counts = sums[ends] - sums[tokens.starts]
        own = np.maximum(tokens.lengths - self.num_special, 1)
        rows = np.flatnonzero(counts > MOSTLY * own)
        if windows is not None:
            rows = np.unique(np.repeat(np.arange(len(texts)), windows)[rows])
        if not len(rows):
            return
        self.mostly_unknown += len(rows)
        if self.mostly_unknown < 2 * self.said_at:
            return
        self.said_at = self.mostly_unknown
        share = counts[counts > MOSTLY * own].sum() / own[counts > MOSTLY * own].sum()
        example = texts[int(rows[0])]
        shown = example if isinstance(example, str) else " ".join(map(str, example))
        which = "1 text is" if self.mostly_unknown == 1 else f"{self.mostly_unknown:,} texts are"
        logger.warning(
            f"{which} mostly {spelling}, of {self.texts:,} tokenized so far ({share:.0%} of the "
            f"tokens), such as {shown[:SHOWN]!r}: the vocabulary does not have what they are made of"
        )


def unknown_token(backend: Any) -> tuple[int, str] | None:
    """The id and the spelling of a tokenizer's unknown token; None where it has none, as a
    byte-level one.
    """
    spelling = getattr(backend.model, "unk_token", None)
    if not spelling:
        return None
    number = backend.token_to_id(spelling)
    return None if number is None else (number, spelling)

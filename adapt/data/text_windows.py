"""Texts that are cut into windows: which sequences of a file are the windows of which text.

A text's vector is the mean of its windows' vectors. In training all windows of a text are in one
batch, which says of which text each is. In an evaluation they come one by one, and
:func:`adapt.training.loop.evaluate` takes the mean of their outputs: the same, since a head is
linear in the vector.
"""

import dataclasses
import functools

import numpy as np

from adapt.data.packing import Arrays, pad_to
from adapt.ragged import concat_ranges


@dataclasses.dataclass(frozen=True)
class TextWindows:
    """The windows of the texts of a file: ``counts`` int64 [N], those of a text one after the
    other.

        TextWindows(np.array([1, 3])).sequences(np.array([1, 0]))      # [1, 2, 3, 0]
    """

    counts: np.ndarray

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """The first window of each text, int64 [N]."""
        return np.cumsum(self.counts) - self.counts

    def sequences(self, texts: np.ndarray) -> np.ndarray:
        """The windows of some texts, those of each one after the other, int64 [their number]."""
        return concat_ranges(self.starts[texts], self.counts[texts])

    def owners(self, texts: np.ndarray) -> np.ndarray:
        """Which of some texts has each of :meth:`sequences`, as a number of ``texts``."""
        return np.repeat(np.arange(len(texts)), self.counts[texts])

    def mean(self, vectors: np.ndarray) -> np.ndarray:
        """The mean over each text's windows: [windows, ...] -> [N, ...]."""
        shape = (-1, *[1] * (vectors.ndim - 1))
        return np.add.reduceat(vectors, self.starts) / self.counts.reshape(shape).astype(np.float32)

    def arrays(self, texts: np.ndarray, slots: int, window_slots: int) -> Arrays:
        """What a batch says of the windows of its texts: ``window_of`` int32 [window_slots], the
        text of each (``slots``: none), and ``windows`` float32 [slots], how many a text has.
        """
        owners = self.owners(texts)
        window_of = np.full(window_slots, slots, np.int32)
        window_of[: len(owners)] = owners
        counts = self.counts[texts].astype(np.float32)
        return {"window_of": window_of, "windows": pad_to(counts, slots)}

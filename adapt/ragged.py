"""Sequences of different lengths in one array."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one array: example n is ``values[starts[n]:starts[n] + lengths[n]]``."""

    values: np.ndarray  # [total, ...]: int32 token ids, or token states [total, D]
    starts: np.ndarray  # int64 [N]
    lengths: np.ndarray  # int64 [N]
    second_start: np.ndarray | None = None  # int64 [N], of pairs: where the second text begins

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        """One sequence; for an array of indices, see :meth:`take`."""
        if isinstance(index, np.ndarray):
            return self.take(index)
        return self.values[self.starts[index] : self.starts[index] + self.lengths[index]]

    def take(self, index: np.ndarray) -> "Ragged":
        """The examples ``index``, in that order; the values are shared, not copied."""
        second_start = None if self.second_start is None else self.second_start[index]
        return Ragged(self.values, self.starts[index], self.lengths[index], second_start)

    def flat_indices(self, index: np.ndarray) -> np.ndarray:
        """Where in ``values`` the elements of the examples ``index`` are, one after the other: int64 [total of them]."""
        return concat_ranges(self.starts[index], self.lengths[index])


def concat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[0..length) from each start, one after the other: int64 [sum of lengths]."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def ragged(sequences: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
    """Pack sequences of ids into a :class:`Ragged` of int32."""
    lengths = np.array([len(s) for s in sequences], np.int64)
    values = (
        np.concatenate([np.asarray(s, np.int32) for s in sequences])
        if sequences
        else np.zeros(0, np.int32)
    )
    return Ragged(values, np.cumsum(lengths) - lengths, lengths)

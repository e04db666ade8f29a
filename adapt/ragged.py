"""Sequences of different lengths in one array."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths in one array: sequence n is ``values[starts[n]:starts[n] +
    lengths[n]]``.

        ragged([[4, 5], [6]]).take(np.array([1, 0]))[0]      # [6]
    """

    values: np.ndarray  # [total, ...]: int32 token ids, or token states [total, D]
    starts: np.ndarray  # int64 [N]
    lengths: np.ndarray  # int64 [N]
    second_start: np.ndarray | None = None  # int64 [N], for pairs: where the second text begins

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        """One sequence; for an array of indices, see :meth:`take`."""
        if isinstance(index, np.ndarray):
            return self.take(index)
        start = self.starts[index]
        return self.values[start : start + self.lengths[index]]

    def take(self, index: np.ndarray) -> "Ragged":
        """The sequences ``index``, in that order; the values are shared, not copied."""
        second_start = None if self.second_start is None else self.second_start[index]
        return dataclasses.replace(
            self,
            starts=self.starts[index],
            lengths=self.lengths[index],
            second_start=second_start,
        )

    def flat_indices(self, index: np.ndarray) -> np.ndarray:
        """Where in ``values`` the elements of the sequences ``index`` are, one after the other:
        int64 [their total].
        """
        return concat_ranges(self.starts[index], self.lengths[index])


def concat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ..., start + length - 1 of every start, one after the other: int64 [sum of
    lengths].
    """
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def ragged(sequences: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
    """Sequences of ids as a :class:`Ragged` of int32."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    values = np.zeros(0, np.int32)
    if all(type(sequence) is list for sequence in sequences):
        # Half the time of an array for each of them.
        values = np.fromiter(itertools.chain.from_iterable(sequences), np.int32, lengths.sum())
    elif sequences:
        values = np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences])
    return Ragged(values, np.cumsum(lengths) - lengths, lengths)


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """The sequences of all parts, one after the other."""
    values = np.concatenate([part.values for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    seconds = [part.second_start for part in parts if part.second_start is not None]
    second_start = np.concatenate(seconds) if seconds else None
    return Ragged(values, np.cumsum(lengths) - lengths, lengths, second_start)

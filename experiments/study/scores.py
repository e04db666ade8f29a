"""A score with its uncertainty: the mean over seeds, and its bootstrap over seeds and examples.

Scores of the same seeds on the same examples are paired: their resamples are of the same draws,
so the interval of a difference is that of a paired bootstrap.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from adapt.comparison import intervals


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its resamples, float64 [draws].

    Scores add, subtract and scale, and their resamples with them:

        (kept - dropped).interval
        (top_quarter - 0.9 * full).interval
    """

    value: float
    resamples: np.ndarray
    drawn_from: tuple[int, int]  # seeds and examples

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95% of the resamples."""
        return intervals.interval(self.resamples)

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"value": self.value, "interval": list(self.interval)}

    def __add__(self, other: "Score") -> "Score":
        if self.drawn_from != other.drawn_from:
            raise ValueError(
                f"scores of {self.drawn_from} and {other.drawn_from} seeds and examples "
                "are not paired"
            )
        if len(self.resamples) != len(other.resamples):
            raise ValueError(
                f"scores of {len(self.resamples)} and {len(other.resamples)} resamples "
                "are not paired"
            )
        return Score(self.value + other.value, self.resamples + other.resamples, self.drawn_from)

    def __mul__(self, factor: float) -> "Score":
        return Score(self.value * factor, self.resamples * factor, self.drawn_from)

    __rmul__ = __mul__

    def __sub__(self, other: "Score") -> "Score":
        return self + -1.0 * other


def score_of(correct: np.ndarray) -> Score:
    """The score of what each example counts, [seeds, examples]: 1 where an answer is right.

    The draws are those of :func:`adapt.comparison.intervals.resampled` for one test set: seeds
    with replacement, and one draw of examples for all of them.
    """
    return Score(float(correct.mean()), resampled(correct).mean(1), correct.shape)


def spread_of(correct: np.ndarray) -> Score:
    """The standard deviation over seeds of their scores, of what each example counts, [seeds,
    examples].

    Its resamples are of the same draws as those of :func:`score_of`. Seeds that are drawn twice
    make them smaller than the value, so an interval of few seeds lies low.
    """
    value = correct.mean(1).std(ddof=1)
    return Score(float(value), resampled(correct).std(1, ddof=1), correct.shape)


def resampled(correct: np.ndarray) -> np.ndarray:
    """The scores of the seeds of every draw, float64 [draws, seeds]."""
    seeds, examples = correct.shape
    random = np.random.default_rng(intervals.SEED)
    scores = np.zeros((intervals.DRAWS, seeds))
    for draw in range(intervals.DRAWS):
        chosen = random.integers(seeds, size=seeds)
        rows = random.integers(examples, size=examples)
        scores[draw] = correct[:, rows].mean(1)[chosen]
    return scores


def accuracy_of(outputs: Sequence[np.ndarray], targets: np.ndarray) -> Score:
    """The accuracy of logits [examples, classes], one array a seed, on one test set."""
    right = [of_seed.argmax(-1) == targets for of_seed in outputs]
    return score_of(np.stack(right).astype(np.float64))


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean of scores of as many seeds and examples."""
    total = scores[0]
    for score in scores[1:]:
        total = total + score
    return total * (1 / len(scores))


def with_interval(score: Score, sign: bool = False) -> str:
    """``.712 (.688 to .735)``; with ``sign``, of a difference, ``+.024 (-.003 to +.051)``."""
    form = "+.3f" if sign else ".3f"
    low, high = score.interval
    return f"{score.value:{form}} ({low:{form}} to {high:{form}})"

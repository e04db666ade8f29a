"""A score with its uncertainty: the mean over seeds, and what seeds and examples do to it.

Scores of the same seeds on the same examples are paired: their resamples are of the same draws and
their seeds are compared one by one, so the interval of a difference is that of pairs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapt.comparison import intervals

CONFIDENCE = 0.95
NO_VARIANCE = 1e-24  # what rounding leaves of none


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean with its resamples, float64 [draws], and its values by seed, float64 [seeds].

    Scores add, subtract and scale, and their resamples and values by seed with them:

        (kept - dropped).interval
        (top_quarter - 0.9 * full).interval
    """

    value: float
    resamples: np.ndarray
    by_seed: np.ndarray
    drawn_from: tuple[int, int]  # seeds and examples

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of 95%."""
        return self.interval_of(CONFIDENCE)

    def interval_of(self, confidence: float) -> tuple[float, float]:
        """The t interval of a confidence.

        The variance of the resamples is that of a mean of drawn seeds, which is too small by
        (n - 1) / n where there are n: for few seeds that matters. So their part is replaced by
        s ** 2 / n, with s the standard deviation over seeds, and the degrees of freedom are those
        of Welch and Satterthwaite, between the seeds' n - 1 and the examples'.
        """
        from scipy import stats

        seeds, examples = self.drawn_from
        of_seeds = self.by_seed.var(ddof=1) / seeds if seeds > 1 else 0.0
        of_examples = max(np.nanvar(self.resamples) - of_seeds * (seeds - 1) / seeds, 0.0)
        variance = of_seeds + of_examples
        if not variance > NO_VARIANCE:
            return self.value, self.value
        below = of_seeds**2 / max(seeds - 1, 1) + of_examples**2 / max(examples - 1, 1)
        freedom = variance**2 / below
        half = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance))
        return self.value - half, self.value + half

    def shifted(self, by: float) -> "Score":
        """The score plus a number that is known, such as a tolerance."""
        return Score(self.value + by, self.resamples + by, self.by_seed + by, self.drawn_from)

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"value": self.value, "interval": list(self.interval)}

    def __add__(self, other: "Score") -> "Score":
        draws = len(self.resamples), len(other.resamples)
        if self.drawn_from != other.drawn_from or draws[0] != draws[1]:
            raise ValueError(
                f"scores of {self.drawn_from} and {other.drawn_from} seeds and examples, in "
                f"{draws[0]} and {draws[1]} draws, are not paired"
            )
        return Score(
            self.value + other.value,
            self.resamples + other.resamples,
            self.by_seed + other.by_seed,
            self.drawn_from,
        )

    def __mul__(self, factor: float) -> "Score":
        return Score(
            self.value * factor, self.resamples * factor, self.by_seed * factor, self.drawn_from
        )

    __rmul__ = __mul__

    def __sub__(self, other: "Score") -> "Score":
        return self + -1.0 * other


def score_of(correct: np.ndarray) -> Score:
    """The score of what each example counts, [seeds, examples]: 1 where an answer is right.

    The draws are those of :func:`adapt.comparison.intervals.resampled` for one test set: seeds
    with replacement, and one draw of examples for all of them.
    """
    return Score(float(correct.mean()), resampled(correct), correct.mean(1), correct.shape)


def resampled(correct: np.ndarray) -> np.ndarray:
    """The mean score of every draw of seeds and examples, float64 [draws]."""
    seeds, examples = correct.shape
    random = np.random.default_rng(intervals.SEED)
    scores = np.zeros(intervals.DRAWS)
    for draw in range(intervals.DRAWS):
        chosen = random.integers(seeds, size=seeds)
        rows = random.integers(examples, size=examples)
        scores[draw] = correct[:, rows].mean(1)[chosen].mean()
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


def as_plain(scores: Any) -> dict[str, Any]:
    """Mappings to any depth of scores, or of else what has a ``plain`` form, as JSON has them."""
    if isinstance(scores, Mapping):
        return {str(key): as_plain(value) for key, value in scores.items()}
    return scores.plain


def with_interval(score: Score, sign: bool = False) -> str:
    """``.712 (.688 to .735)``; with ``sign``, of a difference, ``+.024 (-.003 to +.051)``."""
    form = "+.3f" if sign else ".3f"
    low, high = score.interval
    return f"{score.value:{form}} ({low:{form}} to {high:{form}})"

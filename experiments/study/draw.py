"""Scores in a figure: points with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.study.scores import Score


def points(
    axis: Any,
    positions: Sequence[float],
    scores: Sequence[Score],
    colour: str,
    label: str,
    line: str = "-",
) -> None:
    """Draw scores with the bars of their intervals, joined by a line ("" for none)."""
    values = np.array([score.value for score in scores])
    low, high = np.transpose([score.interval for score in scores])
    axis.errorbar(
        positions,
        values,
        np.maximum([values - low, high - values], 0),
        fmt=f"o{line}",
        color=colour,
        ms=4,
        lw=1.4,
        capsize=2,
        label=label,
    )

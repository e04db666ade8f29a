"""Checks on features on which somebody trains a head: are they numbers, of sizes alike?"""

from collections.abc import Iterator, Sequence

import numpy as np

from adapt.doctor.cases import FEW, FeaturesCase
from adapt.doctor.findings import Finding

# The standard deviation of the 95% quantile of dimensions over that of the 5% quantile: 1.3 in
# MiniLM and a tiny BERT. A head's rate, or its penalty, is the same for all dimensions.
MOST_UNEVEN = 30.0
# The median of |mean| / standard deviation: 0.4 in MiniLM, 1.3 in a tiny BERT.
MOST_OFFSET = 10.0
CONSTANT = 1e-6  # of a dimension's size; float32 leaves noise of about that
MOST_ROWS = 10_000  # evenly from all
SHOWN = 5  # rows and features of the evidence


def not_finite(case: FeaturesCase) -> Iterator[Finding]:
    """Features that are NaN or infinite: no head learns from them."""
    rows = []
    is_column = np.zeros(case.features.shape[1], bool)
    for start in range(0, len(case.features), MOST_ROWS):
        is_infinite = ~np.isfinite(case.features[start : start + MOST_ROWS])
        rows += (start + 1 + np.flatnonzero(is_infinite.any(1))).tolist()
        is_column |= is_infinite.any(0)
    if not rows:
        return
    columns = np.flatnonzero(is_column).tolist()
    yield Finding(
        severity="error",
        seen=f"{case.name}: {len(rows):,} of {len(case.features):,} rows (first {first(rows)}) are "
        f"NaN or infinite in {len(columns):,} of {len(is_column):,} features (first "
        f"{first(columns)})",
        cause="a computation that overflowed, or inputs or weights that are not finite",
        fix="compute these rows again in float32, and leave out those that stay as they are",
        certainty="possible",
        evidence={
            "rows": len(rows),
            "first": rows[:SHOWN],
            "columns": len(columns),
            "first_columns": columns[:SHOWN],
        },
    )


def first(numbers: Sequence[int]) -> str:
    """The first of some numbers: ``0, 1, 2, 3, 4, ...``."""
    more = ", ..." if len(numbers) > SHOWN else ""
    return ", ".join(str(number) for number in numbers[:SHOWN]) + more


def features_not_standardised(case: FeaturesCase) -> Iterator[Finding]:
    """Dimensions whose scales differ by orders of magnitude, or that lie far from 0: a head on them
    as they are learns the large ones alone.
    """
    found = moments(case)
    if found is None:
        return
    size, spread, is_constant = found
    varying = spread[~is_constant]
    if not len(varying):
        return
    low, high = np.quantile(varying, [0.05, 0.95])
    uneven = float(high / low)
    offset = float(np.median(np.sqrt(size**2 - spread**2)[~is_constant] / varying))
    if uneven <= MOST_UNEVEN and offset <= MOST_OFFSET:
        return
    seen = (
        f"{case.name}: the standard deviations of {len(varying):,} features reach from {low:.2g} to "
        f"{high:.2g} (5% to 95% quantile)"
    )
    if uneven <= MOST_UNEVEN:
        seen = (
            f"{case.name}: half of {len(varying):,} features lie {offset:.3g} standard deviations "
            "or more away from 0"
        )
    yield Finding(
        severity="warning",
        seen=seen,
        cause="features that are not standardised: one learning rate or penalty can't suit them all",
        fix="subtract the mean and divide by the standard deviation of the training rows, as adapt "
        "probe does",
        certainty="likely",
        evidence={
            "features": len(spread),
            "low": float(low),
            "high": float(high),
            "ratio": uneven,
            "mean_to_std": offset,
        },
    )


def constant_features(case: FeaturesCase) -> Iterator[Finding]:
    """Dimensions that have one value for all inputs: dividing by their standard deviation makes
    numbers without meaning of them, or infinities.
    """
    found = moments(case)
    if found is None:
        return
    _, _, is_constant = found
    numbers = np.flatnonzero(is_constant).tolist()
    if not len(numbers):
        return
    is_most = 2 * len(numbers) > len(is_constant)
    yield Finding(
        severity="error" if is_most else "note",
        seen=f"{case.name}: {len(numbers):,} of {len(is_constant):,} features are constant "
        f"({first(numbers)})",
        cause="the encoder gives every input nearly the same features: the inputs are alike, or the "
        "weights are not those that were trained"
        if is_most
        else "dimensions that pre-training does not use",
        fix="look at the inputs, and at the checkpoint's checks"
        if is_most
        else "leave them out before you divide by standard deviations, as adapt probe does",
        certainty="possible" if is_most else "certain",
        evidence={"constant": numbers, "features": len(is_constant)},
    )


def moments(case: FeaturesCase) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(root mean square, standard deviation, whether it is constant) of each dimension, [D]; None
    where rows are too few to tell, or not finite.
    """
    step = -(-len(case.features) // MOST_ROWS)
    if len(case.features) < FEW:
        return None
    x = np.asarray(case.features[::step], np.float64)
    if not np.isfinite(x).all():
        return None
    spread = x.std(0)
    size = np.sqrt((x * x).mean(0))
    return size, spread, spread <= CONSTANT * np.maximum(size, size.max(initial=0) * CONSTANT)

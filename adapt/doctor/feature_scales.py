"""Checks on features on which somebody trains a head: do their dimensions have sizes alike?"""

from collections.abc import Iterator

import numpy as np

from adapt.doctor.cases import FeaturesCase
from adapt.doctor.findings import Finding

# The standard deviation of the 95% quantile of dimensions over that of the 5% quantile: 1.3 in
# MiniLM and a tiny BERT. A head's rate, or its penalty, is the same for all dimensions.
MOST_UNEVEN = 30.0
# The median of |mean| / standard deviation: 0.4 in MiniLM, 1.3 in a tiny BERT.
MOST_OFFSET = 10.0
CONSTANT = 1e-6  # of a dimension's size; float32 leaves noise of about that
MOST_ROWS = 10_000  # evenly from all


def features_not_standardised(case: FeaturesCase) -> Iterator[Finding]:
    """Dimensions whose scales differ by orders of magnitude, or that lie far from 0: a head on them
    as they are learns the large ones alone.
    """
    size, spread, is_constant = moments(case)
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
    _, _, is_constant = moments(case)
    numbers = np.flatnonzero(is_constant)
    if not len(numbers):
        return
    shown = ", ".join(str(number) for number in numbers[:5])
    more = ", ..." if len(numbers) > 5 else ""
    is_most = 2 * len(numbers) > len(is_constant)
    yield Finding(
        severity="error" if is_most else "note",
        seen=f"{case.name}: {len(numbers):,} of {len(is_constant):,} features are constant "
        f"({shown}{more})",
        cause="the encoder gives every input nearly the same features: the inputs are alike, or the "
        "weights are not those that were trained"
        if is_most
        else "dimensions that pre-training does not use",
        fix="look at the inputs, and at the checkpoint's checks"
        if is_most
        else "leave them out before you divide by standard deviations, as adapt probe does",
        certainty="possible" if is_most else "certain",
        evidence={"constant": numbers.tolist(), "features": len(is_constant)},
    )


def moments(case: FeaturesCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(root mean square, standard deviation, whether it is constant) of each dimension, [D]."""
    step = max(-(-len(case.features) // MOST_ROWS), 1)
    x = np.asarray(case.features[::step], np.float64)
    spread = x.std(0)
    size = np.sqrt((x * x).mean(0))
    return size, spread, spread <= CONSTANT * np.maximum(size, size.max(initial=0) * CONSTANT)

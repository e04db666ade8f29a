"""How fast many logistic regressions are fitted here, and how exactly, beside scikit-learn: on a
few large sets, and on many that are small against their union.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.probing.selection import stratified_folds
from adapt.training.events import OnProgress

SOLVERS = ("lbfgs", "newton-cholesky")
SIDES = ("adapt", *SOLVERS)
# With more classes a fit of scikit-learn on a large set takes minutes, and 1,000 of them days.
MANY_CLASSES = 10


def compare_with_sklearn(
    features: np.ndarray,
    labels: np.ndarray,
    rounds: int = 3,
    folds: int = 10,
    seeds: int = 10,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Logistic regressions a second: ``folds x seeds x 10`` of them here, a sample of the same in
    scikit-learn, in turn.

    Each trains on all rows but a fold. The strengths are those of LogisticRegressionCV: C = 1e-4 to
    1e4. The clock here runs from raw features to heads; scikit-learn's runs during ``fit`` alone,
    on standardised features, with its own tolerance.
    """
    train = ~np.concatenate([stratified_folds(labels, folds, [seed]) for seed in range(seeds)])
    strengths = np.logspace(4, -4, 10)
    classes = int(labels.max()) + 1
    count = len(train) * len(strengths)

    def fit_all() -> linear.Linear:
        scaled = linear.standardize(features, train)
        return logistic(scaled, labels, train, strengths.tolist(), classes)

    first_seconds, heads = clocked(fit_all)
    scaled = linear.standardize(features, train)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    gradients: dict[str, list[float]] = {side: [] for side in SIDES}
    errors: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        seconds, _ = clocked(fit_all)
        rates["adapt"].append(count / seconds)
        sklearn_seconds = dict.fromkeys(SOLVERS, 0.0)
        # One fit of each strength a round, as there are as many of each here.
        for k, strength in enumerate(strengths):
            index = (number * len(strengths) + k) % len(train)
            x = standardized(features[train[index]])
            y = labels[train[index]]
            weights = {"adapt": standardized_weights(heads, scaled, index, k)}
            for solver in SOLVERS:
                model = sklearn_model(solver, strength)
                taken, _ = clocked(lambda: quietly_fit(model, x.astype(np.float32), y))  # noqa: B023
                sklearn_seconds[solver] += taken
                weights[solver] = (np.asarray(model.coef_), np.asarray(model.intercept_))
            exact = quietly_fit(sklearn_model("newton-cholesky", strength, tol=1e-12), x, y).coef_
            for side, (weight, bias) in weights.items():
                weight = weight.astype(float)
                gradients[side].append(gradient(x, y, weight, bias.astype(float), strength))
                distance = np.linalg.norm(weight - exact) / np.linalg.norm(exact)
                errors[side].append(float(distance))
        for solver in SOLVERS:
            rates[solver].append(len(strengths) / sklearn_seconds[solver])
        if on_progress:
            on_progress(number + 1, rounds)
    ratios = {}
    for side in SIDES:
        ratios[side] = float(np.median(np.array(rates["adapt"]) / rates[side]))
    return {
        "fits": count,
        "rows": int(train[0].sum()),
        "features": features.shape[1],
        "classes": classes,
        "not_converged": int((~heads.converged).sum()),
        "first_seconds": first_seconds,
        "fits_per_second": rates,
        "ratio": ratios,
        "gradient": gradients,
        "relative_error": errors,
    }


def compare_small_sets(
    features: np.ndarray,
    labels: np.ndarray,
    rounds: int = 3,
    sets: int = 10,
    per_class: int = 8,
    strength: float = 1.0,
    sample: int = 3,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """The CPU seconds, of all cores, that a set of ``per_class`` rows of each class takes: ``sets``
    of them together here, a ``sample`` of them one after the other in scikit-learn, in turn.

    The clock here runs from raw features to heads; scikit-learn's runs during ``fit`` alone, with
    its own solver and tolerance. The gradient is that of :func:`gradient`, the objective that of
    :func:`objective`, float64, at what a side found.
    """
    train = draw_small_sets(labels, sets, per_class)
    classes = int(labels.max()) + 1

    def fit_all() -> linear.Linear:
        scaled = linear.standardize(features, train)
        return logistic(scaled, labels, train, [strength], classes)

    first_seconds, heads = clocked(fit_all)
    scaled = linear.standardize(features, train)
    seconds: dict[str, list[float]] = {"adapt": [], "lbfgs": []}
    gradients: dict[str, list[float]] = {"adapt": [], "lbfgs": []}
    above = []
    for number in range(rounds):
        taken, _ = clocked(fit_all, time.process_time)
        seconds["adapt"].append(taken / sets)
        sklearn_seconds = 0.0
        for turn in range(number * sample, (number + 1) * sample):
            index = turn % sets
            rows = train[index]
            data = (standardized(features[rows]), labels[rows])
            ours = standardized_weights(heads, scaled, index, 0)
            taken, theirs = fit_in_sklearn(*data, strength)
            sklearn_seconds += taken
            gradients["adapt"].append(gradient(*data, *ours, strength))
            gradients["lbfgs"].append(gradient(*data, *theirs, strength))
            ratio = objective(*data, *theirs, strength) / objective(*data, *ours, strength)
            above.append(ratio - 1)
        seconds["lbfgs"].append(sklearn_seconds / sample)
        if on_progress:
            on_progress(number + 1, rounds)
    medians = {side: float(np.median(values)) for side, values in seconds.items()}
    return {
        "sets": sets,
        "rows": int(train[0].sum()),
        "union": int(train.any(0).sum()),
        "features": features.shape[1],
        "classes": classes,
        "strength": strength,
        "not_converged": int((~heads.converged).sum()),
        "first_seconds": first_seconds,
        "cpu_seconds_per_set": seconds,
        "ratio": {side: median / medians["adapt"] for side, median in medians.items()},
        "gradient": gradients,
        "sklearn_objective_above": above,
    }


def fit_in_sklearn(
    x: np.ndarray, y: np.ndarray, strength: float
) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    """(CPU seconds of one fit by scikit-learn's own solver, its weights and intercepts)."""
    model = sklearn_model("lbfgs", strength)
    single = x.astype(np.float32)
    taken, _ = clocked(lambda: quietly_fit(model, single, y), time.process_time)
    return taken, (np.asarray(model.coef_, float), np.asarray(model.intercept_, float))


def draw_small_sets(labels: np.ndarray, sets: int, per_class: int) -> np.ndarray:
    """Training sets of the first rows of each class in a random order, bool [sets, N]."""
    random = np.random.RandomState(0)
    train = np.zeros((sets, len(labels)), bool)
    for rows in train:
        order = random.permutation(len(labels))
        for label in np.unique(labels):
            of_class = order[labels[order] == label]
            rows[of_class[:per_class]] = True
    return train


def sklearn_model(solver: str, strength: float, **settings: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver=solver, C=1 / strength, max_iter=100_000, **settings)


def quietly_fit(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """``model.fit(x, y)`` without warnings, such as of a Hessian that it finds ill-conditioned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(x, y)


def clocked(
    function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> tuple[float, Any]:
    """(seconds by a clock, the result)."""
    started = clock()
    result = function()
    return clock() - started, result


def standardized(features: np.ndarray) -> np.ndarray:
    """Features of one training set, standardised as :func:`adapt.probing.linear.standardize` does,
    float64.
    """
    x = features.astype(np.float64)
    mean = x.mean(0)
    std = x.std(0)
    return (x - mean) / np.where(std > linear.min_std(mean, std), std, np.inf)


def standardized_weights(
    heads: linear.Linear, scaled: linear.Scaled, index: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weights [C, D], intercepts [C]) of set ``index`` and strength ``k`` on standardised
    features, as scikit-learn has them.
    """
    kernel = heads.kernel[index, k]
    std = scaled.std[index]
    weight = kernel * np.where(std < np.inf, std, 0)
    bias = heads.bias[index, k] + kernel @ scaled.mean[index]
    return weight, bias


def gradient(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float
) -> float:
    """The largest entry of the gradient of the mean objective, float64: what scikit-learn's ``tol``
    bounds.
    """
    scores = x @ weight.T + bias
    column = y[:, None]
    if len(weight) == 1:
        residual = 1 / (1 + np.exp(-scores)) - column
    else:
        highest = scores.max(1, keepdims=True)
        exponentials = np.exp(scores - highest)
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        residual = probabilities - (column == np.arange(len(weight)))
    weight_gradient = residual.T @ x + strength * weight
    bias_gradient = residual.sum(0)
    largest = max(np.abs(weight_gradient).max(), np.abs(bias_gradient).max())
    return float(largest / len(x))


def objective(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float
) -> float:
    """``strength / 2 ||w||^2 + sum of losses``, float64."""
    scores = x @ weight.T + bias
    if len(weight) == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], 1)
    highest = scores.max(1)
    log_sums = highest + np.log(np.exp(scores - highest[:, None]).sum(1))
    losses = log_sums - scores[np.arange(len(y)), y]
    return float(strength / 2 * (weight**2).sum() + losses.sum())

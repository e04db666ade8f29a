"""What the probe shows beside a table: the layer curve, and its speed against scikit-learn's."""

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adapt.cli import console
from adapt.probing import linear
from adapt.probing.selection import parts

COLOURS = ("#4477aa", "#cc6677", "#228833", "#ccbb44")
SOLVERS = ("lbfgs", "newton-cholesky")


def plot(config: Any, methods: tuple[str, ...], result: dict[str, Any]) -> Path:
    """layers.png: test score and interval by layer, a line a pooling, a panel a method; validation dotted."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (3.6 * len(methods) + 2.2, 3.8)
    figure, axes = plt.subplots(
        1, len(methods), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, method in zip(axes[0], methods, strict=True):
        for number, pooling in enumerate(config.pooling):
            cells = [
                cell
                for cell in result["cells"]
                if (cell["method"], cell["pooling"]) == (method, pooling)
            ]
            layer, test, low, high, validation = (
                np.array([cell[name] for cell in cells])
                for name in ("layer", "test", "low", "high", "validation")
            )
            x = layer + 0.08 * (number - (len(config.pooling) - 1) / 2)
            band = np.maximum([test - low, high - test], 0)
            axis.errorbar(
                x,
                test,
                band,
                fmt="o-",
                color=COLOURS[number],
                ms=4,
                lw=1.4,
                capsize=2,
                label=f"{pooling}, test",
            )
            axis.plot(
                x, validation, ":", color=COLOURS[number], lw=1.2, label=f"{pooling}, inner folds"
            )
        axis.axhline(result["floor"], color="black", ls="--", lw=1, label="without features")
        axis.set_title(method, fontsize=10)
        axis.set_xlabel("layer (0: embedding)")
        axis.set_xticks(sorted({cell["layer"] for cell in result["cells"]}))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(
        "accuracy" if config.task == "classification" else "Pearson's correlation"
    )
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside center right", frameon=False, fontsize=8)  # pyright: ignore[reportArgumentType]
    figure.suptitle(
        f"{config.checkpoint} on {config.data}: heads on frozen layers, 95% intervals", fontsize=11
    )
    path = config.out / "layers.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def speed(
    features: np.ndarray, labels: np.ndarray, rounds: int = 3, folds: int = 10, seeds: int = 10
) -> dict[str, Any]:
    """Logistic regressions a second: ``folds x seeds x 10`` of them here, a sample of the same in scikit-learn, in turn.

    Each trains on all rows but a fold. The strengths are those of LogisticRegressionCV: C = 1e-4 to 1e4. Here the clock runs
    from raw features to heads; there during ``fit`` alone, on standardised features, with its own tolerance.
    """
    from sklearn.linear_model import LogisticRegression

    train = ~np.concatenate([parts(labels, folds, [seed]) for seed in range(seeds)])
    grid = np.logspace(4, -4, 10)
    classes = int(labels.max()) + 1
    count = len(train) * 10
    fit = lambda: linear.logistic(
        linear.standardise(features, train), labels, train, grid.tolist(), classes
    )
    first, heads = clocked(fit)
    scaled = linear.standardise(features, train)
    rates, gradients, apart = ({name: [] for name in ("adapt", *SOLVERS)} for _ in range(3))
    with console.progress("timing", rounds) as bar:
        for number in range(rounds):
            rates["adapt"].append(count / clocked(fit)[0])
            seconds = dict.fromkeys(SOLVERS, 0.0)
            for place, strength in enumerate(
                grid
            ):  # one of each strength a round, as there are as many of each here
                index = (number * len(grid) + place) % len(train)
                x = standard(features[train[index]])
                y = labels[train[index]]
                weights: dict[str, Any] = {"adapt": by_standard(heads, scaled, index, place)}
                settings = {"C": 1 / strength, "max_iter": 100_000}
                for solver in SOLVERS:
                    model = LogisticRegression(solver=solver, **settings)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        taken, _ = clocked(
                            lambda model=model, x=x, y=y: model.fit(x.astype(np.float32), y)
                        )
                    seconds[solver], weights[solver] = (
                        seconds[solver] + taken,
                        (model.coef_, model.intercept_),
                    )
                with warnings.catch_warnings():  # of a Hessian that it finds ill-conditioned
                    warnings.simplefilter("ignore")
                    exact = (
                        LogisticRegression(solver="newton-cholesky", tol=1e-12, **settings)
                        .fit(x, y)
                        .coef_
                    )
                for side, (weight, bias) in weights.items():
                    gradients[side].append(
                        gradient(x, y, np.asarray(weight, float), np.asarray(bias, float), strength)
                    )
                    apart[side].append(
                        float(np.linalg.norm(weight - exact) / np.linalg.norm(exact))
                    )
            for solver in SOLVERS:
                rates[solver].append(len(grid) / seconds[solver])
            bar.update(number + 1)
    rows = []
    for side in rates:
        ratio = np.median(np.array(rates["adapt"]) / rates[side])
        rows.append(
            (
                side,
                float(np.median(rates[side])),
                max(gradients[side]),
                max(apart[side]),
                float(ratio),
            )
        )
    title = f"{count:,} logistic regressions on {train[0].sum():,} x {features.shape[1]} features, {classes} classes"
    columns = ("", "fits/s", "largest gradient", "coefficients off by", "adapt is faster")
    console.table(title, columns, rows, console.console)
    console.console.print(
        f"fits      {int((~heads.converged).sum())} of {count:,} did not converge; first call {first:.1f} s"
    )
    return {
        "fits": count,
        "not_converged": int((~heads.converged).sum()),
        "first_seconds": first,
        "fits_per_second": rates,
        "ratio": {row[0]: row[-1] for row in rows},
        "gradient": gradients,
        "relative_error": apart,
    }


def clocked(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returns)."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def standard(features: np.ndarray) -> np.ndarray:
    """Standardised features, float64, as the probe has them but by themselves."""
    x = features.astype(np.float64)
    mean = x.mean(0)
    std = x.std(0)
    return (x - mean) / np.where(std > linear.least(mean, std), std, np.inf)


def by_standard(
    heads: linear.Linear, scaled: linear.Scaled, index: int, place: int
) -> tuple[np.ndarray, np.ndarray]:
    """(weights [C, D], intercepts [C]) of a fit on standardised features, as scikit-learn has them."""
    kernel = heads.kernel[index, place]
    std = scaled.std[index]
    return kernel * np.where(std < np.inf, std, 0), heads.bias[index, place] + kernel @ scaled.mean[
        index
    ]


def gradient(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float
) -> float:
    """The largest entry of the gradient of the mean objective, in float64: what scikit-learn's ``tol`` bounds."""
    scores = x @ weight.T + bias
    if len(weight) == 1:
        left = 1 / (1 + np.exp(-scores)) - y[:, None]
    else:
        top = np.exp(scores - scores.max(1, keepdims=True))
        left = top / top.sum(1, keepdims=True) - (y[:, None] == np.arange(len(weight)))
    by_weight = left.T @ x + strength * weight
    return float(max(np.abs(by_weight).max(), np.abs(left.sum(0)).max()) / len(x))

"""Every figure, in one style. No function touches matplotlib's global state, nor needs a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.training.metrics_log import read_records

BLUE = "#4477aa"
RED = "#cc6677"
GREEN = "#228833"
YELLOW = "#ccbb44"
PURPLE = "#aa3377"
LIGHT_BLUE = "#88bbdd"
GREY = "#bbbbbb"
COLOURS = (BLUE, RED, GREEN, YELLOW)


def figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 3.6), **options: Any
) -> tuple[Any, Any]:
    """A matplotlib figure of ``size`` inches and its axes [rows, columns]; ``options`` are those of
    ``Figure.subplots``.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def save(drawn: Any, path: Path) -> Path:
    """Write a figure as a PNG file."""
    drawn.savefig(path, dpi=130)
    return path


def plot_history(folder: Path, score: str = "") -> Path:
    """history.png of a run's folder: the losses by step and, below them, the validation ``score``."""
    records = read_records(folder / "metrics.jsonl")
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation_loss" in record]
    name = f"validation_{score}"
    scored = []
    if score != "loss":  # which is above
        scored = [record for record in validations if record.get(name) is not None]

    rows = 2 if scored else 1
    drawn, axes = figure(rows, size=(7, 5.6 if scored else 3.6), sharex=True)
    losses = axes[0, 0]
    losses.plot(*columns_of(steps, "loss"), ".-", color=BLUE, lw=1.2, ms=3, label="training")
    if validations:
        points = columns_of(validations, "validation_loss")
        losses.plot(*points, "o-", color=RED, ms=4, label="validation")
    losses.set_ylabel("loss (nats)" if score != "pearson" else "squared error")
    losses.legend(frameon=False)
    if scored:
        plot_scores(axes[1, 0], *columns_of(scored, name))
        axes[1, 0].set_ylabel(name.replace("_", " "))
    axes[-1, 0].set_xlabel("step")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    return save(drawn, folder / "history.png")


def columns_of(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of an entry."""
    return [record["step"] for record in records], [record[name] for record in records]


def plot_scores(axis: Any, steps: Sequence[float], scores: Sequence[float]) -> None:
    """Scores by step; the best one is written at its point."""
    axis.plot(steps, scores, "o-", color=RED, ms=4)
    best = int(np.argmax(scores))
    axis.annotate(
        f"{scores[best]:.3f}",
        (steps[best], scores[best]),
        textcoords="offset points",
        xytext=(0, 6),
        ha="center",
        fontsize=9,
    )
    axis.margins(y=0.25)


def plot_layers(
    path: Path, cells: Sequence[Mapping[str, Any]], baseline: float, score: str, title: str
) -> Path:
    """The probe's test score and interval by layer: a line a pooling, a panel a method; validation
    dotted.

    ``baseline`` is the score without features. A cell has method, pooling, layer, test, low, high
    and validation.
    """
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    poolings = list(dict.fromkeys(cell["pooling"] for cell in cells))
    drawn, axes = figure(1, len(methods), size=(3.6 * len(methods) + 2.2, 3.8), sharey=True)
    for axis, method in zip(axes[0], methods, strict=True):
        for number, pooling in enumerate(poolings):
            which = (method, pooling)
            chosen = [cell for cell in cells if (cell["method"], cell["pooling"]) == which]
            shift = 0.08 * (number - (len(poolings) - 1) / 2)
            plot_layer_line(axis, chosen, shift, COLOURS[number], pooling)
        axis.axhline(baseline, color="black", ls="--", lw=1, label="without features")
        axis.set_title(method, fontsize=10)
        axis.set_xlabel("layer (0: embedding)")
        axis.set_xticks(sorted({cell["layer"] for cell in cells}))
        axis.grid(alpha=0.25)
    axes[0, 0].set_ylabel(score)
    handles, names = axes[0, 0].get_legend_handles_labels()
    drawn.legend(handles, names, loc="outside center right", frameon=False, fontsize=8)
    drawn.suptitle(title, fontsize=11)
    return save(drawn, path)


def plot_layer_line(
    axis: Any, cells: Sequence[Mapping[str, Any]], shift: float, colour: str, name: str
) -> None:
    """One pooling of :func:`plot_layers`, ``shift`` to the side so that intervals do not cover each
    other.
    """
    layer = np.array([cell["layer"] for cell in cells]) + shift
    test = np.array([cell["test"] for cell in cells])
    below = test - [cell["low"] for cell in cells]
    above = [cell["high"] for cell in cells] - test
    interval = np.maximum([below, above], 0)
    axis.errorbar(
        layer,
        test,
        interval,
        fmt="o-",
        color=colour,
        ms=4,
        lw=1.4,
        capsize=2,
        label=f"{name}, test",
    )
    validation = [cell["validation"] for cell in cells]
    axis.plot(layer, validation, ":", color=colour, lw=1.2, label=f"{name}, inner folds")

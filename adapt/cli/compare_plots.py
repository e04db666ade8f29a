"""The plots of a comparison: accuracy by labels, and by cost."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.cli import plots
from adapt.comparison.summary import encoder_of

COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#999999",
    "#000000",
    "#997700",
)


def new_figure() -> Any:
    figure, axes = plots.figure(size=(7.5, 4.4))
    axes[0, 0].grid(alpha=0.25)
    return figure, axes[0, 0]


def way_styles(ways: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour a way; dashed and hollow where the encoder is another than the first way's."""
    styles = {}
    for number, way in enumerate(ways):
        if encoder_of(way) == encoder_of(ways[0]):
            style = {"linestyle": "-", "marker": "o", "markersize": 3.5}
        else:
            style = {"linestyle": "--", "marker": "s", "markersize": 4, "markerfacecolor": "white"}
        styles[way] = style | {"color": COLORS[number % len(COLORS)]}
    return styles


def draw_lines(
    axis: Any,
    result: dict[str, Any],
    x_of: Callable[[dict[str, Any], int], float],
    order: Callable[[dict[str, Any]], float],
    width: float,
) -> None:
    """A line a way with intervals as bars; ``x_of(row, number of the way)`` places a point."""
    for number, (way, style) in enumerate(way_styles(result["ways"]).items()):
        rows = sorted((row for row in result["rows"] if row["way"] == way), key=order)
        x = [x_of(row, number) for row in rows]
        y = np.array([row["accuracy"] for row in rows])
        low, high = np.transpose([row["interval"] for row in rows])
        axis.errorbar(x, y, (y - low, high - y), label=way, lw=1.4, elinewidth=width, **style)
    majority = result["majority_accuracy"]
    axis.axhline(majority, color="#888888", lw=1, ls=":", label="most frequent label")
    axis.set_xscale("log")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def plot_labels(path: Path, data: str, result: dict[str, Any], num_train: int) -> None:
    """Accuracy by labelled examples: a line a way, with its interval."""
    figure, axis = new_figure()
    middle = (len(result["ways"]) - 1) / 2

    def labels_of(row: dict[str, Any]) -> int:
        return row["budget"] or num_train

    def x_of(row: dict[str, Any], number: int) -> float:
        # Side by side, so that no bar hides another.
        return labels_of(row) * 1.05 ** (number - middle)

    draw_lines(axis, result, x_of, labels_of, width=0.8)
    ticks = sorted(budget or num_train for budget in result["budgets"])
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("labelled examples")
    axis.set_ylabel(f"test accuracy on {data}")
    plots.save(figure, path)


def plot_cost(path: Path, data: str, result: dict[str, Any]) -> None:
    """Accuracy by FLOPs of a fit: a line a way, its budgets as points."""
    figure, axis = new_figure()

    def x_of(row: dict[str, Any], number: int) -> float:
        return row["flops"] / 1e9

    draw_lines(axis, result, x_of, lambda row: row["flops"], width=0.5)
    axis.set_xlabel("GFLOP of a fit (encoding included)")
    axis.set_ylabel(f"test accuracy on {data}")
    plots.save(figure, path)

"""The plots of a comparison: the score by labels, and by cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adapt.cli import plots
from adapt.comparison.comparing import Comparison
from adapt.comparison.summary import Row

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


def draw_lines(
    axis: Any,
    found: Comparison,
    x_of: Callable[[Row, int], float],
    width: float,
) -> None:
    """A line a strategy with intervals as bars; ``x_of(row, number)`` places a point."""
    for number, strategy in enumerate(found.options.strategies):
        rows = [row for row in found.rows if row.strategy == strategy]
        points = sorted((x_of(row, number), row.score, *row.interval) for row in rows)
        x, y, low, high = np.transpose(points)
        axis.errorbar(
            x,
            y,
            (y - low, high - y),
            label=strategy,
            lw=1.4,
            elinewidth=width,
            marker="o",
            markersize=3.5,
            color=COLORS[number % len(COLORS)],
        )
    floor = found.floors.get(f"majority_{found.metric}")
    if floor is not None:
        axis.axhline(floor, color="#888888", lw=1, ls=":", label="most frequent label")
    axis.set_xscale("log")
    axis.set_ylabel(f"test {found.metric}".replace("_", " "))
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def plot_labels(path: Path, found: Comparison) -> None:
    """The score by labelled examples: a line a strategy, with its interval."""
    figure, axis = new_figure()
    middle = (len(found.options.strategies) - 1) / 2

    def x_of(row: Row, number: int) -> float:
        # Side by side, so that no bar hides another.
        return row.labelled * 1.05 ** (number - middle)

    draw_lines(axis, found, x_of, width=0.8)
    ticks = sorted({row.labelled for row in found.rows})
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("labelled examples")
    plots.save(figure, path)


def plot_cost(path: Path, found: Comparison) -> None:
    """The score by FLOPs of a fit: a line a strategy, its budgets as points."""
    figure, axis = new_figure()

    def x_of(row: Row, number: int) -> float:
        return row.flops / 1e9

    draw_lines(axis, found, x_of, width=0.5)
    axis.set_xlabel("GFLOP of a fit (encoding included)")
    plots.save(figure, path)

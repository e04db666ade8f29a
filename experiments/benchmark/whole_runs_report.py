"""What a measurement of whole runs found: on the terminal, as a plot, as a table."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.cli import console, plots
from experiments.benchmark.options import WholeRunOptions
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    source_line,
    table_text,
    versions_text,
    write_table,
)

SHOWN_COLUMNS = (
    "strategy",
    "against",
    "adapt s",
    "peer s",
    "ratio",
    "ceiling",
    "steps alone",
    "second run",
)


def columns(num_rounds: int) -> list[str]:
    """The columns of whole_runs.md."""
    adapt = f"adapt, s (least to most of {num_rounds})"
    return [
        "strategy",
        "against",
        adapt,
        "peer, s",
        "ratio",
        "ceiling",
        "steps alone",
        "second run",
    ]


def show(result: Mapping[str, Any]) -> None:
    """Print a row a strategy and peer, and how near encoding comes to the machine's rate."""
    rows = []
    for row in result["table"]:
        adapt = f"{row['seconds']:.0f}"
        rows.append([row["strategy"], row["peer"], adapt, *cells_of_peer(row)])
    console.table("whole runs", SHOWN_COLUMNS, rows)
    console.say(f"encoding reaches {result['encoding_share']:.0%} of the machine's matrix products")


def cells_of_peer(row: Mapping[str, Any]) -> list[str]:
    """The peer's seconds and the ratios of a row; nothing for those that it does not have."""
    cells = [f"{row['peer_seconds']:.0f}"]
    for name in ("ratio", "ceiling", "steps_ratio", "second_ratio"):
        ratio = row.get(name)
        cells.append("" if ratio is None else times_text(ratio))
    return cells


def times_text(ratio: float) -> str:
    """A ratio with one digit after the point, where that says anything."""
    return f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def write_tables(config: WholeRunOptions, result: Mapping[str, Any], num_train: int) -> None:
    """Write whole_runs.md into the folder of `tables`, where there is one.

    A strategy's first row has the least and the most of adapt's seconds.
    """
    if config.tables is None:
        return
    rows = []
    seen = set()
    for row in result["table"]:
        strategy = row["strategy"]
        adapt = f"{row['seconds']:.0f}"
        if strategy not in seen:
            run = result["adapt"][strategy]["first"]
            adapt += f" ({run['wall_least']:.0f} to {run['wall_most']:.0f})"
            seen.add(strategy)
        rows.append([strategy, row["peer"], adapt, *cells_of_peer(row)])
    num_rounds = len({entry["round"] for entry in result["rounds"]})
    source = source_line(
        command_line("experiments.benchmark.whole_runs", config),
        f"{config.checkpoint} on `{config.data}` ({num_train:,} training examples), batches of "
        f"{config.batch_size}, float32, dropout where a layer trains, {config.epochs} epochs",
        machine_text(result["machine"]),
        versions_text(result["libraries"].values()),
    )
    write_table(config.tables, "whole_runs", table_text(source, columns(num_rounds), rows))


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of the plot: its name, its strategy, its seconds, and what is written at its end."""

    name: str
    strategy: str
    seconds: float
    colour: str
    text: str


def plot(config: WholeRunOptions, result: Mapping[str, Any]) -> Path:
    """Seconds of a whole run by strategy, a bar a side on a logarithmic scale, ratios on the peers'
    bars.
    """
    bars = []
    for strategy in config.strategies:
        bars += bars_of(result, strategy)
    positions = []
    position = 0.0
    for number, bar in enumerate(bars):
        is_first = number > 0 and bar.strategy != bars[number - 1].strategy
        position += 1.5 if is_first else 1.0
        positions.append(position)

    figure, axes = plots.figure(size=(8.5, 0.42 * len(bars) + 1.1))
    axis = axes[0, 0]
    seconds = [bar.seconds for bar in bars]
    drawn = axis.barh(positions, seconds, color=[bar.colour for bar in bars], height=0.8)
    axis.bar_label(drawn, [bar.text for bar in bars], padding=4, fontsize=9)
    axis.set_yticks(positions, [bar.name for bar in bars], fontsize=9)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(1, max(seconds) * 8)
    cores = result["machine"]["cores"]
    axis.set_xlabel(
        f"seconds of a whole run: {config.checkpoint} on {config.data}, {config.epochs} epochs, "
        f"{cores} cores"
    )
    return plots.save(figure, config.out / "whole_runs.png")


def bars_of(result: Mapping[str, Any], strategy: str) -> list[Bar]:
    """The bars of a strategy: adapt's run, its second one if there was one, and the peers'."""
    runs = result["adapt"][strategy]
    first = runs["first"]["wall"]
    bars = [Bar(f"{strategy}   adapt", strategy, first, plots.BLUE, f"{first:.0f} s")]
    if "second" in runs:
        name = "same cache, another seed   adapt"
        second = runs["second"]["wall"]
        bars.append(Bar(name, strategy, second, plots.LIGHT_BLUE, f"{second:.0f} s"))
    for row in result["table"]:
        if row["strategy"] != strategy:
            continue
        seconds = row["peer_seconds"]
        text = f"{seconds:.0f} s, {row['ratio']:.1f} times adapt's"
        bars.append(Bar(row["peer"], strategy, seconds, plots.GREY, text))
    return bars

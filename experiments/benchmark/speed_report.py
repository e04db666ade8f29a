"""What a measurement of steps and extraction found: on the terminal, as a plot, as tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.cli import console, plots
from experiments.benchmark.options import SpeedOptions
from experiments.benchmark.sides import FORMULA, JOBS
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    ratio_text,
    source_line,
    table_text,
    versions_text,
    write_table,
)

DISTURBED = 0.05  # share of the cores that others used in a round, above which a note says so
COLUMNS = ("job", "adapt", "peer", "ratio")
EXTRACTION_COLUMNS = (*COLUMNS, "cosine to adapt's vectors")


def rows_of(result: Mapping[str, Any], job: str) -> list[dict[str, Any]]:
    """The rows of the summary that are about a job; the first is adapt's."""
    return [row for row in result["summary"] if row["job"] == job]


def show(result: Mapping[str, Any]) -> None:
    """Print a table a job, the memory of extraction, and whether others used the machine."""
    for name, job in JOBS.items():
        rows = [shown_row(row) for row in rows_of(result, name)]
        console.table(job.title, ("", "median", "min-max", "adapt / peer", "share"), rows)
    for side, cosines in result["cosines"].items():
        console.say(
            f"vectors of {JOBS['extract'].sides[side]}, cosine to adapt's: "
            f"{cosines['mean']:.4f} on average, {cosines['least']:.4f} at least"
        )
    console.say(
        f"share: model FLOPs, padding not counted, of JAX's matrix products; by hand, {FORMULA}"
    )
    for count, megabytes in result["memory_mb"].items():
        console.say(f"RssAnon of extraction with {count} sentences: {megabytes:.0f} MB")
    worst = max(result["rounds"], key=lambda entry: entry["foreign"])
    if worst["foreign"] > DISTURBED:
        console.warn(
            f"others used up to {worst['foreign']:.0%} of the cores (round {worst['round']}): "
            "measure on a quiet machine"
        )


def shown_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the summary as the terminal shows it."""
    ratio = ""
    if "ratio" in row:
        ratio = f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
    share = f"{row['share']:.0%}" if "share" in row else ""
    span = f"{row['least']:.1f}-{row['most']:.1f}"
    return row["name"], f"{row['median']:.1f}", span, ratio, share


def plot(config: SpeedOptions, result: Mapping[str, Any]) -> Path:
    """A bar a side with its rounds as points; ratios are written on the peers' bars."""
    jobs = [job for job in JOBS if job != "rate"]
    figure, axes = plots.figure(len(jobs), size=(7, 2.2 * len(jobs)))
    cores = result["machine"]["cores"]
    for axis, job in zip(axes[:, 0], jobs, strict=True):
        plot_job(axis, rows_of(result, job), result["rounds"])
        axis.set_xlabel(f"{JOBS[job].title} ({config.checkpoint} on {config.data}, {cores} cores)")
    return plots.save(figure, config.out / "benchmark.png")


def plot_job(axis: Any, rows: list[dict[str, Any]], rounds: list[dict[str, Any]]) -> None:
    """The bars of one job."""
    names = [row["name"] for row in rows]
    medians = [row["median"] for row in rows]
    colours = [plots.BLUE if row["side"] == "adapt" else plots.GREY for row in rows]
    axis.barh(names, medians, color=colours, height=0.6)
    for position, row in enumerate(rows):
        measured = (row["job"], row["side"])
        speeds = [entry["speed"] for entry in rounds if (entry["job"], entry["side"]) == measured]
        axis.plot(speeds, [position] * len(speeds), ".", color="black", ms=4, alpha=0.6)
        times = f"  (adapt: {row['ratio']:.2f} times)" if "ratio" in row else ""
        axis.annotate(
            f"{row['median']:.0f}{times}",
            (max(speeds), position),
            (8, 0),
            textcoords="offset points",
            va="center",
        )
    axis.margins(x=0.35)
    axis.set_xlim(left=0)
    axis.invert_yaxis()


def write_tables(
    config: SpeedOptions, batch_size: int, num_sentences: int, result: Mapping[str, Any]
) -> None:
    """Write steps.md and extraction.md into the folder of `tables`, where there is one.

    ``num_sentences`` were extracted in each round.
    """
    if config.tables is None:
        return
    num_rounds = len({entry["round"] for entry in result["rounds"]})
    what = f"{config.checkpoint} on `{config.data}`, float32"
    how = f"medians of {num_rounds} rounds in turn (least to most)"
    command = command_line("experiments.benchmark", config)
    where = machine_text(result["machine"])
    versions = versions_text(result["libraries"].values())

    steps_source = source_line(command, f"{what}, batches of {batch_size}; {how}", where, versions)
    steps = job_rows(result, "train") + job_rows(result, "rate")
    write_table(config.tables, "steps", table_text(steps_source, COLUMNS, steps))

    extraction_source = source_line(command, f"{what}; {how}", where, versions)
    title = f"extraction of {num_sentences:,} sentences, a second"
    extraction = job_rows(result, "extract", title)
    for row, cosines in zip(extraction, cosine_texts(result), strict=True):
        row.append(cosines)
    text = table_text(extraction_source, EXTRACTION_COLUMNS, extraction)
    write_table(config.tables, "extraction", text)


def cosine_texts(result: Mapping[str, Any]) -> list[str]:
    """How alike each peer's vectors are, in the order of the table's rows."""
    texts = []
    for row in rows_of(result, "extract")[1:]:
        cosines = result["cosines"][row["side"]]
        texts.append(f"{cosines['mean']:.4f} (least {cosines['least']:.4f})")
    return texts or [""]


def job_rows(result: Mapping[str, Any], job: str, title: str = "") -> list[list[str]]:
    """A row a peer, with the job and adapt's speed in the first one."""
    ours, *peers = rows_of(result, job)
    first = [title or JOBS[job].title, speed_text(ours)]
    if not peers:
        return [[*first, "", ""]]
    rows = []
    for peer in peers:
        rows.append([*first, speed_text(peer), ratio_text(peer)])
        first = ["", ""]
    return rows


def speed_text(row: Mapping[str, Any]) -> str:
    """``JAX 449``: who reached what; adapt has a column of its own and is not named."""
    digits = JOBS[row["job"]].digits
    speed = f"{row['median']:.{digits}f}"
    return speed if row["name"] == "adapt" else f"{row['name']} {speed}"

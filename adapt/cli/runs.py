"""Many runs as a table: what differs between their settings, how they scored, how long they took.

    adapt runs                        # everything below the folder runs
    adapt runs runs/a runs/b sweep

A folder is a run, or one that contains runs. A terminal shows the settings that differ; a log's
last line is JSON with all settings, results and lineage of every run, as `adapt.runs` has them.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from adapt.cli import console
from adapt.run_table import RunTable, runs
from adapt.training import strategies

# Settings that say nothing of what a run is.
UNSHOWN = ("run", "out", "outcome", "experiment", "resume", "overwrite", "stop_after")
MOST_SETTINGS = 4  # columns of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """Which runs."""

    title: ClassVar[str] = "runs"
    positional: ClassVar[tuple[str, ...]] = ("paths",)

    # folders of runs, or that contain runs
    paths: tuple[Path, ...] = (Path("runs"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunsOptions):
    """The flags of the command."""


def main(config: Config) -> RunTable:
    table = runs(config.paths)
    settings = differing(table)
    shown = settings[:MOST_SETTINGS]
    columns = ("run", *map(spoken, shown), "metric", "validation", "test", "seconds")
    beginning = common_folder(table)
    rows = []
    for row in table.rows:
        name = str(row["run"]).removeprefix(beginning)
        rows.append((name, *(cell(setting, row) for setting in shown), *scores_of(row)))
    title = "1 run" if len(table) == 1 else f"{len(table):,} runs"
    console.table(f"{title} in {beginning or '.'}", columns, rows)
    if len(settings) > len(shown):
        console.say(f"differing, too: {', '.join(map(spoken, settings[len(shown) :]))}")
    console.result(json.dumps(list(table.rows)))
    return table


def common_folder(table: RunTable) -> str:
    """The folder that all runs are in, with a slash at its end; "" where there is none."""
    folders = [os.path.dirname(row["run"]) for row in table.rows]
    if "" in folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return ""
    common = os.path.commonpath(folders)
    return f"{common.rstrip('/')}/" if common else ""


def differing(table: RunTable) -> list[str]:
    """The settings that are not the same in all runs, the strategy and the seed first."""
    names = [name for name in table.columns if "." not in name and name not in UNSHOWN]
    found = []
    for name in names:
        values = {json.dumps(row.get(name)) for row in table.rows}
        if len(values) > 1:
            found.append(name)
    first = [name for name in ("checkpoint", "train", "strategy", "seed") if name in found]
    return [*first, *(name for name in found if name not in first)]


def spoken(setting: str) -> str:
    """A setting as the head of a column, which breaks between words."""
    return setting.replace("_", " ")


def scores_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The deciding metric with its two scores, and the seconds of the run."""
    metric = row.get("result.primary_metric") or first_metric(list(row))
    if row["outcome"] in ("stopped", "diverged"):
        return (row["outcome"], "", "", "")
    seconds = row.get("result.seconds.total")
    scores = [cell(f"{split}.{metric}", row) for split in ("validation", "test")]
    return (metric, *scores, "" if seconds is None else f"{seconds:,.0f}")


def first_metric(names: Sequence[str]) -> str:
    """The first metric of the validation: what decides, in runs that do not say it."""
    metrics = [name for name in names if name.startswith("validation.")]
    return metrics[0].removeprefix("validation.") if metrics else "-"


def cell(name: str, row: Mapping[str, Any]) -> str:
    """An entry of a run as the table has it: nothing where there is none."""
    value = row.get(name)
    if value is None:
        return ""
    if name == "strategy":
        return strategies.shown(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)

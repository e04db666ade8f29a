"""What the figures are written as: a table in Markdown."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt.markdown import markdown_table
from tests.helpers.robustness import workers
from tests.helpers.robustness.disks import Full
from tests.helpers.robustness.kills import Kill

COLUMNS = (
    "what was damaged",
    "inputs",
    "refused in one line",
    "taken, all the same",
    "taken, changed values that nobody can know",
    "tracebacks",
    "hangs",
    "crashes",
    "silently in part",
)
OUTCOMES = (
    workers.REFUSED,
    workers.SAME,
    workers.CHANGED,
    workers.TRACEBACK,
    workers.HANG,
    workers.CRASH,
    workers.SILENT,
)
STOP_COLUMNS = (
    "what was stopped",
    "times",
    "found then: nothing",
    "found: a checkpoint",
    "found: all of it",
    "wrong afterwards",
)
PACKAGES = ("jax", "pyarrow", "datasets", "safetensors", "tokenizers", "pillow", "orbax-checkpoint")


def mutation_rows(outcomes: Sequence[workers.Outcome]) -> list[list[str]]:
    """A row a kind, and their sum."""
    names = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    rows = []
    for name in [*sorted(names), ""]:
        chosen = [outcome for outcome in outcomes if name in ("", outcome.kind)]
        counted = Counter(outcome.outcome for outcome in chosen)
        figures = [counted[outcome] for outcome in OUTCOMES]
        rows.append([name or "all", *(f"{figure:,}" for figure in (len(chosen), *figures))])
    return rows


def stop_rows(kills: Sequence[Kill], disks: Sequence[Full]) -> list[list[str]]:
    """A row a command that was killed, that found its disk full, or that met another."""
    rows = [stop_row(f"`kill -9`: {name}", chosen) for name, chosen in by_scenario(kills)]
    for name, chosen in by_scenario(disks):
        is_lock = chosen[0].how == "lock"
        rows.append(stop_row(name if is_lock else f"full disk: {name}", chosen))
    return rows


def by_scenario(stops: Sequence[Any]) -> list[tuple[str, list[Any]]]:
    """The stops of each command."""
    names = dict.fromkeys(stop.scenario for stop in stops)
    return [(name, [stop for stop in stops if stop.scenario == name]) for name in names]


def stop_row(what: str, stops: Sequence[Any]) -> list[str]:
    """A row of the table of stops."""
    states = Counter(state_of(stop.state) for stop in stops)
    wrong = sum(bool(stop.fault) for stop in stops)
    figures = (len(stops), *(states[state] for state in STATES), wrong)
    return [what, *map(str, figures)]


STATES = ("nothing", "a checkpoint", "all of it")


def state_of(state: str) -> str:
    """One of ``STATES``."""
    if state.startswith("saved"):
        return "a checkpoint"
    is_whole = state in ("finished", "features without result.json")
    return "all of it" if is_whole else "nothing"


def source_line(command: str, date: str) -> str:
    """The command, the machine, the day and the versions."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    where = f"Python {platform.python_version()} on {platform.system()}, {date}"
    return f"Source: `{command}`. {where}; {', '.join(found)}."


def write(
    folder: Path,
    sources: tuple[str, str],
    outcomes: Sequence[workers.Outcome],
    kills: Sequence[Kill],
    disks: Sequence[Full],
) -> None:
    """Write robustness.md and stops.md into a folder of tables, each with its own source."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "robustness": (sources[0], COLUMNS, mutation_rows(outcomes)),
        "stops": (sources[1], STOP_COLUMNS, stop_rows(kills, disks)),
    }
    for name, (source, columns, rows) in tables.items():
        lines = [source, "", *markdown_table(columns, rows, right=len(columns) - 1), ""]
        (folder / f"{name}.md").write_text("\n".join(lines))

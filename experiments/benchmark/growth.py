"""How the cost and the memory of a run grow with its examples and its epochs."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt.cli import console
from adapt.run_folder import versions, write_json
from experiments.benchmark import sides
from experiments.benchmark.finetune_runs import use_own_cache, whole_run
from experiments.benchmark.options import GrowthOptions, WholeRunOptions
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    source_line,
    table_text,
    versions_text,
    write_table,
)

EPOCHS = (1, 2, 4, 8)
TESTED = 200  # texts
SHOWN_COLUMNS = (
    "examples",
    "epochs",
    "encode s",
    "train s",
    "evaluate s",
    "wall s",
    "RssAnon MB",
)
COLUMNS = ("examples", "epochs", "encode, s", "train, s", "RssAnon, MB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthRun(GrowthOptions, WholeRunOptions):
    """What the measurement of growth reads."""


def main(config: GrowthRun, texts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Seconds and peak RssAnon of top:1 with the cache: for one epoch of more and more examples,
    and for more epochs. Written as growth.json.
    """
    use_own_cache(config.out)
    result: dict[str, Any] = measure(config, texts, labels)
    for what, runs in result.items():
        rows = [shown_row(run) for run in runs]
        console.table(f"more {what}, top:1 with the cache", SHOWN_COLUMNS, rows)
    result["machine"] = sides.machine(config.cores)
    result["libraries"] = {"adapt": versions()}
    write_json(config.out / "growth.json", result)
    if config.tables is not None:
        write_table(config.tables, "growth", growth_table(config, result))
    return result


def measure(
    config: GrowthRun, texts: Sequence[str], labels: Sequence[Any]
) -> dict[str, list[dict[str, Any]]]:
    """The runs with more and more ``examples``, and those of more and more ``epochs``."""
    plans = [("examples", size, 1) for size in config.sizes]
    plans += [("epochs", config.sizes[1], epochs) for epochs in EPOCHS]
    test = write_csv(config.out / "test.csv", texts[:TESTED], labels[:TESTED])
    runs: dict[str, list[dict[str, Any]]] = {"examples": [], "epochs": []}
    with console.progress("runs", len(plans)) as bar:
        for number, (what, size, epochs) in enumerate(plans, 1):
            file = config.out / f"{size}.csv"
            flags = {
                "train": write_csv(file, texts[:size], labels[:size]),
                "test": test,
                "cache": "on",
                "epochs": epochs,
            }
            seed = 100 + number  # a folder of its own for each run
            run = whole_run(config, "top:1", seed, **flags)
            run |= {"examples": size, "epochs": epochs}
            runs[what].append(run)
            bar.update(number)
    return runs


def write_csv(path: Path, texts: Sequence[str], labels: Sequence[Any]) -> Path:
    """Write labelled texts as a file that `adapt finetune` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, labels, strict=True))
    return path


def train_seconds(run: Mapping[str, Any]) -> float:
    """The seconds of training; compiling is left out."""
    return run["seconds"]["train"] - run["seconds"]["compile"]


def shown_row(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """A run as the terminal shows it."""
    seconds = run["seconds"]
    return (
        run["examples"],
        run["epochs"],
        f"{seconds['encode']:.1f}",
        f"{train_seconds(run):.1f}",
        f"{seconds['evaluate']:.1f}",
        f"{run['wall']:.0f}",
        f"{run['memory_mb']:.0f}",
    )


def growth_table(config: GrowthRun, result: Mapping[str, Any]) -> str:
    """growth.md: a row a run."""
    rows = []
    for run in [*result["examples"], *result["epochs"]]:
        encode = f"{run['seconds']['encode']:.1f}"
        train = f"{train_seconds(run):.1f}"
        memory = f"{run['memory_mb']:,.0f}"
        rows.append([f"{run['examples']:,}", str(run["epochs"]), encode, train, memory])
    source = source_line(
        command_line("experiments.benchmark.whole_runs", config),
        f"{config.checkpoint} on `{config.data}`, `top:1` with the cache, compiling left out of "
        "the seconds",
        machine_text(result["machine"]),
        versions_text(result["libraries"].values()),
    )
    return table_text(source, COLUMNS, rows, right=5)

"""With few labels and little compute, which way of adapting? Strategies by label budgets by seeds,
on one task.

    adapt compare                          # half an hour on 2 cores; writes experiments/results/compare.md
    adapt compare --checkpoint minilm      # everything on one encoder
    adapt compare --resume                 # goes on where it stopped

What trains the encoder runs on ``--checkpoint``, and what leaves it as it is (``probe``: logistic
regression on frozen features; ``centroid``: the nearest class mean) on ``--checkpoint`` and on
``--features``. A seed draws the labelled examples, the head and the order of the batches; the same
seed draws the same examples for every way. 20% of them choose among ``--tries`` rates, or strengths
of the penalty: the same number for all. The test, in and out of the domain, is done once with what
was chosen. Intervals are bootstrapped over seeds and test examples at once.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adapt import files
from adapt.cli import console
from adapt.cli.compare_plots import plot_cost, plot_labels
from adapt.cli.flags import changed_flags
from adapt.cli.run_folder import open_run
from adapt.comparison import grid
from adapt.comparison.grid import CompareOptions, Source
from adapt.comparison.page import budget_label, results_page
from adapt.comparison.summary import summarise
from adapt.data import tables
from adapt.options import ImportOptions
from adapt.pretrained import hub
from adapt.run_folder import check_out, write_json
from adapt.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareRunOptions:
    """Where the results go."""

    title: ClassVar[str] = "run"

    # the folder of compare.md and its plots
    page: Path = Path("experiments/results")
    # the folder of the cells
    out: Path = Path("runs/compare")
    # go on where it stopped
    resume: bool = False
    # replace a comparison that is there
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CompareOptions, CompareRunOptions, ImportOptions):
    """The flags of the command."""


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, config.resume, config.overwrite)
    files.local_path(config.page, "page")
    trained = hub.load(config.checkpoint)
    grid.check_options(config, trained.config.layers)
    sources = [read_source(config, config.checkpoint, trained)]
    if config.features != config.checkpoint:
        sources.append(read_source(config, config.features, hub.load(config.features)))
    grid.check_budgets(config, sources[0])
    ways = grid.make_ways(config, sources)
    cells_folder = config.out / "cells"
    with open_run(config.out, config):
        cells_folder.mkdir(exist_ok=True)
    total = len(ways) * len(config.budgets) * config.seeds
    with console.progress("fits", total) as bar:
        cells = grid.fill_grid(config, ways, cells_folder, bar.show)
    titles = [way.title for way in ways]
    result = summarise(cells, cells_folder, titles, config.budgets)
    sets = sources[0].sets
    baseline = TASKS["classification"].baseline(sets["train"].labels, sets["test"].labels)
    result |= baseline
    write_json(config.out / "compare.json", result)
    write_page(config, result, len(sets["train"]))
    return result


def read_source(config: Config, name: str, pretrained: hub.Pretrained) -> Source:
    """A checkpoint with the data as examples for its encoder."""
    parts = {part: tables.read(config.data, part) for part in ("train", "test")}
    for outside in config.out_of_domain:
        parts[outside] = tables.read(outside, "test")
    task = TASKS["classification"]
    names = task.label_names(parts["train"], config.label_column, [config.text_column])
    sets = {}
    for set_name, table in parts.items():
        labels = task.encode_labels(table, config.label_column, names)
        examples = task.examples(pretrained, table, [config.text_column], labels)
        if set_name not in ("train", "test"):
            examples = examples.take(np.arange(min(len(examples), config.test)))
        sets[set_name] = examples
    return Source(name, pretrained, sets, len(names))


def write_page(config: Config, result: dict[str, Any], num_train: int) -> None:
    """compare.md and its plots; the best way for each budget on the terminal."""
    config.page.mkdir(parents=True, exist_ok=True)
    page = config.page / "compare.md"
    text = results_page(config, result, num_train, command_line(config))
    page.write_text(text, "utf-8")
    plot_labels(config.page / "compare_labels.png", config.data, result, num_train)
    plot_cost(config.page / "compare_cost.png", config.data, result)
    for answer in result["answer"]:
        label = budget_label(answer["budget"], num_train)
        console.say(f"{label:>6} labels: {answer['best']} {answer['accuracy']:.3f}")
    console.say(f"results   {page}")


def command_line(config: Config) -> str:
    """The command that makes the page again: the flags that are not at their default."""
    of_run = [field.name for field in dataclasses.fields(CompareRunOptions)]
    return shlex.join(["adapt", "compare", *changed_flags(config, of_run)])

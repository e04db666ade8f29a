"""Which strategy is best on my data, which is as good for less, and with how many labels?

    adapt compare --train mine.csv --strategies frozen top:1 lora:8 full --out runs/compare
    adapt compare --train mine.csv --test more.csv --labels 8 32 128 all --seeds 5 --rates 0.3 1 3
    adapt compare --train mine.csv --out runs/compare --resume      # goes on where it stopped

For every strategy, number of labels and seed, the examples that choose decide among the rates; the
test is looked at once, with what was chosen. The same seed draws the same examples for every
strategy, so differences are paired. Without a test set the examples are dealt into folds, and each
seed is tested on a fold of its own.

The folder holds compare.md with two plots, cells.parquet with a row a fit, comparison.json and the
cells, by which a comparison that was stopped goes on.
"""

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from adapt import files
from adapt.cli import compare_plots, console, launch, showing
from adapt.cli.flags import changed_flags
from adapt.cli.run_folder import flags_of
from adapt.comparison.comparing import Comparison, prepare
from adapt.comparison.options import ALL, CLOSED_FORM, CompareOptions
from adapt.comparison.page import budget_label, floor_text, results_page
from adapt.data.inputs import Columns
from adapt.errors import StrategyError
from adapt.options import (
    BatchOptions,
    ConfigFileOptions,
    DataOptions,
    FinetuningOptions,
    FrozenOptions,
    ImportOptions,
    OutputOptions,
    TaskOptions,
    TextEncoderOptions,
)
from adapt.parallel.multihost import is_multiprocess
from adapt.pretrained import hub
from adapt.run_folder import check_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareRunOptions(OutputOptions):
    """Where the results go."""

    title: ClassVar[str] = "run"

    out: Path = Path("runs/compare")
    # go on where it stopped
    resume: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlsoTestedOptions:
    """Sets beside the training set."""

    title: ClassVar[str] = "data"

    # sets that are tested on too and never trained on
    also_test: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    CompareOptions,
    TextEncoderOptions,
    DataOptions,
    AlsoTestedOptions,
    TaskOptions,
    FrozenOptions,
    BatchOptions,
    CompareRunOptions,
    ConfigFileOptions,
    ImportOptions,
):
    """The flags of the command."""

    parameters: ClassVar[Mapping[str, str]] = {"budgets": "labels", "inputs": "train"}


def main(config: Config) -> dict[str, Any]:
    files.local_path(config.out, "out")
    check_out(config.out, config.resume, config.overwrite)
    if is_multiprocess():
        raise StrategyError("compare is of one process and one device: run it on one host")
    of_fits = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(FinetuningOptions)
        if hasattr(config, field.name)
    }
    prepared = prepare(
        config.checkpoint,
        config.train,
        None,
        FinetuningOptions(**of_fits),
        config,
        test=config.test,
        validation=config.validation,
        also_test={name: name for name in config.also_test},
        columns=Columns.of(config),
    )
    material = prepared.material
    console.say(f"computed  {showing.dtype_line(config.dtype)}")
    console.say(f"data      {len(material.train):,} labelled examples of {config.train}")
    showing.show_classes(material.class_counts)
    with console.progress("cells", prepared.count) as bar:
        found = prepared.run(
            config.out,
            resume=config.resume,
            overwrite=config.overwrite,
            settings=flags_of(config) | {"command": launch.command_line()},
            on_progress=bar.show,
        )
    write_page(config, found)
    show(found)
    command = training_command(config, found)
    if command is not None:
        console.say("to train the best:")
        console.say_unbroken(f"  {command}")
    console.say(f"results   {config.out / 'compare.md'}")
    summary = found.summary()
    answers = rounded(summary["answers"])
    console.result(json.dumps({"out": str(config.out), "answers": answers}))
    return summary


def rounded(value: Any) -> Any:
    """The same JSON for a person to read: numbers with a fraction have 6 significant digits."""
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def write_page(config: Config, found: Comparison) -> None:
    """compare.md and its plots."""
    folder = config.out
    plots = [("Score by cost", "cost.png")]
    compare_plots.plot_cost(folder / "cost.png", found)
    if len(found.options.budgets) > 1:
        plots.insert(0, ("Score by labels", "labels.png"))
        compare_plots.plot_labels(folder / "labels.png", found)
    command = hub.read_json(folder, "config.json").get("command") or "adapt compare"
    page = results_page(found, command, training_command(config, found), plots)
    files.write_text(folder / "compare.md", page)


def training_command(config: Config, found: Comparison) -> str | None:
    """The command that trains the best strategy on all examples, with its rate; None for a probe, or
    where no cell has all examples.
    """
    on_all = [answer for answer in found.answers if answer.labels == ALL]
    if not on_all or on_all[0].best in CLOSED_FORM:
        return None
    of_finetune = [*dataclasses.fields(FinetuningOptions), *dataclasses.fields(DataOptions)]
    names = {field.name for field in of_finetune} | {"import_"}
    if on_all[0].best not in found.freezing:
        names -= {"frozen_dtype"}
    flags = changed_flags(
        dataclasses.replace(config, epochs=found.epochs),
        [field.name for field in dataclasses.fields(config) if field.name not in names],
    )
    words = ["adapt", "finetune", *flags, "--strategy", on_all[0].best]
    return shlex.join([*words, "--rate-factor", f"{on_all[0].rate:g}"])


def show(found: Comparison) -> None:
    """A table a budget, and the answers."""
    console.say(f"tested on {found.tested}; {floor_text(found)}")
    for budget in found.options.budgets:
        rows = []
        for row in found.rows:
            if row.labels == budget:
                low, high = row.interval
                score = f"{row.score:.3f}"
                seconds = f"{row.seconds:.2g}"
                together = str(largest_group(found, row.strategy, budget))
                rows.append((row.strategy, score, f"{low:.3f} to {high:.3f}", seconds, together))
        title = f"{budget_label(budget, found)} labels"
        console.table(title, ("strategy", found.metric, "95%", "s a fit", "together"), rows)
    for answer in found.answers:
        if math.isnan(answer.score):
            console.warn(
                f"{found.metric} is not defined on the test of every seed: nothing is best"
            )
            continue
        as_good = [name for name in answer.as_good if name != answer.best]
        said = f"; as good: {', '.join(as_good)}" if as_good else ""
        label = budget_label(answer.labels, found)
        console.say(f"{label} labels: best {answer.best} {answer.score:.3f}{said}")


def largest_group(found: Comparison, strategy: str, budget: str) -> int:
    """The most fits of a strategy that trained in one program; 1: each trained alone."""
    cells = [cell for cell in found.cells if (cell.strategy, cell.budget) == (strategy, budget)]
    return max(tried.together for cell in cells for tried in cell.tries)

"""Which layer holds what a task needs? Heads on the frozen features of every layer, chosen by inner
folds, tested once.

    adapt probe                                        # tiny-bert on film reviews, some 20 s on 2 cores
    adapt probe --checkpoint minilm --data reviews --pooling mean cls --method logistic knn --out runs/probe
    adapt probe --data reviews --task regression --label-column rating
    adapt probe --checkpoint minilm --speed            # logistic regressions against scikit-learn

One pass gives the features of all layers; then the heads of all folds, seeds and strengths are
fitted together. A strength, and the best layer, pooling and method, are chosen by the scores on
inner folds of the training rows; labels of the test choose nothing. The folder holds result.json,
layers.png and config.json.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adapt import tree
from adapt.cli import console, plots, showing
from adapt.cli.run_folder import open_run
from adapt.cli.training_report import stored_line, stored_record
from adapt.cost.clock import Compiling, Laps
from adapt.data.inputs import Columns
from adapt.errors import StrategyError
from adapt.features import describe_vectors
from adapt.options import (
    CheckpointOptions,
    DeviceOptions,
    ImageSizeOptions,
    ImportOptions,
    LabelledColumnOptions,
    LongOptions,
    OutputOptions,
)
from adapt.parallel import sharding
from adapt.pretrained import hub
from adapt.probing.pipeline import check_probe, is_regression, read_data, with_own_vectors
from adapt.probing.report import ProbeOptions, ProbeReport, probe_features
from adapt.probing.speed import MANY_CLASSES, compare_small_sets, compare_with_sklearn
from adapt.run_folder import check_out, versions, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeDataOptions:
    """What is probed."""

    title: ClassVar[str] = "data"
    parameters: ClassVar[Mapping[str, str]] = {"inputs": "data"}

    # a file (.csv .tsv .jsonl .parquet .conll), several ('part-*.csv'), an image folder, a bundled
    # set, or a hub data set
    data: str = "reviews"
    # default: the test part of a bundled set; otherwise each fold of the data in its turn
    test: str | None = None
    # classification or regression
    task: str = "classification"
    # so many examples of the data, and of the test, drawn at random
    limit: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRunOptions(OutputOptions):
    """What is done, and where its results go."""

    title: ClassVar[str] = "run"

    out: Path = Path("runs/probe")
    # time logistic regressions on the last layer against scikit-learn, and nothing else: 1,000 on
    # most of the rows, and ten on eight rows of each class
    speed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    ImageSizeOptions,
    LongOptions,
    CheckpointOptions,
    LabelledColumnOptions,
    ProbeDataOptions,
    ProbeOptions,
    ProbeRunOptions,
    ImportOptions,
    DeviceOptions,
):
    """None means: chosen by the task and the data."""


def main(config: Config) -> dict[str, Any]:
    laps = Laps()
    compiling = Compiling()
    check_probe(config, config.task, config.limit)
    check_speed(config)
    check_out(config.out, None, config.overwrite, may_be_remote=True)
    pretrained = hub.with_long(hub.load(config.checkpoint), config.long)
    pretrained = hub.with_image_size(pretrained, config.image_size)
    config = with_own_vectors(config, pretrained)
    data = read_data(
        pretrained,
        config.data,
        None,
        config,
        test=config.test,
        task=config.task,
        columns=Columns.of(config),
        limit=config.limit,
    )
    test = data.is_test

    with open_run(config.out, config) as folder:
        showing.show_loaded(pretrained)
        console.say(f"data      {(~test).sum():,} rows of {config.data}, {test.sum():,} of a test")
        showing.show_classes(data.class_counts)
        vectors = describe_vectors(config.poolings, bool(config.normalize), config.prompt or "")
        console.say(f"vectors   {vectors}")
        laps.lap("set_up")
        with console.progress("extracting", len(test)) as bar:
            layout = sharding.make_layout(config.mesh)
            features = data.features(config.poolings, layout, bar.show)
        stored = data.stored(layout)
        if stored is not None:
            console.say(f"frozen    {stored_line(stored)}")
        laps.lap("features")
        if config.speed:
            last_layer = np.ascontiguousarray(features[-1, 0][~test])
            result = time_fits(last_layer, data.labels[~test])
            write_json(folder.path / "result.json", result)
            show_speed(result)
            return result
        with console.progress("probing", 0) as bar:
            report = probe_features(features, data.labels, test, data.names, config, bar.show)
        laps.lap("heads")
        result = dataclasses.asdict(report) | {
            "seconds": laps.seconds | {"compile": compiling.seconds, "total": laps.total},
            "long": {name: long.counts for name, long in data.long.items()},
            "frozen": stored_record(stored),
            "encoder_digest": tree.digest(pretrained.params["encoder"]),
            "versions": versions(),
        }
        result["plot"] = plot(config, folder.path, report)
        write_json(folder.path / "result.json", result)
    show(config, report)
    console.say(f"plot      {config.out / result['plot']}")
    return result


def plot(config: Config, folder: Path, report: ProbeReport) -> str:
    """Write layers.png; its name."""
    title = f"{config.checkpoint} on {config.data}: heads on frozen layers, 95% intervals"
    file = folder / "layers.png"
    return plots.plot_layers(file, report.cells, report.floor, report.metric, title).name


def check_speed(config: Config) -> None:
    """Raise :class:`StrategyError` where values are to be classified against the clock."""
    if config.speed and is_regression(config.task):
        raise StrategyError(
            "`speed` times logistic regressions, and `task` is regression: give classification"
        )


def show(config: Config, report: ProbeReport) -> None:
    """Print the table of cells, and what was selected."""
    columns = ("method", "layer", "pooling", "validation", "test", "95% interval", "strength")
    title = (
        f"{report.metric} of heads on {config.checkpoint}, {config.data} "
        f"(without features {report.floor:.3f})"
    )
    cells = sorted(report.cells, key=lambda cell: cell_order(config, cell))
    console.table(title, columns, [table_row(cell) for cell in cells])
    selected = report.selected
    choice, times, splits = report.choice
    console.say(
        f"selected  {choice} ({times} of {splits} splits): "
        f"test {selected['test']:.3f}, {selected['low']:.3f} to {selected['high']:.3f}"
    )
    console.say(f"selection {report.selection}")
    show_constant_features(report.cells)
    show_fits(report.cells)


def cell_order(config: Config, cell: dict[str, Any]) -> tuple[Any, ...]:
    return (cell["method"], config.poolings.index(cell["pooling"]), cell["layer"])


def table_row(cell: dict[str, Any]) -> tuple[str, ...]:
    strengths = sorted(value for value in cell["strengths"] if value is not None)
    if not strengths:
        shown = "-"
    elif strengths[0] == strengths[-1]:
        shown = f"{strengths[0]:g}"
    else:
        shown = f"{strengths[0]:g} to {strengths[-1]:g}"
    return (
        cell["method"],
        str(cell["layer"]),
        cell["pooling"],
        f"{cell['validation']:.3f}",
        f"{cell['test']:.3f}",
        f"{cell['low']:.3f} to {cell['high']:.3f}",
        shown,
    )


def show_constant_features(cells: list[dict[str, Any]]) -> None:
    """A line for every layer and pooling that has features which are constant in a training set."""
    places = {(cell["layer"], cell["pooling"], tuple(cell["constant_features"])) for cell in cells}
    for layer, pooling, features in sorted(places):
        if not features:
            continue
        named = ", ".join(map(str, features[:8]))
        if len(features) > 8:
            named += f" and {len(features) - 8} more"
        console.say(f"constant  on layer {layer}, {pooling}: features {named}; they count nothing")


def show_fits(cells: list[dict[str, Any]]) -> None:
    """A line on how the logistic regressions converged, if there were any."""
    fitted = [cell for cell in cells if "fits" in cell]
    if not fitted:
        return
    count = sum(cell["fits"] for cell in fitted)
    not_converged = sum(len(cell["not_converged"]) for cell in fitted)
    largest = max(cell["largest_gradient"] for cell in fitted)
    console.say(
        f"fits      {count:,} logistic regressions, {not_converged} did not converge; "
        f"gradient at most {largest:.1e}"
    )


def time_fits(features: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """What :func:`compare_with_sklearn` says, unless there are many classes, and under
    "small_sets" what :func:`compare_small_sets` does.
    """
    rounds = 3
    result: dict[str, Any] = {}
    if labels.max() < MANY_CLASSES:
        with console.progress("timing", rounds) as bar:
            result |= compare_with_sklearn(features, labels, rounds, on_progress=bar.show)
    with console.progress("timing small sets", rounds) as bar:
        result["small_sets"] = compare_small_sets(features, labels, rounds, on_progress=bar.show)
    return result


def show_speed(result: dict[str, Any]) -> None:
    """Print the tables of what was timed."""
    if "fits" in result:
        show_large_sets(result)
    else:
        console.say(f"large     left out: there are more than {MANY_CLASSES} classes")
    show_small_sets(result["small_sets"])


def show_large_sets(result: dict[str, Any]) -> None:
    """Print the table of fits on most of the rows."""
    columns = ("", "fits/s", "largest gradient", "coefficients off by", "adapt is faster")
    rows = []
    for side, rates in result["fits_per_second"].items():
        gradient = max(result["gradient"][side])
        error = max(result["relative_error"][side])
        rows.append((side, float(np.median(rates)), gradient, error, result["ratio"][side]))
    title = (
        f"{result['fits']:,} logistic regressions on {result['rows']:,} x {result['features']} "
        f"features, {result['classes']} classes"
    )
    console.table(title, columns, rows)
    console.say(
        f"fits      {result['not_converged']} of {result['fits']:,} did not converge; "
        f"first call {result['first_seconds']:.1f} s"
    )


def show_small_sets(result: dict[str, Any]) -> None:
    """Print the table of fits on few rows of each class."""
    columns = ("", "CPU seconds a set", "largest gradient", "adapt is faster")
    rows = []
    for side, seconds in result["cpu_seconds_per_set"].items():
        gradient = max(result["gradient"][side])
        rows.append((side, float(np.median(seconds)), gradient, result["ratio"][side]))
    title = (
        f"{result['sets']} small sets of {result['rows']:,} rows, {result['union']:,} in all, x "
        f"{result['features']} features, {result['classes']} classes"
    )
    console.table(title, columns, rows)
    above = max(result["sklearn_objective_above"])
    console.say(
        f"fits      {result['not_converged']} of {result['sets']} did not converge; "
        f"scikit-learn's objective is up to {above:.1e} above; "
        f"first call {result['first_seconds']:.1f} s"
    )

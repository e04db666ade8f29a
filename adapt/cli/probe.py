"""Which layer holds what a task needs? Heads on the frozen features of every layer, chosen by inner
folds, tested once.

    adapt probe                                        # tiny-bert on film reviews, some 20 s on 2 cores
    adapt probe --checkpoint minilm --data reviews --pooling mean cls --method logistic knn --out runs/probe
    adapt probe --data reviews --task regression --label-column rating
    adapt probe --checkpoint minilm --speed            # 1,000 logistic regressions, against scikit-learn

One pass gives the features of all layers; then the heads of all folds, seeds and strengths are
fitted together. A strength, and the best layer, pooling and method, are chosen by the scores on
inner folds of the training rows; labels of the test choose nothing. The folder holds result.json,
layers.png and config.json.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adapt import tree
from adapt.cli import console, plots, showing
from adapt.cli.run_folder import open_run
from adapt.cost.clock import Compiling, Laps
from adapt.data import bundled, packing
from adapt.data.tables import Table, check_texts, read
from adapt.errors import DataError, StrategyError
from adapt.features import table_batches
from adapt.options import (
    CheckpointOptions,
    DeviceOptions,
    ImportOptions,
    LabelledColumnOptions,
    OutputOptions,
)
from adapt.parallel import sharding
from adapt.parallel.multihost import is_multiprocess
from adapt.pretrained import hub
from adapt.probing.layers import layer_features
from adapt.probing.report import (
    ProbeOptions,
    ProbeReport,
    check_options,
    make_splits,
    probe_features,
)
from adapt.probing.speed import compare_with_sklearn
from adapt.run_folder import check_out, versions, write_json
from adapt.tasks import TASKS, get_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeDataOptions:
    """What is probed."""

    title: ClassVar[str] = "data"

    # a file (.csv .tsv .jsonl .parquet), an image folder, a bundled set, or a hub data set
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
    # time 1,000 logistic regressions on the last layer against scikit-learn, and nothing else
    speed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
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
    check_flags(config)
    check_out(config.out, None, config.overwrite, may_be_remote=True)
    if is_multiprocess():
        raise StrategyError(
            "probe is of one process: leave out `coordinator`, and give `mesh` for its devices"
        )
    pretrained = hub.load(config.checkpoint)
    tables, labels, names = read_labelled(config, pretrained)
    test = np.arange(len(labels)) >= len(tables[0])  # none where there is no test table
    make_splits(labels, test, config, regression=not names)  # refused before any work is done

    with open_run(config.out, config) as folder:
        showing.show_loaded(pretrained)
        console.say(f"data      {(~test).sum():,} rows of {config.data}, {test.sum():,} of a test")
        laps.lap("set_up")
        features = extract(config, pretrained, tables)
        laps.lap("features")
        if config.speed:
            last_layer = np.ascontiguousarray(features[-1, 0][~test])
            with console.progress("timing", 3) as bar:
                result = compare_with_sklearn(last_layer, labels[~test], 3, on_progress=bar.show)
            write_json(folder.path / "result.json", result)
            show_speed(result)
            return result
        methods = config.methods(regression=not names)
        with console.progress("probing", len(features) * len(config.pooling) * len(methods)) as bar:
            report = probe_features(features, labels, test, names, config, bar.show)
        laps.lap("heads")
        result = dataclasses.asdict(report) | {
            "seconds": laps.seconds | {"compile": compiling.seconds, "total": laps.total},
            "encoder_digest": tree.digest(pretrained.params["encoder"]),
            "versions": versions(),
        }
        result["plot"] = plot(config, folder.path, report)
        write_json(folder.path / "result.json", result)
    show(config, result)
    return result


def plot(config: Config, folder: Path, report: ProbeReport) -> str:
    """Write layers.png; its name."""
    score = score_name(config.task)
    title = f"{config.checkpoint} on {config.data}: heads on frozen layers, 95% intervals"
    path = plots.plot_layers(folder / "layers.png", report.cells, report.floor, score, title)
    return path.name


def check_flags(config: Config) -> None:
    """Raise :class:`StrategyError` for flags that contradict each other or are out of range."""
    regression = is_regression(config.task)
    check_options(config, regression)
    if config.limit is not None and not 2 * config.folds <= config.limit < 2**31:
        raise StrategyError(f"`limit` {config.limit} must be at least {2 * config.folds}")
    if config.speed and regression:
        raise StrategyError(
            "`speed` times logistic regressions, and `task` is regression: give classification"
        )


def is_regression(task: str) -> bool:
    """Whether labels are values, not classes. Raises :class:`StrategyError` for a task of other
    labels.
    """
    probed_as = get_task(task).probed_as
    if probed_as is None:
        names = sorted(name for name, other in TASKS.items() if other.probed_as)
        raise StrategyError(f"a probe has no heads for `task` {task}: give {' or '.join(names)}")
    return probed_as == "values"


def score_name(task: str) -> str:
    """What heads are scored by."""
    return "Pearson's correlation" if is_regression(task) else "accuracy"


def read_labelled(
    config: Config, pretrained: hub.Pretrained
) -> tuple[list[Table], np.ndarray, list[str]]:
    """(the table, and one of the test if there is one; labels of both, one after the other; names
    of classes).
    """
    hub.check_inputs(pretrained, config.image_column)
    is_bundled = config.data in bundled.SETS
    tables = [read(config.data, "train" if is_bundled else None)]
    test = config.test
    if test is None and is_bundled:
        test = config.data
    if test:
        tables.append(read(test, "test" if test in bundled.SETS else None))
    task = get_task(config.task)
    names = task.label_names(tables[0], config.label_column, [config.text_column])
    labels: list[Any] = [task.encode_labels(table, config.label_column, names) for table in tables]
    if config.limit:
        for number, table in enumerate(tables):
            if config.image_column is None:
                check_texts(table, config.text_column)  # here rows have the file's numbers
            kept = np.sort(np.random.RandomState(0).permutation(len(table))[: config.limit])
            tables[number], labels[number] = table.select(kept), labels[number][kept]
    if len(tables[0]) < 2 * config.folds:
        raise DataError(
            f"{config.data}: {len(tables[0])} rows are too few for `folds` {config.folds}: give "
            "two for each"
        )
    return tables, np.concatenate(labels), names


def extract(config: Config, pretrained: hub.Pretrained, tables: list[Table]) -> np.ndarray:
    """Features float32 [layers + 1, poolings, N, D] of the tables, one after the other."""
    count = sum(map(len, tables))
    truncated = [0] * len(tables)
    layout = sharding.make_layout(config.mesh)

    def windows() -> Iterator[tuple[Any, Any]]:
        start = done = 0
        for number, table in enumerate(tables):
            for index, batch, cut in table_batches(
                pretrained, table, config.text_column, config.image_column, layout
            ):
                yield [start + group for group in index], batch
                truncated[number] += cut
                bar.update(done := done + packing.num_examples(index))
            start += len(table)

    with console.progress("extracting", count) as bar:
        features = layer_features(pretrained, windows(), count, config.pooling, layout)
    for number, name in enumerate((config.data, "the test")[: len(tables)]):
        if pretrained.tokenizer:
            console.warn_truncated(truncated[number], pretrained.tokenizer.max_length, name)
    return features


def show(config: Config, result: dict[str, Any]) -> None:
    """Print the table of cells, and what was selected."""
    columns = ("method", "layer", "pooling", "validation", "test", "95% interval", "strength")
    score = score_name(config.task)
    title = (
        f"{score} of heads on {config.checkpoint}, {config.data} "
        f"(without features {result['floor']:.3f})"
    )
    cells = sorted(result["cells"], key=lambda cell: cell_order(config, cell))
    console.table(title, columns, [table_row(cell) for cell in cells])
    selected = result["selected"]
    choices = []
    for choice in selected["by_split"]:
        choices.append(f"{choice['method']} on layer {choice['layer']}, {choice['pooling']}")
    most_frequent = max(dict.fromkeys(choices), key=choices.count)
    console.say(
        f"selected  {most_frequent} ({choices.count(most_frequent)} of {len(choices)} splits): "
        f"test {selected['test']:.3f}, {selected['low']:.3f} to {selected['high']:.3f}"
    )
    console.say(f"selection {result['selection']}")
    show_constant_features(result["cells"])
    show_fits(result["cells"])
    console.say(f"plot      {config.out / result['plot']}")


def cell_order(config: Config, cell: dict[str, Any]) -> tuple[Any, ...]:
    return (cell["method"], config.pooling.index(cell["pooling"]), cell["layer"])


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


def show_speed(result: dict[str, Any]) -> None:
    """Print the table of what was timed."""
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

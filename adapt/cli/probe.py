"""Which layer holds what a task needs? Heads on the frozen features of every layer, chosen by inner folds, tested once.

    adapt probe                                        # tiny-bert on film reviews, some 20 s on 2 cores
    adapt probe --checkpoint minilm --data reviews --pooling mean cls --method logistic knn --out runs/probe
    adapt probe --data reviews --task regression --label-column rating
    adapt probe --checkpoint minilm --speed            # 1,000 logistic regressions, against scikit-learn

One pass gives the features of all layers; then the heads of all folds, seeds and strengths are fitted together. A strength,
and the best layer, pooling and method, are chosen by the scores on inner folds of the training rows; labels of the test
choose nothing. The folder holds result.json, layers.png and config.json.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapt import tree
from adapt.cli import console, inputs
from adapt.cli.launch import launch
from adapt.cli.probing import plot, speed
from adapt.cli.run_folder import check_out, open_run, versions, write_json
from adapt.cost.clock import Compiling
from adapt.data import bundled, packing
from adapt.data.tables import Table, check_texts
from adapt.errors import DataError, StrategyError
from adapt.options import DeviceOptions
from adapt.parallel import sharding
from adapt.parallel.multihost import is_multiprocess
from adapt.pretrained import hub
from adapt.probing import linear
from adapt.probing.selection import Judged, Sets, best, interval, judge, nested, resample, score
from adapt.tasks import targets


@dataclasses.dataclass(frozen=True)
class Config(DeviceOptions):
    checkpoint: str = (
        "tiny-bert"  # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    )
    data: str = "reviews"  # a file (.csv .tsv .jsonl .parquet), an image folder, a bundled set, or a hub data set
    test: str | None = (
        None  # default: the test part of a bundled set; otherwise each fold of --data in its turn
    )
    text_column: str = "text"
    label_column: str = "label"
    image_column: str | None = None  # images in place of texts
    task: Literal["classification", "regression"] = "classification"
    method: tuple[Literal["logistic", "ridge", "knn", "centroid"], ...] | None = (
        None  # default: logistic, or ridge
    )
    pooling: tuple[Literal["mean", "cls", "max", "last"], ...] = ("mean",)
    strengths: tuple[float, ...] = (
        0.1,
        1,
        10,
        100,
        1e3,
        1e4,
        1e5,
    )  # of the L2 penalty: scikit-learn's 1 / C, or alpha
    neighbours: tuple[int, ...] = (1, 5, 20, 50)  # of knn
    folds: int = 5
    seeds: int = 5  # each draws other folds
    limit: int | None = None  # so many examples of --data, and of --test, drawn at random
    speed: bool = False  # time 1,000 logistic regressions on the last layer against scikit-learn, and nothing else
    out: Path = Path("runs/probe")
    overwrite: bool = False


def main(config: Config) -> dict[str, Any]:
    clock = console.Clock()
    compiling = Compiling()
    methods = config.method or (("logistic",) if config.task == "classification" else ("ridge",))
    check_flags(config, methods)
    check_out(config.out, None, config.overwrite)
    if is_multiprocess():
        raise StrategyError(
            "probe is of one process: leave out --coordinator, and give --mesh for its devices"
        )
    pretrained = hub.load(config.checkpoint)
    tables, labels, names = read(config, pretrained)
    test = np.arange(len(labels)) >= len(tables[0])  # none where there is no test table
    classes = len(names)  # 0: regression
    sets = nested(labels, test, config.folds, config.seeds)
    check_neighbours(config, methods, sets)

    with open_run(config.out, config):
        clock.lap("set_up")
        features = extract(config, pretrained, tables)
        clock.lap("features")
        if config.speed:
            result = speed(np.ascontiguousarray(features[-1, 0][~test]), labels[~test])
            write_json(config.out / "result.json", result)
            return result
        tested = test if test.any() else ~test
        drawn = resample(np.flatnonzero(tested), len(labels))
        cells = []
        judged = []
        with console.progress("probing", len(features) * len(config.pooling) * len(methods)) as bar:
            for layer, at_layer in enumerate(features):
                for pooling, x in zip(config.pooling, at_layer, strict=True):
                    scaled = linear.standardise(x, sets.train)
                    for method in methods:
                        answers, grid, fits = heads(config, method, scaled, labels, sets, classes)
                        judged.append(judge(answers, labels, sets, classes))
                        cell = {"method": method, "layer": layer, "pooling": pooling}
                        chosen = {"strengths": [grid[index] for index in judged[-1].choice]}
                        cells.append(
                            cell
                            | scores(judged[-1], labels, tested, drawn, classes)
                            | chosen
                            | fits
                        )
                        bar.update(len(cells))
            clock.lap("heads")
        winner = best(judged, sets)
        result = {
            "selected": scores(winner, labels, tested, drawn, classes)
            | {"by_split": describe(winner, cells)},
            "cells": cells,
            "floor": floor(labels, test, classes),
            "examples": {
                "train": int((~test).sum()),
                "test": int(test.sum()) or "each fold of train in its turn",
            },
            "classes": names,
            "selection": protocol(config, bool(test.any())),
            "seconds": clock.laps | {"compile": compiling.seconds, "total": clock.total},
            "encoder_digest": tree.digest(pretrained.params["encoder"]),
            "versions": versions(),
        }
        result["plot"] = plot(config, methods, result).name
        write_json(config.out / "result.json", result)
    show(config, result)
    return result


def check_flags(config: Config, methods: tuple[str, ...]) -> None:
    """Raise :class:`StrategyError` for flags that contradict each other or are out of range."""
    if config.task == "regression" and (
        wrong := [name for name in methods if name not in ("ridge", "knn")]
    ):
        raise StrategyError(
            f"--method {wrong[0]} classifies, and --task is regression: give ridge or knn"
        )
    for name, values in (
        ("method", methods),
        ("pooling", config.pooling),
        ("strengths", config.strengths),
    ):
        if not values or len(set(values)) < len(values):
            raise StrategyError(
                f"--{name} {' '.join(map(str, values))}: give at least one, and none twice"
            )
    if not all(0 < strength < 1e30 for strength in config.strengths):
        raise StrategyError(
            f"--strengths {' '.join(map(str, config.strengths))} must be above 0 and finite"
        )
    least = {"folds": 2, "seeds": 1, "limit": 2 * config.folds}
    for name, low in least.items():
        if (value := getattr(config, name)) is not None and not low <= value < 2**31:
            raise StrategyError(f"--{name} {value} must be at least {low}")
    if config.speed and config.task == "regression":
        raise StrategyError(
            "--speed times logistic regressions, and --task is regression: give classification"
        )


def check_neighbours(config: Config, methods: tuple[str, ...], sets: Sets) -> None:
    fewest = int(sets.train.sum(1).min())
    if "knn" in methods and not (
        config.neighbours and 1 <= min(config.neighbours) <= max(config.neighbours) <= fewest
    ):
        given = " ".join(map(str, config.neighbours))
        raise StrategyError(
            f"--neighbours {given} must be 1 to {fewest}, the rows of the smallest training set"
        )


def read(config: Config, pretrained: hub.Pretrained) -> tuple[list[Table], np.ndarray, list[str]]:
    """(the table, and one of the test if there is one; labels of both, one after the other; names of classes)."""
    inputs.check_inputs(pretrained, config.image_column)
    own = config.data in bundled.SETS
    given = config.test or (config.data if own else None)
    tables = [inputs.read(config.data, split="train" if own else None)]
    tables += [inputs.read(given, split="test" if given in bundled.SETS else None)] if given else []
    names = targets.labels_of(tables[0], config.label_column, config.task)
    labels = [
        targets.encode_labels(table, config.label_column, names, config.task) for table in tables
    ]
    if config.limit:
        for number, table in enumerate(tables):
            if config.image_column is None:
                check_texts(table, config.text_column)  # here rows have the file's numbers
            kept = np.sort(np.random.RandomState(0).permutation(len(table))[: config.limit])
            tables[number], labels[number] = table.select(kept), labels[number][kept]
    if len(tables[0]) < 2 * config.folds:
        raise DataError(
            f"{config.data}: {len(tables[0])} rows are too few for --folds {config.folds}: give two for each"
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
            for index, batch, cut in inputs.windows(
                pretrained, table, config.text_column, config.image_column, layout
            ):
                yield packing.of_each(index, functools.partial(np.add, start)), batch
                truncated[number] += cut
                bar.update(done := done + packing.counted(index))
            start += len(table)

    with console.progress("extracting", count) as bar:
        features = linear.layer_features(pretrained, windows(), count, config.pooling, layout)
    for number, name in enumerate((config.data, "the test")[: len(tables)]):
        if pretrained.tokenizer:
            console.warn_truncated(truncated[number], pretrained.tokenizer.max_length, name)
    return features


def heads(
    config: Config, method: str, scaled: linear.Scaled, labels: np.ndarray, sets: Sets, classes: int
) -> tuple[np.ndarray, Sequence[Any], dict[str, Any]]:
    """(answers [S, K, H] for the rows that each set holds out, the K strengths, what there is to say of the fits).

    The strongest penalty comes first, and most neighbours, so that it wins a tie.
    """
    constant = np.flatnonzero(np.isinf(scaled.std).any(0)).tolist()
    if method == "knn":
        grid = sorted(config.neighbours, reverse=True)
        answers = linear.nearest(scaled, labels, sets.train, sets.held, tuple(grid), classes)
        return np.asarray(answers), grid, {"constant_features": constant}
    grid = sorted(config.strengths, reverse=True) if method != "centroid" else [None]
    fit = {"logistic": linear.logistic, "ridge": linear.ridge}.get(method)
    found = (
        fit(scaled, labels, sets.train, grid, classes)
        if fit
        else linear.centroid(scaled, labels, sets.train, classes)
    )
    said = {"constant_features": constant}
    if found.converged is not None and found.gradient is not None:
        stuck = [{"set": int(s), "strength": grid[k]} for s, k in np.argwhere(~found.converged)]
        said |= {
            "fits": found.converged.size,
            "largest_gradient": float(found.gradient.max()),
            "not_converged": stuck,
        }
    return np.asarray(linear.predict(found, scaled.x, sets.held, classes)), grid, said


def scores(
    judged: Judged, labels: np.ndarray, tested: np.ndarray, drawn: np.ndarray, classes: int
) -> dict[str, Any]:
    """The mean of the validation scores of the choice, and the score of the test: its mean over seeds, and interval."""
    by_seed = score(judged.answer, labels, tested[None], classes)[:, 0]
    low, high = interval(judged.answer, labels, drawn, classes)
    return {
        "validation": float(judged.validation.mean()),
        "test": float(by_seed.mean()),
        "low": low,
        "high": high,
        "by_seed": by_seed.tolist(),
    }


def describe(winner: Judged, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was selected for each outer split."""
    named = ((cells[cell], split) for split, cell in enumerate(winner.choice))
    return [
        {name: cell[name] for name in ("method", "layer", "pooling")}
        | {"strength": cell["strengths"][split]}
        for cell, split in named
    ]


def floor(labels: np.ndarray, test: np.ndarray, classes: int) -> float:
    """The score without features: of always answering the most frequent class; a constant correlates with nothing."""
    if not classes:
        return 0.0
    return float(
        np.mean(labels[test if test.any() else ~test] == np.bincount(labels[~test]).argmax())
    )


def protocol(config: Config, given: bool) -> str:
    """How things were chosen, in a sentence."""
    test = "the given test part" if given else f"each of {config.folds} outer folds"
    return (
        f"strength, layer, pooling and method are chosen by the held out rows of {config.folds} inner folds of the training "
        f"rows, for each of {config.seeds} seeds; {test} is looked at once, with what was chosen, fitted on all training rows"
    )


def show(config: Config, result: dict[str, Any]) -> None:
    columns = ("method", "layer", "pooling", "validation", "test", "95% interval", "strength")
    rows = []
    for cell in sorted(
        result["cells"],
        key=lambda cell: (cell["method"], config.pooling.index(cell["pooling"]), cell["layer"]),
    ):
        chosen = sorted(value for value in cell["strengths"] if value is not None)
        strength = (
            " to ".join(f"{value:g}" for value in dict.fromkeys((*chosen[:1], *chosen[-1:]))) or "-"
        )
        between = f"{cell['low']:.3f} to {cell['high']:.3f}"
        place = (cell["method"], str(cell["layer"]), cell["pooling"])
        rows.append((*place, f"{cell['validation']:.3f}", f"{cell['test']:.3f}", between, strength))
    name = "accuracy" if config.task == "classification" else "Pearson's correlation"
    title = f"{name} of heads on {config.checkpoint}, {config.data} (without features {result['floor']:.3f})"
    console.table(title, columns, rows, console.console)
    selected = result["selected"]
    split = result["selected"]["by_split"]
    places = [f"{each['method']} on layer {each['layer']}, {each['pooling']}" for each in split]
    often = max(dict.fromkeys(places), key=places.count)
    console.console.print(
        f"selected  {often} ({places.count(often)} of {len(places)} splits): test {selected['test']:.3f}, "
        f"{selected['low']:.3f} to {selected['high']:.3f}"
    )
    console.console.print(f"selection {result['selection']}")
    for layer, pooling, found in sorted(
        {(c["layer"], c["pooling"], tuple(c["constant_features"])) for c in result["cells"]}
    ):
        if found:
            named = ", ".join(map(str, found[:8])) + (
                f" and {len(found) - 8} more" if len(found) > 8 else ""
            )
            console.console.print(
                f"constant  on layer {layer}, {pooling}: features {named}; they count nothing"
            )
    if fitted := [cell for cell in result["cells"] if "fits" in cell]:
        count = sum(cell["fits"] for cell in fitted)
        stuck = sum(len(cell["not_converged"]) for cell in fitted)
        worst = max(cell["largest_gradient"] for cell in fitted)
        console.console.print(
            f"fits      {count:,} logistic regressions, {stuck} did not converge; gradient at most {worst:.1e}"
        )
    console.console.print(f"plot      {config.out / result['plot']}")


if __name__ == "__main__":
    launch(Config, main)

"""Predict on new rows with finished runs: a CSV file with ``prediction`` and ``probability:<label>`` columns.

    python -m experiments.predict --run runs/finetune --data new.csv --text-column text --out predictions.csv
    python -m experiments.predict --run runs/topic runs/tone --data new.csv --out predictions.csv

One row an input row, in the input's order. Multi-label predictions are joined by ``;`` (a JSON list where a label has one in
its name); regression has no probabilities. Several runs on one encoder (``--strategy frozen``) share one pass of it, and
their columns begin with the folder's name: ``tone:prediction``.
"""

import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import hub, losses, train
from adapt import tree as t
from adapt.errors import CheckpointError, OutputError, StrategyError
from experiments import launch
from experiments.parts import inputs, report


@dataclasses.dataclass(frozen=True)
class Config:
    run: tuple[Path, ...]  # the folder of a finished run, or several on one encoder
    data: str  # a file (.csv .tsv .jsonl .parquet), an image folder, a bundled set, or a hub data set
    out: Path  # the CSV file to write
    text_column: str = "text"
    image_column: str | None = None
    overwrite: bool = False


def main(config: Config) -> None:
    if config.out.exists() and not config.overwrite:
        raise OutputError(f"the output file {config.out} exists: give --overwrite to replace it, or another --out")
    runs = [load(path) for path in config.run]
    check_shared(config.run, runs)
    table = inputs.read(config.data)
    stream = inputs.windows(runs[0], table, config.text_column, config.image_column)
    forward, params = together(runs)
    truncated = [0]

    def counted() -> Iterator[tuple[np.ndarray, Any]]:
        with report.progress("predicting", len(table)) as bar:
            done = 0
            for index, batch, cut in stream:
                truncated[0] += cut
                yield index, batch
                done += len(index)
                bar.update(done)

    outputs = train.evaluate(forward, params, counted(), len(table))
    parts = np.split(outputs, np.cumsum([run.head.classes for run in runs])[:-1], -1)
    names = [f"{path.resolve().name}:" if len(runs) > 1 else "" for path in config.run]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    beside = config.out.with_name(config.out.name + ".tmp")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            heads = [["prediction", *(f"probability:{label}" for label in run.labels)] for run in runs]
            writer.writerow([name + column for name, head in zip(names, heads, strict=True) for column in head])
            found = [rows(losses.probabilities(part, run.task), run) for part, run in zip(parts, runs, strict=True)]
            writer.writerows(itertools.chain.from_iterable(row) for row in zip(*found, strict=True))
        os.replace(beside, config.out)
    finally:
        beside.unlink(missing_ok=True)
    if runs[0].tokenizer:
        report.warn_truncated(truncated[0], runs[0].tokenizer.max_length, config.data)
    report.console.print(f"{config.out}: {len(table)} predictions", soft_wrap=True)


def load(path: Path) -> hub.Pretrained:
    """A finished run. Raises :class:`CheckpointError` for anything else."""
    if not (path / "model.json").exists():
        raise CheckpointError(f"{path} is not a run's folder (no model.json): give what finetune wrote to --out")
    run = hub.load(path)
    if run.task not in losses.LOSSES:
        raise CheckpointError(
            f"{path} is a pre-training run ({run.task or 'no task'}): predict takes what finetune wrote"
        )
    return run


def check_shared(paths: tuple[Path, ...], runs: list[hub.Pretrained]) -> None:
    """Raise :class:`StrategyError` unless all runs have one encoder, which reads its inputs in one way."""
    if len({path.resolve().name for path in paths}) < len(paths):
        raise StrategyError(
            f"two runs are called {paths[0].resolve().name}: their columns would be, too; rename one folder"
        )
    reads = lambda run: (run.images, run.tokenizer and (run.tokenizer.max_length, run.tokenizer.backend.to_str()))
    for path, run in zip(paths[1:], runs[1:], strict=True):
        what = "encoder" if t.digest(run.params["encoder"]) != t.digest(runs[0].params["encoder"]) else ""
        what = what or ("way of reading inputs" if reads(run) != reads(runs[0]) else "")
        if what:
            raise StrategyError(
                f"{paths[0]} and {path} do not share one {what}: predict with each by itself (--strategy frozen keeps it)"
            )


def together(runs: list[hub.Pretrained]) -> tuple[Any, dict[str, Any]]:
    """(jitted ``(params, batch)`` -> the outputs of all heads side by side after one pass of the encoder, its parameters)."""
    models = [run.model for run in runs]

    def forward(params: dict[str, Any], batch: Any) -> jax.Array:
        x = models[0].run({"params": params["encoder"]}, batch)
        heads = zip(models, params["heads"], strict=True)
        return jnp.concatenate([model.apply_head(head, x, batch) for model, head in heads], -1)

    return jax.jit(forward), {"encoder": runs[0].params["encoder"], "heads": [run.params["head"] for run in runs]}


def rows(probabilities: np.ndarray, run: hub.Pretrained) -> Iterator[list[Any]]:
    for values in probabilities:
        if run.task == "regression":
            yield [repr(float(values[0]))]
        elif run.task == "multilabel":
            chosen = [name for name, value in zip(run.labels, values, strict=True) if value > 0.5]
            joined = json.dumps(chosen) if any(";" in name for name in run.labels) else ";".join(chosen)
            yield [joined, *map(repr, map(float, values))]
        else:
            yield [run.labels[int(values.argmax())], *map(repr, map(float, values))]


if __name__ == "__main__":
    launch(Config, main)

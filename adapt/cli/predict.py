"""Predict on new rows with finished runs: a CSV file with ``prediction`` and ``probability:<label>`` columns.

    adapt predict --run runs/finetune --data new.csv --text-column text --out predictions.csv
    adapt predict --run runs/topic runs/tone --data new.csv --out predictions.csv

One row an input row, in the input's order. Multi-label predictions are joined by ``;`` (a JSON list where a label has one in
its name), tags are a JSON list, a span is ``start,end,text``, a choice its number from 0; regression has no probabilities.
Several runs on one encoder (``--strategy frozen``) share one pass of it, and their columns begin with the folder's name:
``tone:prediction``.
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

from adapt import tree
from adapt.cli import console, inputs
from adapt.cli.launch import launch
from adapt.errors import CheckpointError, OutputError, StrategyError
from adapt.options import ImportOptions
from adapt.pretrained import hub
from adapt.tasks import TASKS, heads, predictions
from adapt.training.loop import evaluate


@dataclasses.dataclass(frozen=True)
class Config(ImportOptions):
    run: tuple[Path, ...]  # the folder of a finished run, or several on one encoder
    data: (
        str  # a file (.csv .tsv .jsonl .parquet), an image folder, a bundled set, or a hub data set
    )
    out: Path  # the CSV file to write
    text_column: str = "text"
    text_pair_column: str | None = None  # as in training
    image_column: str | None = None
    overwrite: bool = False


def main(config: Config) -> None:
    if config.out.exists() and not config.overwrite:
        raise OutputError(
            f"the output file {config.out} exists: give --overwrite to replace it, or another --out"
        )
    runs = [load(path) for path in config.run]
    check_shared(config.run, runs)
    check_pairs(config)
    task = runs[0].task
    columns = heads.text_columns(config)
    heads.check_columns(task, columns, runs[0])
    table = inputs.read(config.data)
    labels = predictions.no_labels(table, columns, task)
    part = inputs.make_examples(TASKS[task], runs[0], table, columns, config.image_column, labels)
    forward, params = together(runs)

    def counted() -> Iterator[tuple[np.ndarray, Any]]:
        with console.progress("predicting", part.num_outputs) as bar:
            done = 0
            for index, batch in part.eval_batches():
                yield index, batch
                done += len(index)
                bar.update(done)

    outputs = evaluate(forward, params, counted(), part.num_outputs)
    each = (
        np.split(outputs, np.cumsum([run.head.classes for run in runs[:-1]]), -1)
        if len(runs) > 1
        else [outputs]
    )
    names = [f"{path.resolve().name}:" if len(runs) > 1 else "" for path in config.run]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    beside = config.out.with_name(config.out.name + ".tmp")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            tops = [predictions.header(run, columns) for run in runs]
            writer.writerow(
                [name + column for name, top in zip(names, tops, strict=True) for column in top]
            )
            found = [
                predictions.rows(run, own, part, table, columns)
                for run, own in zip(runs, each, strict=True)
            ]
            writer.writerows(itertools.chain.from_iterable(row) for row in zip(*found, strict=True))
        os.replace(beside, config.out)
    finally:
        beside.unlink(missing_ok=True)
    if runs[0].tokenizer:
        console.warn_truncated(part.truncated, runs[0].tokenizer.max_length, config.data)
    console.say(f"{config.out}: {len(table)} predictions")


def load(path: Path) -> hub.Pretrained:
    """A finished run. Raises :class:`CheckpointError` for anything else."""
    if not (path / "model.json").exists():
        raise CheckpointError(
            f"{path} is not a run's folder (no model.json): give what finetune wrote to --out"
        )
    run = hub.load(path)
    predictions.check(run)
    return run


def check_pairs(config: Config) -> None:
    """Raise :class:`StrategyError` where a run was trained on pairs of texts and is given single ones, or the reverse."""
    for path in (path for path in config.run if (path / "config.json").exists()):
        before = json.loads((path / "config.json").read_text("utf-8")).get("text_pair_column")
        if bool(before) != bool(config.text_pair_column):
            was = f"with --text-pair-column {before}" if before else "without --text-pair-column"
            raise StrategyError(
                f"{path} was trained {was}: predict takes the texts of a row as training did"
            )


def check_shared(paths: tuple[Path, ...], runs: list[hub.Pretrained]) -> None:
    """Raise :class:`StrategyError` unless all runs have one encoder, which reads its inputs in one way."""
    names = [path.resolve().name for path in paths]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StrategyError(
            f"two runs are called {twice[0]}: their columns would be, too; rename one folder"
        )
    if len(runs) > 1 and (
        alone := [run.task for run in runs if run.task not in predictions.TOGETHER]
    ):
        raise StrategyError(
            f"a run of the task {alone[0]} does not predict together with others: give it alone"
        )
    reads = lambda run: (
        run.image_settings,
        run.tokenizer and (run.tokenizer.max_length, run.tokenizer.backend.to_str()),
    )
    for path, run in zip(paths[1:], runs[1:], strict=True):
        what = (
            "encoder"
            if tree.digest(run.params["encoder"]) != tree.digest(runs[0].params["encoder"])
            else ""
        )
        what = what or ("way of reading inputs" if reads(run) != reads(runs[0]) else "")
        if what:
            raise StrategyError(
                f"{paths[0]} and {path} do not share one {what}: predict with each by itself (--strategy frozen keeps it)"
            )


def together(runs: list[hub.Pretrained]) -> tuple[Any, dict[str, Any]]:
    """(jitted ``(params, batch)`` -> the outputs of all heads side by side after one pass of the encoder, its parameters)."""
    models = [run.model for run in runs]

    def forward(params: dict[str, Any], batch: Any) -> jax.Array:
        states = models[0].hidden_states(params, batch)
        outputs = []
        for model, head in zip(models, params["heads"], strict=True):
            read = jnp.concatenate([states[layer] for layer in model.input_layers], -1)
            outputs.append(model.apply_head(head, read, batch))
        return jnp.concatenate(outputs, -1)

    return jax.jit(models[0].allow_fused_attention(forward)), {
        "encoder": runs[0].params["encoder"],
        "heads": [run.params["head"] for run in runs],
    }


if __name__ == "__main__":
    launch(Config, main)

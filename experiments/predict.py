"""Predict on new rows with a finished run: a CSV file with ``prediction`` and ``probability:<label>`` columns.

    python -m experiments.predict --run runs/finetune --data new.csv --text-column text --out predictions.csv

One row an input row, in the input's order. Multi-label predictions are joined by ``;`` (a JSON list
where a label has one in its name); regression has no probabilities.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from adapt import hub, losses, train
from adapt.errors import CheckpointError, OutputError
from experiments import launch
from experiments.parts import inputs, report


@dataclasses.dataclass(frozen=True)
class Config:
    run: Path  # the folder of a finished run
    data: str  # a file (.csv .tsv .jsonl .parquet), an image folder, a bundled set, or a hub data set
    out: Path  # the CSV file to write
    text_column: str = "text"
    image_column: str | None = None
    overwrite: bool = False


def main(config: Config) -> None:
    if config.out.exists() and not config.overwrite:
        raise OutputError(f"the output file {config.out} exists: give --overwrite to replace it, or another --out")
    if not (config.run / "model.json").exists():
        raise CheckpointError(f"{config.run} is not a run's folder (no model.json): give what finetune wrote to --out")
    run = hub.load(config.run)
    if run.task not in losses.LOSSES:
        raise CheckpointError(
            f"{config.run} is a pre-training run ({run.task or 'no task'}): predict takes what finetune wrote"
        )
    table = inputs.read(config.data)
    stream = inputs.windows(run, table, config.text_column, config.image_column)
    forward = train.make_eval(run.model)
    truncated = [0]

    def counted() -> Iterator[tuple[np.ndarray, Any]]:
        with report.progress("predicting", len(table)) as bar:
            done = 0
            for index, batch, cut in stream:
                truncated[0] += cut
                yield index, batch
                done += len(index)
                bar.update(done)

    logits = train.evaluate(forward, run.params, counted(), len(table))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    beside = config.out.with_name(config.out.name + ".tmp")
    try:
        with beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["prediction", *(f"probability:{name}" for name in run.labels)])
            writer.writerows(rows(losses.probabilities(logits, run.task), run))
        os.replace(beside, config.out)
    finally:
        beside.unlink(missing_ok=True)
    if run.tokenizer:
        report.warn_truncated(truncated[0], run.tokenizer.max_length, config.data)
    report.console.print(f"{config.out}: {len(table)} predictions", soft_wrap=True)


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

"""Predict on new rows with finished runs: a CSV file with the ``row``, ``prediction`` and
``probability:<label>`` columns.

    adapt predict --run runs/finetune --data new.csv --out predictions.csv
    adapt predict --run runs/finetune --data new.csv --keep-columns id text --out predictions.csv
    adapt predict --run runs/topic runs/tone --data new.csv --out predictions.csv
    adapt predict --run tiny-bert --template "{text} It was [MASK]." \
        --verbalizer "positive=great,negative=terrible" --data new.csv --out predictions.csv

The rows are read as those of training were, from the same columns unless a flag names another. One
row an input row, in the input's order, numbered from 1 without the header. Multi-label predictions
are joined by ``;`` (a JSON list where a label has one in its name), tags are a JSON list, a span is
``start,end,text``, a choice its number from 0; regression has no probabilities. Several runs on one
encoder (``--strategy frozen``) share one pass of it, and their columns begin with the folder's
name: ``tone:prediction``.
"""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from adapt.cli import console
from adapt.cli.prompted import PromptOptions, open_run
from adapt.data import tables
from adapt.data.inputs import Columns
from adapt.errors import StrategyError
from adapt.options import ImportOptions, OutputOptions, RunColumnOptions
from adapt.predicting import ROW, Predictions, check_predicts, predict_table, side_by_side
from adapt.run import Run, check_pairs
from adapt.staging import check_file_out, written_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Which runs predict, on which rows."""

    title: ClassVar[str] = "predict"

    # the folder of a finished run, or several on one encoder
    run: tuple[Path, ...]
    # a file (.csv .tsv .jsonl .parquet .conll), several ('part-*.csv'), an image folder, a bundled
    # set, or a hub data set
    data: str
    # columns of the data that the file is to have, too
    keep_columns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PredictOptions, PromptOptions, RunColumnOptions, OutputOptions, ImportOptions):
    """The flags of the command."""

    # the CSV file to write
    out: Path


def main(config: Config) -> None:
    check_file_out(config.out, config.overwrite)
    runs = [open_run(path, config, config) for path in config.run]
    for run in runs:
        check_predicts(run.pretrained)
    columns = columns_of(config, runs)
    for run in runs:
        check_pairs(run, columns.text_pair)
    models = [run.pretrained for run in runs]
    table = tables.read(config.data, quoting=columns.quoting)
    with console.progress("predicting", len(table)) as bar:
        predictions = predict_table(
            models, table, columns.texts, columns.image, bar.show, config.keep_columns
        )
    write_csv(config.out, predictions)
    console.note_long(predictions[0].long, config.data)
    console.say(f"{config.out}: {len(table):,} predictions")


def columns_of(config: Config, runs: Sequence[Run]) -> Columns:
    """The columns of training, or those that the flags name in their place.

    Raises :class:`StrategyError` for several runs that read different columns.
    """
    first, *others = runs
    columns = first.columns_by(config)
    for run in others:
        theirs = run.columns_by(config)
        if (theirs.texts, theirs.image) != (columns.texts, columns.image):
            ours_shown = columns.image or ", ".join(columns.texts)
            theirs_shown = theirs.image or ", ".join(theirs.texts)
            raise StrategyError(
                f"{first.folder} was trained on {ours_shown} and {run.folder} on {theirs_shown}: "
                "name the columns, or predict one after the other"
            )
    return columns


def write_csv(path: Path, predictions: Sequence[Predictions]) -> None:
    """The predictions as a CSV file, complete or absent."""
    header, rows = side_by_side(predictions)
    kept = predictions[0].kept
    with written_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([ROW, *kept, *header])
        for number, row in enumerate(rows):
            of_data = [cell(values[number]) for values in kept.values()]
            writer.writerow([number + 1, *of_data, *row])


def cell(value: Any) -> Any:
    """A value of the data as a CSV file has it: a list as JSON, and nothing for a missing value."""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value

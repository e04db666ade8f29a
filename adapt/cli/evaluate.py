"""Score a finished run on new labelled rows.

    adapt evaluate --run runs/finetune --data new.csv
    adapt evaluate --run runs/finetune --data reviews --out scores.json
    adapt evaluate --run tiny-bert --template "{text} It was [MASK]." \
        --verbalizer "positive=great,negative=terrible" --data reviews

The rows are read as those of training were, from the same columns unless a flag names another. A
label that is unseen in training is an error, a tag of a word counts as wrong. The scores are a table on a terminal and one line of
JSON in a log; --out writes that JSON to a file.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from adapt import files
from adapt.cli import console
from adapt.cli.prompted import PromptOptions, open_run
from adapt.options import ImportOptions, LabelledRunColumnOptions
from adapt.predicting import score_table
from adapt.staging import check_file_out, written_file
from adapt.training.metrics_log import finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Which run is scored, on which rows."""

    title: ClassVar[str] = "evaluate"
    parameters: ClassVar[Mapping[str, str]] = {"inputs": "data"}

    # the folder of a finished run
    run: Path
    # a file (.csv .tsv .jsonl .parquet .conll), several ('part-*.csv'), an image folder, the test
    # part of a bundled set, or a hub data set
    data: str
    # a JSON file to write; default: none
    out: Path | None = None
    # replace the file that is there
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EvaluateOptions, PromptOptions, LabelledRunColumnOptions, ImportOptions):
    """The flags of the command."""


def main(config: Config) -> dict[str, Any]:
    if config.out is not None:
        check_file_out(config.out, config.overwrite)
    run = open_run(config.run, config, config)
    table, columns = run.make_labelled_table(config.data, columns=run.columns_by(config))
    with console.progress("scoring", len(table)) as bar:
        scores = score_table(run.pretrained, table, columns, bar.show)
    shown = {name: finite(value) for name, value in scores.items()}
    result = shown | {"examples": len(table), "run": str(config.run), "data": config.data}
    if config.out is not None:
        with written_file(config.out) as beside:
            files.write_json(beside, result)
    show(config, shown, len(table))
    console.result(json.dumps(result))
    return result


def show(config: Config, scores: Mapping[str, Any], count: int) -> None:
    """Print the table of the scores that are defined, and where they are written."""
    rows = [(name, value) for name, value in scores.items() if value is not None]
    title = f"{config.run} on {config.data}, {count:,} rows"
    console.table(title, ("metric", "value"), rows)
    if config.out is not None:
        console.say(f"written   {config.out}")

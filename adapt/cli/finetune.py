"""Adapt a pre-trained encoder to labelled data: discard its head, attach a new one, freeze, train.

    adapt finetune                     # tiny-bert on film reviews, some 30 s on 2 cores
    adapt finetune --checkpoint minilm --strategy top:2 --train reviews --epochs 3 --out runs/top2

The run's folder holds result.json, metrics.jsonl, history.png, config.json, lineage.json and
checkpoints; it is itself a checkpoint that the other commands take.
"""

import dataclasses
from typing import Any

from adapt.cli import plots, showing
from adapt.cli.run_folder import default_flags, flags_of
from adapt.cli.training_report import training_report
from adapt.cost.clock import Laps
from adapt.data.inputs import Columns
from adapt.finetuning import prepare
from adapt.options import (
    DataOptions,
    DeviceOptions,
    FinetuningOptions,
    ImportOptions,
    RunOptions,
)
from adapt.parallel import sharding
from adapt.run_folder import check_run_out
from adapt.training import strategies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(FinetuningOptions, DataOptions, RunOptions, ImportOptions, DeviceOptions):
    """None means: chosen by strategy, task or family, and printed."""


def main(config: Config) -> dict[str, Any]:
    laps = Laps()
    check_run_out(config.out, config.resume, config.overwrite, config.checkpoint)
    prepared = prepare(
        config.checkpoint,
        config.train,
        None,
        config,
        validation=config.validation,
        test=config.test,
        columns=Columns.of(config),
        seed=config.seed,
        layout=sharding.make_layout(config.mesh),
    )
    showing.show_start(prepared)
    task = prepared.data.task
    with training_report(f"strategy {strategies.shown(config.strategy)}") as report:
        run = prepared.train(
            config.out,
            settings=flags_of(config),
            defaults=default_flags(Config),
            resume=config.resume,
            overwrite=config.overwrite,
            callbacks=[report],
            laps=laps,
            add_files=lambda folder: plots.plot_history(folder, prepared.data.primary_metric),
        )
    if run.outcome == "stopped":
        return showing.show_stopped(run.steps, config.out)
    showing.show_end(config.out, task, run.result)
    return dict(run.result)

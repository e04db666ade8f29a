"""Adapt a pre-trained encoder to labelled data: discard its head, attach a new one, freeze, train.

    adapt finetune                     # tiny-bert on film reviews, some 30 s on 2 cores
    adapt finetune --checkpoint minilm --strategy top:2 --train reviews --epochs 3 --out runs/top2
    adapt finetune --config runs/top2/config.json --seed 1 --out runs/top2_seed1

The run's folder holds result.json, metrics.jsonl, history.png, config.json, lineage.json and
checkpoints; it is itself a checkpoint that the other commands take. With --config the file has the
defaults of all flags, so a run's own makes the same run again, bit for bit.
"""

import dataclasses
from typing import Any

from adapt.cli import launch, plots, showing
from adapt.cli.run_folder import default_flags, flags_of
from adapt.cli.training_report import training_report
from adapt.cost.clock import Laps
from adapt.data.inputs import Columns
from adapt.errors import StrategyError
from adapt.finetuning import prepare
from adapt.options import (
    HELD_OUT,
    ConfigFileOptions,
    DataOptions,
    DeviceOptions,
    FinetuningOptions,
    ImportOptions,
    RunOptions,
    SplitOptions,
)
from adapt.parallel import sharding
from adapt.run_folder import check_run_out
from adapt.training import strategies
from adapt.training.trackers import make_trackers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    FinetuningOptions,
    DataOptions,
    SplitOptions,
    RunOptions,
    ConfigFileOptions,
    ImportOptions,
    DeviceOptions,
):
    """None means: chosen by strategy, task or family, and printed."""


def main(config: Config) -> dict[str, Any]:
    laps = Laps()
    check_held_out(config.held_out, config.validation)
    check_run_out(config.out, config.resume, config.overwrite, config.checkpoint)
    prepared = prepare(
        config.checkpoint,
        config.train,
        None,
        config,
        validation=config.held_out if config.validation is None else config.validation,
        test=config.test,
        columns=Columns.of(config),
        seed=config.seed,
        split_seed=config.split_seed,
        layout=sharding.make_layout(config.mesh),
    )
    if config.resume:
        prepared = prepared.resumed(config.out)
    trackers = make_trackers(config.track, config.out, prepared.settings)
    showing.show_start(prepared)
    title = f"strategy {strategies.shown(config.strategy)}"
    with training_report(title, deciding=prepared.data.primary_metric) as report:
        run = prepared.train(
            config.out,
            settings=flags_of(config),
            defaults=default_flags(Config),
            resume=config.resume,
            overwrite=config.overwrite,
            callbacks=[report, *trackers],
            laps=laps,
            command=launch.command_line(),
            add_files=lambda folder: plots.plot_history(folder, prepared.data.primary_metric),
        )
    if run.outcome == "stopped":
        return showing.show_stopped(run.steps, config.out)
    showing.show_end(config.out, run.result)
    return dict(run.result)


def check_held_out(held_out: float, validation: str | None) -> None:
    """Raise :class:`StrategyError` for a share that is none, or that nothing is held out by."""
    if not 0 < held_out < 1:
        raise StrategyError(f"`held_out` {held_out} must be between 0 and 1")
    if validation is not None and held_out != HELD_OUT:
        raise StrategyError(
            f"`held_out` {held_out} is a share of the training set, and `validation` names "
            "other data: leave out one of them"
        )

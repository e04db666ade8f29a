"""Adapt a pre-trained encoder to labelled data: discard its head, attach a new one, freeze, train.

    adapt finetune                     # tiny-bert on film reviews, some 30 s on 2 cores
    adapt finetune --checkpoint minilm --strategy top:2 --train reviews --epochs 3 --out runs/top2

The run's folder holds result.json, metrics.jsonl, history.png, config.json, lineage.json and
checkpoints; it is itself a checkpoint that the other commands take.
"""

import dataclasses
from pathlib import Path
from typing import Any

from adapt.cli import plots, showing
from adapt.cli.run_folder import (
    check_run_out,
    check_same_origin,
    lineage,
    open_run,
    write_json,
)
from adapt.cli.training_report import training_report
from adapt.cost.clock import Compiling, Laps
from adapt.finetuning import FinetuningOptions, TaskData, build_plan, read_sets, test
from adapt.fitting import Plan, fit
from adapt.options import (
    DataOptions,
    DeviceOptions,
    ImportOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    StrategyOptions,
    TaskOptions,
    TrainingOptions,
)
from adapt.parallel import multihost, sharding
from adapt.pretrained import hub
from adapt.tasks import get_task
from adapt.training import strategies
from adapt.training.metrics_log import MetricsLog
from adapt.training.run_state import FolderCheckpoints, encoder_reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    FinetuningOptions,
    ModelOptions,
    DataOptions,
    TaskOptions,
    StrategyOptions,
    OptimizerOptions,
    TrainingOptions,
    RunOptions,
    ImportOptions,
    DeviceOptions,
):
    """None means: chosen by strategy, task or family, and printed."""


def main(config: Config) -> dict[str, Any]:
    laps = Laps()
    compiling = Compiling()
    config.check()
    check_run_out(config, config.checkpoint)
    layout = sharding.make_layout(config.mesh)
    sharding.check_batch(layout, config.batch_size, config.accumulate)

    # The checkpoint. A wrong strategy is refused before the data are read.
    pretrained = hub.load_with_options(config, config.seed)
    strategies.strategy(config.strategy, pretrained.config.layers, config.epochs)

    # The data, as examples of the task in batches.
    task = get_task(config.task)
    sets, names = read_sets(config, config, pretrained, config.seed, layout)
    data = TaskData.build(task, names, sets, config, config.seed)

    # What trains: a new head, what the strategy adds, and its phases.
    plan = build_plan(pretrained, data, config, config.seed, layout)
    showing.show_start(config, plan, data)

    # Train, from where an earlier run stopped, and test with the best checkpoint.
    with (
        open_run(config.out, config) as folder,
        training_report(f"strategy {config.strategy}") as report,
    ):
        log = MetricsLog(folder.path / "metrics.jsonl")
        checkpoints = open_checkpoints(config, folder.path, plan, data, log)
        callbacks = [log, folder.keep_when_saved, report]
        fitted = fit(plan, data, config, checkpoints=checkpoints, callbacks=callbacks, laps=laps)
        if fitted.outcome == "stopped":
            return showing.show_stopped(fitted, config.out)
        tested = test(plan, data, fitted)
        speed = fitted.progress.examples_per_second
        result = tested.scores | {"examples_per_second": speed}
        result |= {"seconds": laps.seconds | {"compile": compiling.seconds, "total": laps.total}}
        result |= tested.facts | {"saved": "full" if checkpoints.encoder is None else "delta"}
        write_json(folder.path / "result.json", result)
        plot = plots.plot_history(folder.path, task.primary_metric)
    showing.show_end(config.out, task, result, config.out / plot.name)
    return result


def open_checkpoints(
    config: Config, folder: Path, plan: Plan, data: TaskData, log: MetricsLog
) -> FolderCheckpoints:
    """The checkpoints of the run's ``folder``; a new run gets its model.json and lineage.json.

    Raises :class:`OutputError` where a run goes on with another encoder or other data.
    """
    pretrained = plan.pretrained
    origin = lineage(
        pretrained,
        config.random_weights,
        train=config.train,
        test=config.test or config.train,
        data_digest=data.sets["train"].digest,
        discarded=plan.discarded,
    )
    if multihost.is_multiprocess():
        digests = {name: examples.digest for name, examples in data.sets.items()}
        multihost.assert_same("what they read", {"the encoder": origin["encoder_digest"]} | digests)
    reference = encoder_reference(
        pretrained.source,
        plan.params,
        plan.phases[-1].labels,
        config.save,
        config.out,
        origin["encoder_digest"],
        config.random_weights,
    )
    if config.resume:
        check_same_origin(config.out, origin)
    else:
        if multihost.is_lead_process():
            hub.save_model(folder, pretrained, reference)
        write_json(folder / "lineage.json", origin)
    return FolderCheckpoints(
        folder=folder / "checkpoints",
        resumes=config.resume,
        encoder=pretrained.params["encoder"] if reference else None,
        log=log,
        layout=plan.layout,
    )

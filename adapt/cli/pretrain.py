"""Continue or start pre-training on plain text: masked-LM for BERT, causal-LM for GPT-2.

    adapt pretrain --checkpoint tiny-bert --text FILE --steps 1000 --out runs/pretrain
    adapt finetune --checkpoint runs/pretrain --out runs/adapted    # discards the head trained here

``{"encoder", "head"}`` goes in and comes out. A checkpoint without a language-model head gets a
fresh one. Every line of the text is an example; lines longer than --max-length become several. 5%
of the examples are held out.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from adapt import pretraining, tree
from adapt.cli import plots, showing
from adapt.cli.run_folder import (
    check_run_out,
    check_same_origin,
    lineage,
    open_run,
    write_json,
)
from adapt.cli.training_report import training_report
from adapt.fitting import Fitted, Plan, fit
from adapt.options import DeviceOptions, ImportOptions, RunOptions, check_ranges
from adapt.parallel import multihost, sharding
from adapt.pretrained import hub
from adapt.pretraining import PretrainingOptions, TextData, TextMetricsLog
from adapt.training import optim
from adapt.training.run_state import FolderCheckpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PretrainingOptions, RunOptions, ImportOptions, DeviceOptions):
    out: Path = Path("runs/pretrain")


def main(config: Config) -> dict[str, Any]:
    config.check()
    check_ranges(config)
    check_run_out(config, config.checkpoint)
    layout = sharding.make_layout(config.mesh)
    sharding.check_batch(layout, config.batch_size)

    # The checkpoint with its language-model head, and the text as token ids.
    pretrained = hub.load(config.checkpoint)
    pretrained = pretraining.with_max_length(pretrained, config.max_length)
    plan = pretraining.build_plan(pretrained, config, config.seed, layout)
    data = TextData.read(pretrained, config, config.seed, layout)
    showing.show_text(plan, data)

    # Train, from where an earlier run stopped.
    with (
        open_run(config.out, config) as folder,
        training_report("pre-training", shows_epochs=False) as report,
    ):
        log = TextMetricsLog(folder.path / "metrics.jsonl")
        checkpoints = open_checkpoints(config, folder.path, plan, data, log)
        fitted = fit(
            plan,
            data,
            config.fitting,
            checkpoints=checkpoints,
            callbacks=[log, folder.keep_when_saved, report],
            validate_first=True,
        )
        if fitted.outcome == "stopped":
            return showing.show_stopped(fitted, config.out)
        result = result_of(plan, fitted)
        write_json(folder.path / "result.json", result)
        plot = plots.plot_history(folder.path, "accuracy")
    showing.show_text_end(config.out, result, config.out / plot.name)
    return result


def open_checkpoints(
    config: Config, folder: Path, plan: Plan, data: TextData, log: TextMetricsLog
) -> FolderCheckpoints:
    """The checkpoints of the run's ``folder``; a new run gets its model.json and lineage.json.

    Raises :class:`OutputError` where a run goes on with another encoder or another text.
    """
    origin = lineage(
        plan.pretrained,
        config.random_weights,
        text=config.text,
        data_digest=tree.digest({"ids": data.tokens.values}),
    )
    if multihost.is_multiprocess():
        read = {"the encoder": origin["encoder_digest"], "the text": data.digest}
        multihost.assert_same("what they read", read)
    if config.resume:
        check_same_origin(config.out, origin)
    else:
        if multihost.is_lead_process():
            hub.save_model(folder, plan.pretrained)
        write_json(folder / "lineage.json", origin)
    return FolderCheckpoints(
        folder=folder / "checkpoints", resumes=config.resume, log=log, layout=plan.layout
    )


def result_of(plan: Plan, fitted: Fitted) -> dict[str, Any]:
    """What result.json says: of the last validation, and of the one before the first step."""
    progress = fitted.progress
    labels = plan.phases[0].labels
    return {
        "loss": progress.best_loss,
        "accuracy": progress.best_score,
        "perplexity": float(np.exp(min(progress.best_loss, 700.0))),
        "loss_before": progress.first_loss,
        "targets_per_second": progress.examples_per_second,
        "steps": plan.steps,
        "task": plan.pretrained.task,
        "parameters_trained": tree.count(optim.trainable(plan.params, labels)),
        "parameters_frozen": tree.count(optim.frozen(plan.params, labels)),
    }

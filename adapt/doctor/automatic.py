"""The checks that every fine-tuning run makes by itself: before its first step, and after its last.

All of them look at what is there already: the parameters, the tokens, the log and the scores.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from adapt import tree
from adapt.doctor.cases import (
    CheckpointCase,
    DataCase,
    ResultCase,
    ScoredSet,
    SettingsCase,
    TrainingCase,
    prior_loss,
    trained_leaves,
)
from adapt.doctor.checks import run_safely
from adapt.doctor.findings import Finding
from adapt.fitting import Plan
from adapt.models import is_kept
from adapt.options import HELD_OUT, FinetuningOptions, TrainingOptions
from adapt.task_data import TaskData
from adapt.training.metrics_log import Record

# The settings of a run that say what its data are, with their defaults as the command has them.
DATA_SETTINGS = {
    "validation": None,
    "test": None,
    "held_out": HELD_OUT,
    "split_seed": None,
    "seed": 0,
    "text_column": "text",
    "text_pair_column": None,
    "label_column": "label",
    "image_column": None,
    "weight_column": None,
    "offsets": "characters",
    "quoting": None,
}


def before_training(
    options: FinetuningOptions,
    plan: Plan,
    data: TaskData,
    settings: Mapping[str, Any],
    own_pooling: str | None = None,
) -> list[Finding]:
    """What is wrong with the checkpoint, the data and the options of a run.

    ``settings`` are its config.json, ``own_pooling`` is what the checkpoint says of itself.
    """
    command = planning_command(options, settings)
    checkpoint_case = CheckpointCase(
        pretrained=plan.pretrained, has_random_weights=options.random_weights
    )
    data_case = DataCase(
        pretrained=plan.pretrained,
        data=data,
        is_held_out=settings.get("validation") is None,
    )
    settings_case = SettingsCase(options=options, plan=plan, data=data, own_pooling=own_pooling)
    return [
        *run_safely("checkpoint", lambda: checkpoint_case, command),
        *run_safely("data", lambda: data_case, command),
        *run_safely("settings", lambda: settings_case, command),
    ]


def planning_command(
    options: FinetuningOptions, settings: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """The command that looks at a run of these options before it trains.

    It names what is not at its default, but for when the run logs, saves and stops.
    """
    named: dict[str, Any] = {"checkpoint": options.checkpoint, "train": settings.get("train")}
    passed_over = {"checkpoint", *(field.name for field in dataclasses.fields(TrainingOptions))}
    defaults = FinetuningOptions()
    for field in dataclasses.fields(FinetuningOptions):
        value = getattr(options, field.name)
        if field.name not in passed_over and value != getattr(defaults, field.name):
            named[field.name] = list(value) if isinstance(value, tuple) else value
    for name, default in DATA_SETTINGS.items():
        value = settings.get(name, default)
        if value != default:
            named[name] = value
    return "doctor", named


def after_training(
    options: FinetuningOptions,
    plan: Plan,
    data: TaskData,
    params: tree.Tree,
    history: Sequence[Record],
    result: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> list[Finding]:
    """What is wrong with how a run trained, and what it scores; ``params`` are its best."""

    def make_training_case() -> TrainingCase:
        return training_case(options, plan, data, params, history, result, settings)

    return [
        *run_safely("training", make_training_case),
        *run_safely("result", lambda: result_case(data, result)),
    ]


def training_case(
    options: FinetuningOptions,
    plan: Plan,
    data: TaskData,
    params: tree.Tree,
    history: Sequence[Record],
    result: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> TrainingCase:
    """The log of a run, and its parameters before the first step and after the best one."""
    phases = plan.phases[: result["best_phase"] + 1]
    labels = [phase.labels for phase in phases]
    train = data.sets["train"]
    is_plain = options.class_weights == "none" and train.weights is None
    prior = None
    if is_plain and not settings.get("loss"):
        prior = prior_loss(data.task, train.targets, data.names)
    return TrainingCase(
        history=history,
        prior_loss=prior,
        before=trained_leaves(plan.params, labels),
        after=trained_leaves(params, labels),
        outcome=result.get("outcome", "complete"),
        best_step=result["best_step"],
        has_new_head=not is_kept(plan.model.head),
    )


def after_divergence(history: Sequence[Record], steps: int) -> list[Finding]:
    """Why the loss of a run was not finite after so many steps, by its log."""
    case = TrainingCase(history=history, outcome="diverged", taken=steps)
    return run_safely("training", lambda: case)


def result_case(data: TaskData, result: Mapping[str, Any]) -> ResultCase:
    """The scores of a run beside those of answers that look at no input."""
    sets = []
    baselines = {}
    truth = {name: data.task.truth(part) for name, part in data.sets.items()}
    for name, scores in result["scores"].items():
        outputs = data.outputs.get(name)
        sets.append(ScoredSet(name=name, scores=scores, labels=truth[name], outputs=outputs))
        baselines[name] = data.task.baseline(truth["train"], truth[name])
    return ResultCase(
        task=data.task, names=data.names, sets=sets, baselines=baselines, result=result
    )

"""The checks that every fine-tuning run makes by itself: before its first step, and after its last.

All of them look at what is there already: the parameters, the tokens, the log and the scores.
"""

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
from adapt.options import FinetuningOptions
from adapt.task_data import TaskData
from adapt.training.metrics_log import Record


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
    of_checkpoint = CheckpointCase(
        pretrained=plan.pretrained, has_random_weights=options.random_weights
    )
    of_data = DataCase(
        pretrained=plan.pretrained,
        data=data,
        is_held_out=settings.get("validation") is None,
    )
    of_settings = SettingsCase(options=options, plan=plan, data=data, own_pooling=own_pooling)
    return [
        *run_safely("checkpoint", of_checkpoint, command),
        *run_safely("data", of_data, command),
        *run_safely("settings", of_settings, command),
    ]


def planning_command(
    options: FinetuningOptions, settings: Mapping[str, Any]
) -> tuple[str, Mapping[str, Any]]:
    """The command that looks at a run of these options before it trains."""
    given = {"checkpoint": options.checkpoint, "train": settings.get("train")}
    defaults = FinetuningOptions()
    for name in ("task", "strategy", "learning_rate", "head_learning_rate", "pooling", "epochs"):
        if getattr(options, name) != getattr(defaults, name):
            given[name] = getattr(options, name)
    for name in ("text_column", "text_pair_column", "label_column", "image_column"):
        if settings.get(name) not in (None, "text", "label"):
            given[name] = settings[name]
    return "doctor", given


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
    phases = plan.phases[: result["best_phase"] + 1]
    labels = [phase.labels for phase in phases]
    train = data.sets["train"]
    is_plain = options.class_weights == "none" and train.weights is None
    prior = None
    if is_plain and not settings.get("loss"):
        prior = prior_loss(data.task, train.labels, data.names)
    of_training = TrainingCase(
        history=history,
        prior_loss=prior,
        before=trained_leaves(plan.params, labels),
        after=trained_leaves(params, labels),
        outcome=result.get("outcome", "complete"),
        best_step=result["best_step"],
    )
    return [
        *run_safely("training", of_training),
        *run_safely("result", result_case(data, result)),
    ]


def after_divergence(history: Sequence[Record], steps: int) -> list[Finding]:
    """Why the loss of a run was not finite after so many steps, by its log."""
    case = TrainingCase(history=history, outcome="diverged", taken=steps)
    return run_safely("training", case)


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

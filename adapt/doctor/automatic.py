"""The checks that every fine-tuning run makes by itself: before its first step, and after its last.

All of them look at what is there already: the parameters, the tokens, the log and the scores.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from adapt.doctor.findings import Command, Finding
from adapt.fitting import Plan
from adapt.models import is_kept
from adapt.options import HELD_OUT, FinetuningOptions, TrainingOptions
from adapt.task_data import TaskData
from adapt.training.metrics_log import Record

SHAPES = 3  # that the batches of a phase have at most
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A run before its first step: what it was prepared with.

    ``settings`` are its config.json, ``own_pooling`` is what the checkpoint says of itself.
    """

    options: FinetuningOptions
    plan: Plan
    data: TaskData
    settings: Mapping[str, Any]
    own_pooling: str | None = None

    @property
    def command(self) -> Command:
        """The command that looks at the run before it trains.

        It names what is not at its default, but for when the run logs, saves and stops.
        """
        named: dict[str, Any] = {
            "checkpoint": self.options.checkpoint,
            "train": self.settings.get("train"),
        }
        passed_over = {"checkpoint", *(field.name for field in dataclasses.fields(TrainingOptions))}
        defaults = FinetuningOptions()
        for field in dataclasses.fields(FinetuningOptions):
            value = getattr(self.options, field.name)
            if field.name not in passed_over and value != getattr(defaults, field.name):
                named[field.name] = list(value) if isinstance(value, tuple) else value
        for name, default in DATA_SETTINGS.items():
            value = self.settings.get(name, default)
            if value != default:
                named[name] = value
        return "doctor", named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A run after its last step: its best parameters, its log, result.json, and its folder, if it
    has one.
    """

    planned: Planned
    params: tree.Tree
    history: Sequence[Record]
    result: Mapping[str, Any]
    folder: Path | None = None
    first_step: int = 0  # at which its last session went on

    @property
    def command(self) -> Command | None:
        """The command that looks at the run; None for one in memory."""
        return None if self.folder is None else ("doctor", {"run": str(self.folder)})


def before_training(planned: Planned) -> list[Finding]:
    """What is wrong with the checkpoint, the data and the options of a run."""
    options = planned.options
    data = planned.data
    pretrained = planned.plan.pretrained
    checkpoint_case = CheckpointCase(
        pretrained=pretrained, has_random_weights=options.random_weights
    )
    data_case = DataCase(
        pretrained=pretrained,
        data=data,
        is_held_out=planned.settings.get("validation") is None,
    )
    settings_case = SettingsCase(
        options=options, plan=planned.plan, data=data, own_pooling=planned.own_pooling
    )
    return [
        *run_safely("checkpoint", lambda: checkpoint_case, planned.command),
        *run_safely("data", lambda: data_case, planned.command),
        *run_safely("settings", lambda: settings_case, planned.command),
    ]


def after_training(trained: Trained) -> list[Finding]:
    """What is wrong with how a run trained, and what it scores."""
    return [
        *run_safely("training", lambda: training_case(trained), trained.command),
        *run_safely("result", lambda: result_case(trained), trained.command),
    ]


def training_case(trained: Trained) -> TrainingCase:
    """The log of a run, and its parameters before the first step and after the best one."""
    plan = trained.planned.plan
    data = trained.planned.data
    result = trained.result
    phases = plan.phases[: result["best_phase"] + 1]
    labels = [phase.labels for phase in phases]
    train = data.sets["train"]
    has_weights = trained.planned.options.class_weights != "none" or train.weights is not None
    prior = None
    if not has_weights and not trained.planned.settings.get("loss"):
        prior = prior_loss(data.task, train.targets, data.names)
    return TrainingCase(
        history=trained.history,
        prior_loss=prior,
        before=trained_leaves(plan.params, labels),
        after=trained_leaves(trained.params, labels),
        outcome=result.get("outcome", "complete"),
        best_step=result["best_step"],
        has_new_head=not is_kept(plan.model.head),
        first_step=trained.first_step,
        programs=SHAPES * len(plan.phases),
    )


def after_divergence(history: Sequence[Record], steps: int, folder: Path) -> list[Finding]:
    """Why the loss of the run in ``folder`` was not finite after so many steps, by its log."""
    case = TrainingCase(history=history, outcome="diverged", taken=steps)
    return run_safely("training", lambda: case, ("doctor", {"run": str(folder)}))


def result_case(trained: Trained) -> ResultCase:
    """The scores of a run beside those of answers that look at no input."""
    data = trained.planned.data
    result = trained.result
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

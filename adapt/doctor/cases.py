"""What checks look at, by subject. Everything in a case is there already: no check computes a step."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.fitting import Plan
from adapt.options import FinetuningOptions
from adapt.pretrained.hub import Pretrained
from adapt.task_data import TaskData
from adapt.tasks import Task
from adapt.training.metrics_log import Record
from adapt.training.optim import FROZEN

FEW = 20  # rows, of which shares say nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointCase:
    """A checkpoint as it was loaded."""

    pretrained: Pretrained
    has_random_weights: bool = False  # because somebody asked for it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataCase:
    """The data of a run, as the encoder reads them."""

    pretrained: Pretrained
    data: TaskData
    is_held_out: bool = False  # whether validation is a share of the training rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingsCase:
    """A run before its first step."""

    options: FinetuningOptions
    plan: Plan
    data: TaskData
    own_pooling: str | None = None  # what the checkpoint says of itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingCase:
    """A run after its last step, as its log tells it.

    ``prior_loss`` is the loss of the shares of the training labels, which look at no input; None
    where it is not known. With ``has_new_head`` the loss begins at about that; with the head of
    pre-training it can begin far above. ``before`` and ``after`` are the parameters that train, by
    path: those it began with, and the best. Both are empty where only the log is there.
    """

    history: Sequence[Record]
    prior_loss: float | None = None
    before: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    after: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    outcome: str = "complete"
    best_step: int = 0  # that of ``after``
    taken: int = 0  # steps, of which the last few may not be logged
    first_step: int = 0  # at which the last session went on
    programs: int | None = None  # that were planned: each is compiled once; None: not known
    has_new_head: bool = True

    @functools.cached_property
    def records(self) -> list[Record]:
        """The records of steps, without those of validations."""
        return [record for record in self.history if "loss" in record]

    @functools.cached_property
    def steps(self) -> int:
        return max([self.taken, *(int(record["step"]) for record in self.records)])

    @functools.cached_property
    def losses(self) -> list[float]:
        """The mean training loss of each epoch that was logged."""
        sums: dict[int, list[float]] = {}
        for record in self.records:
            sums.setdefault(int(record.get("epoch", 0)), []).append(float(record["loss"]))
        return [float(np.mean(values)) for _, values in sorted(sums.items())]

    @functools.cached_property
    def validation_losses(self) -> list[float]:
        """The loss of every validation, in their order."""
        losses = [record.get("validation_loss") for record in self.history]
        return [float(loss) for loss in losses if loss is not None]

    def reach(self, group: str) -> float | None:
        """The sum of a group's learning rates over all steps: about how far Adam can move a weight.

        None where the log does not have its rates.
        """
        total = 0.0
        before = 0
        for record in self.records:
            rate = record.get(f"rate_{group}")
            if rate is None:
                return None
            total += float(rate) * (int(record["step"]) - before)
            before = int(record["step"])
        return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """A set that was scored: its name, scores and labels; the outputs of the head where they are
    known.
    """

    name: str
    scores: Mapping[str, float | None]
    labels: Any
    outputs: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultCase:
    """What a run scored. ``baselines`` are those of each set, which look at no input."""

    task: Task
    names: Sequence[str]
    sets: Sequence[ScoredSet]
    baselines: Mapping[str, Mapping[str, float]]
    result: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """One of several runs. ``settings`` are what its score may depend on, without its ``seeds``.

    ``data`` are the digests of its data that no seed changes, by what they are of; ``data_digest``
    is that of the rows that trained, without those that a seed held out. None is not known.
    """

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, int | None]  # seed, split_seed
    data_digest: str | None
    score: float
    data: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunsCase:
    """Several runs, with their scores by one metric; ``sign`` is 1 where more of it is better, and
    -1 where less is. ``is_share`` says that the metric lies between 0 and 1.
    """

    runs: Sequence[ScoredRun]
    metric: str  # with its set: test accuracy
    sign: int = 1
    is_share: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturesCase:
    """Features [N, D] on which a head is to be trained, and what they are called."""

    features: np.ndarray
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepCase:
    """A sample of the training rows of one class each, and the run that is planned on all of them.

    ``texts`` are N texts, ``labels`` int [N] their classes; ``others`` are texts of the other
    parts, by name, and ``other_rows`` the rows of these parts that they are. ``memo`` keeps what
    several checks compute.
    """

    pretrained: Pretrained
    texts: Sequence[str]
    labels: np.ndarray
    others: Mapping[str, Sequence[str]]
    other_rows: Mapping[str, np.ndarray]
    plan: Plan
    data: TaskData
    has_random_weights: bool = False
    memo: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def trained_leaves(params: tree.Tree, labels: Sequence[tree.Tree]) -> dict[str, np.ndarray]:
    """The leaves that train in any of the phases, by path."""
    trained = set()
    for of_phase in labels:
        trained |= {path for path, group in tree.paths(of_phase).items() if group != FROZEN}
    return {path: leaf for path, leaf in tree.paths(params).items() if path in trained}


def prior_loss(task: Task, labels: Any, names: Sequence[str]) -> float | None:
    """The mean loss of the best answer that looks at no input: the entropy of classes, the variance
    of values. None for labels that are neither.
    """
    if task.label_kind == "classes":
        shares = np.bincount(np.asarray(labels), minlength=len(names)) / len(labels)
        shares = shares[shares > 0]
        return float(-(shares * np.log(shares)).sum())
    if task.label_kind == "values":
        return float(np.var(np.asarray(labels, np.float64)))
    return None

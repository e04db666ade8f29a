"""A strategy's phases made ready to run: labels, rates, schedules, optimizer and step of each."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.errors import StrategyError, TrainingError
from adapt.models import Model, peft
from adapt.parallel import sharding
from adapt.pretrained.hub import Pretrained
from adapt.training import frozen_prefix, losses, optim, strategies
from adapt.training.regularizers import Regularizer
from adapt.training.step import Step, make_step


@dataclasses.dataclass(frozen=True)
class Run:
    """One phase of a run: the epochs ``first`` to ``last - 1``."""

    number: int
    first: int
    last: int
    model: Model  # in the compute dtype
    labels: tree.Tree
    rates: dict[str, float]  # peaks, by group
    rate: Callable[[str, int], float]  # of a group at a step of the whole run
    tx: Any
    step: Step


def ready(
    config: Any,
    strategy: strategies.Strategy,
    model: Model,
    params: tree.Tree,
    per_epoch: int,
    loss: losses.Loss,
) -> list[Run]:
    """Every phase of ``strategy`` for a run of ``per_epoch`` steps an epoch.

    A group's optimizer counts from the phase in which it began, so its schedule is shifted by the steps before that.
    """
    layers = model.encoder.config.layers
    found = []
    begun = {}
    first = 0
    whole = sum(phase.epochs for phase in strategy.phases) * per_epoch
    regularizer = (
        Regularizer(strategy.l2sp, strategy.mixout) if strategy.l2sp or strategy.mixout else None
    )
    computed = model.cast(jnp.bfloat16) if config.dtype == "bfloat16" else model
    for number, phase in enumerate(strategy.phases):
        labels, factors = strategies.label_phase(phase, params, layers)
        rates = {
            group: peak(config, strategy, phase, group, model) * factor
            for group, factor in factors.items()
        }
        start = first * per_epoch
        begun = {group: begun.get(group, start) for group in rates}
        origin, steps = (
            (0, whole) if strategy.shared_schedule else (start, phase.epochs * per_epoch)
        )
        schedules = {
            group: optim.schedule(rate, steps, config.warmup, config.decay)
            for group, rate in rates.items()
        }
        groups = {
            group: optim.adamw(later(schedule, begun[group] - origin), config.weight_decay)
            for group, schedule in schedules.items()
        }
        moving = [path for path, group in tree.paths(labels).items() if group != optim.FROZEN]
        if not moving:
            what = f"--task {config.task} has a head without weights, so --strategy {config.strategy} would train nothing"
            raise StrategyError(
                f"{what}{f' in phase {number + 1}' if number else ''}: give top:1, full or lora:8"
            )
        if regularizer and phase is strategy.phases[-1] and not any(held(path) for path in moving):
            raise StrategyError(
                f"{config.strategy}: l2sp and mixout hold pre-trained weights, and none of them trains: leave them out"
            )
        tx = optim.by_label(groups, labels, config.clip_norm or None)
        step = make_step(
            computed, loss, tx, frozen_prefix.cut(labels, layers), regularizer=regularizer
        )
        rate = lambda group, at, schedules=schedules, origin=origin: float(
            schedules[group](at - origin)
        )
        found.append(
            Run(number, first, first + phase.epochs, computed, labels, rates, rate, tx, step)
        )
        first += phase.epochs
    return found


def later(schedule: Callable[[Any], Any], steps: int) -> Callable[[Any], Any]:
    return (lambda count: schedule(count + steps)) if steps else schedule


def peak(
    config: Any, strategy: strategies.Strategy, phase: strategies.Phase, group: str, model: Model
) -> float:
    """The rate of a group: as the flags say, or by default."""
    given = (
        config.head_learning_rate
        if strategies.base_group(group) == "head"
        else config.learning_rate
    )
    alone = phase.groups == ("head",) and not strategy.shared_schedule
    default = default_rate(group, alone, model.encoder.config.width)
    return default if given is None else given


def default_rate(group: str, alone: bool, width: int) -> float:
    """Larger for small encoders, for few parameters, and for a head that trains ``alone`` on features."""
    kind = strategies.base_group(group)
    if kind == "head":
        return 1e-2 if alone else 1e-3
    return (1e-4 if width < 256 else 5e-5) * strategies.LR_MULTIPLIERS.get(kind, 1.0)


def prepare(strategy: strategies.Strategy, pretrained: Pretrained) -> Pretrained:
    """The checkpoint with the config that the strategy's additions want; its parameters have them after :func:`start`."""
    return dataclasses.replace(pretrained, config=peft.with_peft(pretrained.config, strategy.peft))


def start(strategy: strategies.Strategy, model: Model, params: tree.Tree, key: Any) -> tree.Tree:
    """The parameters that a run begins with: fresh blocks where the strategy wants them, and what it adds."""
    if strategy.reinit:
        params = peft.renew_blocks(params, model, strategy.reinit, key)
    return peft.init_peft(params, model, key) if strategy.peft else params


def given(frozen: tree.Tree, run: Any, pretrained: tree.Tree) -> tree.Tree:
    """What the step gets as frozen: with a pull, the pre-trained values of what trains beside it."""
    if run.step.regularizer is None:
        return frozen
    group = tree.group_of(run.labels)
    before = {"encoder": pretrained["encoder"]}
    anchor = tree.select(before, lambda path: group(path) != optim.FROZEN)
    return frozen | {"anchor": sharding.shard_tree(anchor, run.step.layout)}


def held(path: str) -> bool:
    """Whether a leaf has a pre-trained value that a pull can hold it to."""
    return path.startswith("encoder/") and not peft.is_peft_param(path)


def base_of(
    config: Any, pretrained: Pretrained, params: tree.Tree, last: Run, digest: str
) -> dict[str, str] | None:
    """Where the encoder came from, and its digest, if checkpoints are to refer to it; None if they store all of it.

    ``auto`` refers to it where at most half of the encoder's parameters train. Raises :class:`StrategyError` where
    ``--save delta`` can't be.
    """
    moving = tree.count(optim.trainable(params, last.labels).get("encoder", {}))
    folder = Path(pretrained.source).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else pretrained.source
    why = "--random-weights has no encoder to refer to" if config.random_weights else ""
    if Path(source) == config.out.resolve():
        why = f"--out {config.out} replaces the checkpoint that it would refer to"
    if why and config.save == "delta":
        raise StrategyError(f"--save delta: {why}: give --save full")
    if (
        why
        or config.save == "full"
        or (config.save == "auto" and 2 * moving > tree.count(params["encoder"]))
    ):
        return None
    return {"source": source, "digest": digest}


def summary(runs: list[Run], params: tree.Tree) -> list[dict[str, Any]]:
    """The phases as plain JSON: epochs, and parameters by group."""
    return [
        {"epochs": run.last - run.first, "parameters": tree.summary(params, run.labels)}
        for run in runs
    ]


def changed(frozen: tree.Tree, base: tree.Tree) -> tree.Tree:
    """The frozen leaves that are not as in ``base``: what a checkpoint that refers to it has to store."""
    there = tree.paths(base)
    return tree.select(
        frozen, lambda path: path not in there or not same(tree.get(frozen, path), there[path])
    )


def same(one: Any, other: Any) -> bool:
    return np.array_equal(tree.to_numpy(one).view(np.uint8), tree.to_numpy(other).view(np.uint8))


def check_finite(loss: float, step: int) -> None:
    """Raise :class:`TrainingError` when the validation loss after ``step`` is not finite."""
    if not np.isfinite(loss):
        raise TrainingError(
            f"the validation loss is not finite after step {step}: training stopped, the last good checkpoint is kept; "
            "lower the learning rate, or look at the validation data"
        )

"""A strategy's phases, ready to run: labels, learning rates, optimizer and step of each."""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adapt import tree
from adapt.devices import compute_dtype, this_device
from adapt.errors import StrategyError
from adapt.models import Model, cached_program, is_kept, peft
from adapt.models.heads import POOLINGS_OF_CHECKPOINTS
from adapt.options import DType, FrozenDType, OptimizerOptions, Remat
from adapt.parallel import sharding
from adapt.training import events, frozen_prefix, losses, optim, strategies
from adapt.training.context import ContextLoss
from adapt.training.optim import Schedule
from adapt.training.regularizers import Regularizer
from adapt.training.step import (
    Step,
    Update,
    is_kernel,
    make_several,
    make_suffix,
    make_update,
    place_kernels,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Group:
    """The learning rate of a group of parameters."""

    peak_rate: float
    schedule: Schedule
    schedule_start: int  # the step of the run at which the schedule begins

    def rate(self, step: int) -> float:
        """The learning rate of the step after ``step`` steps of the run."""
        return float(optim.rate_at(self.schedule, step - self.schedule_start))


@dataclasses.dataclass(frozen=True)
class CompiledPhase:
    """One phase of a run, with a step that compiles when it is first called."""

    number: int
    epochs: range  # of the whole run
    model: Model  # in the dtype of the computation
    labels: tree.Tree
    groups: dict[str, Group]
    tx: optax.GradientTransformation
    step: Step
    stored_in: FrozenDType | None = None  # frozen kernels; None: in the dtype of the computation

    @property
    def dtype(self) -> str:
        """The dtype of the computation, by name."""
        return str(jnp.dtype(self.model.encoder.dtype))

    @property
    def frozen_dtype(self) -> str | None:
        """The dtype in which frozen kernels are kept on the devices; None: as they are.

        By default it is that of the computation, so that no step casts them.
        """
        dtype = self.stored_in or self.dtype
        return None if dtype == "float32" else dtype

    @property
    def rounds_kernels(self) -> bool:
        """Whether a step computes with other kernels than the checkpoint's, by how they are stored."""
        return self.frozen_dtype not in (None, self.dtype) and self.freezes_kernels

    @property
    def freezes_kernels(self) -> bool:
        """Whether a kernel of the encoder is frozen."""
        return any(
            is_kernel(path) and group == optim.FROZEN
            for path, group in tree.paths(self.labels).items()
        )

    def place_frozen(self, frozen: tree.Tree) -> tree.Tree:
        """Frozen parameters on the devices, as a step takes them."""
        return place_kernels(frozen, self.frozen_dtype, self.model.layout)

    def place(self, params: tree.Tree) -> tree.Tree:
        """All parameters on the devices, as an evaluation takes them."""
        frozen = self.place_frozen(optim.frozen(params, self.labels))
        trainable = optim.trainable(params, self.labels)
        return tree.merge(frozen, sharding.shard_tree(trainable, self.model.layout))

    def rates(self, step: int) -> dict[str, float]:
        """The learning rates by group of the step after ``step`` steps of the run."""
        return {name: group.rate(step) for name, group in self.groups.items()}

    def summary(self, params: tree.Tree) -> events.PhaseSummary:
        """What the phase trains of ``params``, in plain numbers."""
        groups = []
        for name, count in tree.summary(params, self.labels).items():
            rate = self.groups[name].peak_rate if name in self.groups else None
            groups.append(events.GroupSummary(name, count, rate))
        return events.PhaseSummary(self.number, self.epochs, tuple(groups))


def computing_model(
    model: Model, dtype: DType, remat: Remat, scan: bool, layout: sharding.Layout | None
) -> Model:
    """The model as a run computes it: in its dtype, on its mesh, its blocks unrolled or as a loop.

    A warning says where a loop costs more than it saves.
    """
    if scan and remat == "none" and this_device().is_accelerator:
        logger.warning(
            "`scan` without `remat`: every pass of the loop copies what the backward pass needs of "
            "it, which about doubles the time of a step here: leave `scan` out, or give `remat` "
            "block"
        )
    model = dataclasses.replace(model, layout=layout, remat=remat, scan=scan)
    used = compute_dtype(dtype)
    return model if used == "float32" else model.cast(jnp.dtype(used))


def build_phases(
    strategy: strategies.Strategy,
    spec: str,
    model: Model,
    params: tree.Tree,
    loss: losses.Loss | ContextLoss,
    options: OptimizerOptions,
    steps_per_epoch: int,
    frozen_dtype: FrozenDType | None = None,
) -> list[CompiledPhase]:
    """Every phase of ``strategy``, for a ``model`` in the dtype of its computation.

    ``spec`` is how the strategy was spelled, for errors. Raises :class:`StrategyError` where a
    phase would train nothing.
    """
    blocks = model.encoder.config.own_blocks
    total_steps = sum(phase.epochs for phase in strategy.phases) * steps_per_epoch
    regularizer = None
    if strategy.l2sp or strategy.mixout:
        regularizer = Regularizer(strategy.l2sp, strategy.mixout)

    phases = []
    first_epoch = 0
    started: dict[str, int] = {}  # the step at which a group began, by group
    for number, phase in enumerate(strategy.phases):
        phase_start = first_epoch * steps_per_epoch
        if strategy.shared_schedule:
            schedule_start, schedule_steps = 0, total_steps
        else:
            schedule_start, schedule_steps = phase_start, phase.epochs * steps_per_epoch

        labels, factors = strategies.label_phase(phase, params, blocks)
        check_something_trains(labels, spec, number)
        if regularizer and phase is strategy.phases[-1]:
            check_something_is_pretrained(labels, model.head, spec)

        # A group's optimizer counts from the phase in which the group began, so its schedule is
        # shifted by the steps that the schedule was on before that.
        started = {name: started.get(name, phase_start) for name in factors}
        is_probe = phase.groups == ("head",) and not strategy.shared_schedule
        groups = {}
        optimizers = {}
        for name, factor in factors.items():
            peak_rate = chosen_rate(options, name, is_probe, model) * factor * options.rate_factor
            schedule = optim.schedule(peak_rate, schedule_steps, options.warmup, options.decay)
            groups[name] = Group(peak_rate, schedule, schedule_start)
            own_schedule = schedule.after(started[name] - schedule_start)
            optimizers[name] = optim.adamw(
                own_schedule, options.weight_decay, strategy.bias_correction
            )

        tx = optim.by_label(optimizers, labels, options.clip_norm or None)
        step = make_phase_step(
            model, loss, labels, options.decay, options.clip_norm > 0, regularizer
        )
        epochs = range(first_epoch, first_epoch + phase.epochs)
        phases.append(CompiledPhase(number, epochs, model, labels, groups, tx, step, frozen_dtype))
        first_epoch += phase.epochs
    return phases


def check_frozen_dtype(
    frozen_dtype: FrozenDType | None, spec: str, phases: Iterable[CompiledPhase]
) -> None:
    """Raise :class:`StrategyError` for a ``frozen_dtype`` where no phase has a frozen kernel."""
    if frozen_dtype is not None and not any(phase.freezes_kernels for phase in phases):
        raise StrategyError(
            f"`frozen_dtype` {frozen_dtype}: `strategy` {spec} freezes no kernel of the encoder: "
            "give frozen, top:K, bitfit or lora:8, or leave `frozen_dtype` out"
        )


def trained_paths(labels: tree.Tree) -> list[str]:
    return [path for path, group in tree.paths(labels).items() if group != optim.FROZEN]


def check_something_trains(labels: tree.Tree, spec: str, number: int) -> None:
    """Raise :class:`StrategyError` if every leaf is frozen, as with a head without weights."""
    if not trained_paths(labels):
        where = f" in phase {number + 1}" if number else ""
        raise StrategyError(
            f"the head of this `task` has no weights, so `strategy` {spec} would train nothing"
            f"{where}: give top:1, full or lora:8"
        )


def check_something_is_pretrained(labels: tree.Tree, head: Any, spec: str) -> None:
    """Raise :class:`StrategyError` if nothing that trains has a pre-trained value to be held to."""
    if not any(has_pretrained_value(path, head) for path in trained_paths(labels)):
        raise StrategyError(
            f"`strategy` {spec}: l2sp and mixout hold pre-trained weights, and none of them "
            "trains: leave them out"
        )


def make_phase_step(
    model: Model,
    loss: losses.Loss | ContextLoss,
    labels: tree.Tree,
    decay: str,
    clips: bool,
    regularizer: Regularizer | None = None,
) -> Step:
    """The step of a phase, with rates that fall by ``decay``, whose gradient is clipped or not.

    Phases that differ in rates, lengths, weight decay, the norm of clipping or the seed alone have
    one compiled program: in this process, and by JAX's compilation cache in others.
    """
    depth = frozen_prefix.cut(labels, model.encoder.config.layers)
    groups = tuple(tree.paths(labels).items())
    update, suffix, several = shared_suffix(model, loss, groups, decay, clips, depth, regularizer)
    prefix = frozen_prefix.cut_at(model, depth) if depth else None
    return Step(prefix, suffix, update, regularizer, model.layout, several)


@cached_program
def shared_suffix(
    model: Model,
    loss: losses.Loss | ContextLoss,
    labels: tuple[tuple[str, str], ...],
    decay: str,
    clips: bool,
    depth: int,
    regularizer: Regularizer | None,
) -> tuple[Update, Any, Any]:
    """(what a step computes, the jitted suffix of a step, that of several steps): the same ones for
    the same arguments, which are all that the programs depend on.
    """
    by_path = dict(labels)
    any_rate = optim.adamw(optim.schedule(1.0, steps=1, decay=decay))  # rates come with the state
    optimizers = {group: any_rate for group in by_path.values() if group != optim.FROZEN}
    tx = optim.by_label(optimizers, tree.unflatten(by_path), 1.0 if clips else None)
    update = make_update(model, loss, tx, depth, regularizer=regularizer)
    return update, make_suffix(model, loss, update), make_several(model, loss, update)


def chosen_rate(options: OptimizerOptions, group: str, is_probe: bool, model: Model) -> float:
    """The rate of a group before its factor: the one of the options, or by default."""
    is_head = strategies.base_group(group) == "head"
    rate = options.head_learning_rate if is_head else options.learning_rate
    if rate is not None:
        return rate
    width = model.encoder.config.width
    if is_head and is_kept(model.head):
        # It is pre-trained, too: a new head's rate would undo what it knows.
        return 1e-3 if is_probe else default_rate("encoder", is_probe, width)
    return default_rate(group, is_probe, width)


def default_rate(group: str, is_probe: bool, width: int) -> float:
    """Larger for small encoders, for few parameters, and for a head that trains alone (a probe)."""
    base_group = strategies.base_group(group)
    if base_group == "head":
        return 1e-2 if is_probe else 1e-3
    encoder_rate = 1e-4 if width < 256 else 5e-5
    return encoder_rate * strategies.LR_MULTIPLIERS.get(base_group, 1.0)


def init_params(
    strategy: strategies.Strategy, model: Model, params: tree.Tree, key: jax.Array
) -> tree.Tree:
    """The parameters before the first step: fresh blocks, and what else the strategy adds."""
    if strategy.reinit:
        params = peft.renew_blocks(params, model, strategy.reinit, key)
    if strategy.peft:
        params = peft.init_peft(params, model, key)
    return params


def with_anchor(frozen: tree.Tree, phase: CompiledPhase, pretrained: tree.Tree) -> tree.Tree:
    """The frozen parameters as the step of a phase takes them.

    A regularizer finds the pre-trained values of what trains under ``anchor``; ``pretrained`` are
    the checkpoint's parameters.
    """
    if phase.step.regularizer is None:
        return frozen
    values = tree.paths(pretrained)
    anchor = {}
    for path in trained_paths(phase.labels):
        if has_pretrained_value(path, phase.model.head):
            anchor[path] = values[path.replace("head/below/", "head/", 1)]
    return frozen | {"anchor": sharding.shard_tree(tree.unflatten(anchor), phase.model.layout)}


def has_pretrained_value(path: str, head: Any) -> bool:
    """Whether a leaf has a pre-trained value to which a regularizer can hold it: one of the encoder,
    of a head of pre-training that is kept, or below the new one, and of a checkpoint's pooling.
    """
    if path.startswith("encoder/"):
        return not peft.is_peft_param(path)
    if is_kept(head) or path.startswith("head/below/"):
        return True
    pooling = getattr(head, "pooling", None)
    return pooling in POOLINGS_OF_CHECKPOINTS and path.startswith(f"head/{pooling}/")

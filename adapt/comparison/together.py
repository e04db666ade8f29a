"""Fits that train together: S seeds by K rates of one strategy, whose steps are one program.

Such fits differ in what trains, in the rates and in the seed, which all are data of a step. So
their states are stacked, [S, K, ...], and :func:`jax.vmap` of a fit's step takes a step of all of
them. What is frozen is there once. The rates of a seed have the same batches and the same dropout:
these are there, and are computed, once a seed.

Validations, the best parameters and the end of a fit are those of a fit alone, one after the other.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.cost import clock
from adapt.data import packing
from adapt.errors import TrainingError
from adapt.fitting import ActivePhase, Fitted, Plan, Session, TrainingData
from adapt.models import allow_packed_kernel
from adapt.options import TrainingOptions
from adapt.training import optim, phases
from adapt.training.events import Outcome
from adapt.training.step import Batch, State, Step, Update

STEPS_AHEAD = 20  # that a device is given before the host waits for it

# A CPU computes a step of more FLOPs no faster for several fits than for one after the other: its
# cores are busy. MiniLM, 2 cores: lora:8 (40 GFLOP) takes 1.05 of the time, a head alone .1.
MOST_FLOPS_ON_A_CPU = 1e8
BYTES_ON_A_CPU = 4 << 30  # of a group
SHARE_OF_A_DEVICE = 0.6  # of an accelerator's free memory
MOST_FITS = 60  # of a group: more gain little, and none of its cells is written before its end


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one step of a fit alone takes."""

    flops: float  # prefix and suffix
    bytes: int  # without what is frozen


def step_cost(step: Step, frozen: tree.Tree, state: State, batch: Batch) -> StepCost:
    """The compiler's figures for one step of a fit; arguments may be shapes."""
    programs = step.programs(frozen, state, batch)
    flops = sum(program.cost_analysis()["flops"] for program in programs.values())
    read = frozen if step.prefix is None else step.prefix.split(frozen)[1]
    own_bytes = clock.peak_bytes(programs["suffix"]) - tree.nbytes(read)
    return StepCost(flops, max(own_bytes, 0))


def pays(cost: StepCost, plan: Plan) -> bool:
    """Whether fits of one phase are quicker together.

    On a CPU where a step is so small that calling it takes longer than computing it; elsewhere
    where at most half of the parameters train, so that most products are those of all fits.
    """
    if jax.default_backend() == "cpu":
        return cost.flops <= MOST_FLOPS_ON_A_CPU
    trained = tree.count(optim.trainable(plan.params, plan.phases[0].labels))
    return 2 * trained <= tree.count(plan.params)


def most_together(cost: StepCost) -> int:
    """How many fits are to train together: as many as have room on the device, at least 1."""
    stats = jax.local_devices()[0].memory_stats()
    room = float(BYTES_ON_A_CPU)
    if stats and "bytes_limit" in stats:
        room = SHARE_OF_A_DEVICE * (stats["bytes_limit"] - stats["bytes_in_use"])
    fits = int(room // max(cost.bytes, 1))
    return max(1, min(fits, MOST_FITS))


def program_of(plan: Plan) -> tuple[Any, ...]:
    """What plans of one phase must share to train together: program, frozen arrays and length.

    Arrays are told apart by their ``id``: compare only while the plans are alive.
    """
    (phase,) = plan.phases
    frozen = jax.tree.leaves(optim.frozen(plan.params, phase.labels))
    frozen_arrays = tuple(id(leaf) for leaf in frozen)
    return phase.step.suffix, frozen_arrays, phase.epochs, plan.steps_per_epoch


@dataclasses.dataclass
class Member:
    """One fit of a group: what it knows of its progress, and how it ended."""

    session: Session
    active: ActivePhase
    outcome: Outcome | None = None
    diverged: bool = False

    @property
    def is_training(self) -> bool:
        return self.outcome is None and not self.diverged

    def stop_if_stale(self) -> None:
        if self.is_training and self.session.is_stale(self.active.phase):
            self.outcome = "early"

    def validate(self, params: tree.Tree, step: int, epoch: int) -> None:
        """Score the parameters after ``step`` steps, and keep them if they are the best."""
        session = self.session
        session.progress.step = step
        state = State(
            step=jnp.int32(step),
            params=params,
            opt_state=(),
            key=session.plan.key,
            halted=jnp.bool_(False),
        )
        try:
            session.validate(self.active, state, epoch)
        except TrainingError:
            self.diverged = True

    def finish(self) -> Fitted | None:
        """How training ended; None where the loss diverged."""
        if self.diverged:
            return None
        return self.session.finish(self.outcome or "complete", self.active)


def fit_together(
    plans: Sequence[Sequence[Plan]],
    data: Sequence[Sequence[TrainingData]],
    options: TrainingOptions,
) -> list[list[Fitted | None]]:
    """What :func:`adapt.fitting.fit` gives for each of S by K plans, to round-off; None where it
    raises :class:`TrainingError`, since the loss diverged.

    The plans of a row are those of a seed: their batches are the same. All of them have to have one
    phase and the same :func:`program_of`. A fit that ended early keeps its best parameters, and
    its place in the group until all fits have ended.
    """
    (phase,) = plans[0][0].phases
    group, frozen, states = open_group(plans, data, options)
    members = [member for row in group for member in row]
    inputs = phases.with_anchor(frozen, phase, plans[0][0].pretrained.params)
    take_step = joint_step(phase.step.update)
    count = 0
    for epoch in phase.epochs:
        for member in members:
            member.stop_if_stale()
        if not any(member.is_training for member in members):
            break
        by_seed = [row[0].active.data.batches(epoch, 0) for row in group]
        for read, batch in joint_batches(phase.step, inputs, by_seed):
            states = take_step(read, states, batch, np.int32(count))
            count += 1
            if count % STEPS_AHEAD == 0:
                jax.block_until_ready(states.step)
        judge(group, states, count, epoch)
    return [[member.finish() for member in row] for row in group]


def open_group(
    plans: Sequence[Sequence[Plan]],
    data: Sequence[Sequence[TrainingData]],
    options: TrainingOptions,
) -> tuple[list[list[Member]], tree.Tree, State]:
    """(the fits before their first step, what is frozen in all of them, their states [S, K])."""
    group: list[list[Member]] = []
    states: list[State] = []
    digest = None  # of what is frozen in all of them
    computed = None  # the same as a step takes it
    for plans_of_seed, data_of_seed in zip(plans, data, strict=True):
        row = []
        for plan, examples in zip(plans_of_seed, data_of_seed, strict=True):
            session = Session.open(plan, options, None, (), None)
            frozen, state = session.init_state()
            digest = tree.digest(frozen) if digest is None else digest
            active = session.enter(plan.phases[0], frozen, examples, state, digest, computed)
            computed = active.computed
            row.append(Member(session, active))
            states.append(state)
        group.append(row)
    shape = (len(group), len(group[0]))

    def stacked(*leaves: jax.Array) -> jax.Array:
        return jnp.stack(leaves).reshape(*shape, *leaves[0].shape)

    return group, computed or {}, jax.tree.map(stacked, *states)


def judge(group: Sequence[Sequence[Member]], states: State, count: int, epoch: int) -> None:
    """Validate every fit that trains, at the end of an epoch; one that halted has diverged."""
    halted = np.asarray(states.halted)
    for i, row in enumerate(group):
        for j, member in enumerate(row):
            if not member.is_training:
                continue
            if halted[i, j]:
                member.diverged = True
            else:
                member.validate(leaves_at(states.params, i, j), count, epoch)


@jax.jit
def leaves_at(params: tree.Tree, i: Any, j: Any) -> tree.Tree:
    """The parameters of one fit of all, [S, K, ...] -> [...]."""
    return jax.tree.map(lambda leaf: leaf[i, j], params)


@functools.lru_cache(maxsize=32)
def joint_step(update: Update) -> Any:
    """The jitted ``(frozen, states, batches, count) -> states``, with the states donated.

    ``states`` are [S, K, ...], ``batches`` [S, ...]; ``count`` int32 is that of the steps taken. A
    seed's key is folded with it once, so that the dropout of a seed is drawn once. The same
    function for the same update, so that what it has compiled serves the next group.
    """
    of_rates = jax.vmap(update, in_axes=(None, 0, None, None))
    of_seeds = jax.vmap(of_rates, in_axes=(None, 0, 0, 0))

    def step(frozen: tree.Tree, states: State, batches: Batch, count: jax.Array) -> State:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(states.key[:, 0], count)
        states, _ = of_seeds(frozen, states, batches, keys)
        return states

    return jax.jit(allow_packed_kernel(step), donate_argnums=1)


def joint_batches(
    step: Step, inputs: tree.Tree, by_seed: Sequence[Iterable[packing.Arrays]]
) -> Iterator[tuple[tree.Tree, Batch]]:
    """(the frozen parameters that a suffix reads, its batches [S, ...]) of every step.

    Batches of different seeds have the rows of the largest of them.
    """
    for batches in zip(*by_seed, strict=True):
        read = inputs
        made: list[Batch] = []
        for batch in packing.with_common_rows(batches):
            if step.prefix is not None:
                read, batch = step.prefix(inputs, batch)
            made.append(batch)
        yield read, {name: stack([batch[name] for batch in made]) for name in made[0]}


def stack(arrays: Sequence[Any]) -> Any:
    """Arrays on a leading axis: on the host where they are."""
    if isinstance(arrays[0], jax.Array):
        return jnp.stack(arrays)
    return np.stack(arrays)

"""Many short fits of one strategy: compiled once, with other seeds, examples, rates and lengths as
data.
"""

import dataclasses
import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapt import tree
from adapt.cost import clock
from adapt.cost.flops import prefix_flops
from adapt.data import packing
from adapt.data.examples import Examples
from adapt.errors import TrainingError
from adapt.models import Classifier, Encoder, Model, peft
from adapt.prefix_cache import policy
from adapt.pretrained import hub
from adapt.training import frozen_prefix, losses, optim, phases, strategies
from adapt.training.loop import evaluate, run_steps
from adapt.training.regularizers import Regularizer
from adapt.training.step import State, Step, advance, init_state, make_eval, make_step

BATCH = 32
REPEATS = 5  # of a timed window
LOG_AT_THE_END = 1 << 30  # steps between looks at the device


def adjustable(weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW whose peak rate and length are part of its state, so that other ones compile nothing:
    see :func:`adjust`.
    """

    def adamw(peak: Any, steps: Any, begun: Any) -> optax.GradientTransformation:
        def rate(count: Any) -> Any:
            step = count - begun
            warmup = jnp.maximum(jnp.round(0.1 * steps), 1)
            rising = (step + 1) / warmup
            falling = jnp.maximum(steps - step, 0) / jnp.maximum(steps - warmup, 1)
            return peak * jnp.minimum(rising, falling)

        return optim.adamw(rate, weight_decay)

    return optax.inject_hyperparams(adamw)(peak=0.0, steps=1.0, begun=0.0)


def adjust(state: State, rates: dict[str, float], steps: int, begun: dict[str, int]) -> State:
    """The state with peak rates by group, the length of the phase, and the steps that a group took
    before it.
    """
    settings: dict[tuple[str, str], float] = {}
    for group, rate in rates.items():
        values = {"peak": rate, "steps": steps, "begun": begun[group]}
        for name, value in values.items():
            settings[group, name] = value

    def replaced(path: Any, leaf: jax.Array) -> jax.Array:
        path_text = jax.tree_util.keystr(path)
        for (group, name), value in settings.items():
            if f"['{group}']" in path_text and path_text.endswith(f".hyperparams['{name}']"):
                return jax.device_put(np.float32(value), leaf.sharding)
        return leaf

    opt_state = jax.tree_util.tree_map_with_path(replaced, state.opt_state)
    return dataclasses.replace(state, opt_state=opt_state)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase with its compiled step, and the sets with the states of its frozen prefix."""

    groups: dict[str, float]  # factors of the rates
    share: float  # of the epochs
    labels: tree.Tree
    tx: optax.GradientTransformation
    step: Step
    sets: dict[str, Examples]
    head_only: bool


@dataclasses.dataclass(frozen=True)
class Fit:
    """The parameters, or None where the loss was not finite; seconds and steps of the training."""

    params: tree.Tree | None
    seconds: float
    steps: int


class Arm:
    """One strategy on one checkpoint: ``fit`` trains it on some rows of the training set, ``score``
    tests it.
    """

    def __init__(
        self, name: str, pretrained: hub.Pretrained, sets: dict[str, Examples], classes: int
    ):
        self.name = name
        self.source = pretrained
        self.strategy = strategies.strategy(name, pretrained.config.layers, 6)
        config = peft.with_peft(pretrained.config, self.strategy.peft)
        self.pretrained = dataclasses.replace(pretrained, config=config)
        head = Classifier(classes, "mean", dropout=pretrained.config.dropout)
        self.model = Model(Encoder(self.pretrained.config), head)
        self.params = tree.drop(pretrained.params, "head")
        self.shapes = choose_shapes(sets["train"])
        self.encoding_seconds = 0.0  # what an example's cached states would take without the cache
        params = self.start(0)
        self.phases = [self.make_phase(phase, params, sets) for phase in self.strategy.phases]
        self.forward = make_eval(self.model, self.phases[-1].step.prefix)

    def make_phase(
        self, phase: strategies.Phase, params: tree.Tree, sets: dict[str, Examples]
    ) -> Phase:
        """A phase made ready; adds to ``encoding_seconds`` if it has states to keep."""
        strategy = self.strategy
        layers = self.source.config.layers
        labels, groups = strategies.label_phase(phase, params, layers)
        tx = optim.by_label({group: adjustable() for group in groups}, labels, 1.0)
        cut = frozen_prefix.cut(labels, layers)
        regularizer = None
        if strategy.l2sp or strategy.mixout:
            regularizer = Regularizer(strategy.l2sp, strategy.mixout)
        step = make_step(self.model, losses.cross_entropy, tx, cut, regularizer=regularizer)
        if step.prefix and cut > 1:  # an embedding alone costs less than to look it up
            frozen = jax.device_put(optim.frozen(params, labels), jax.local_devices()[0])
            prefix_params = step.prefix.split(frozen)[0]
            train = sets["train"]
            seconds = clock.forward_seconds(REPEATS, step.prefix, prefix_params, train)
            self.encoding_seconds += seconds / len(train.file_sequences)
            sets, _ = policy.with_states(step.prefix, frozen, sets)
        share = phase.epochs / sum(phase.epochs for phase in strategy.phases)
        head_only = phase.groups == ("head",) and not strategy.shared_schedule
        return Phase(groups, share, labels, tx, step, sets, head_only)

    def start(self, seed: int) -> tree.Tree:
        """The parameters that a fit with this seed begins with."""
        key = jax.random.key(seed)
        params = tree.graft(self.params, "head", self.model.init_head(jax.random.fold_in(key, 2)))
        return phases.init_params(self.strategy, self.model, params, jax.random.fold_in(key, 3))

    def fit(self, rows: np.ndarray, seed: int, scale: float, epochs: int) -> Fit:
        """Train on the rows ``rows`` of the training set, every rate times ``scale``."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        params = self.start(seed)
        per_epoch = -(-len(rows) // BATCH)
        shares = np.cumsum([phase.share for phase in self.phases])
        ends = np.round(shares * epochs).astype(int).tolist()
        starts = [0, *ends[:-1]]
        begun: dict[str, int] = {}  # the step at which a group began to train
        steps = 0
        frozen: tree.Tree = {}
        state = None
        previous: Phase | None = None
        started = time.perf_counter()
        for phase, first, last in zip(self.phases, starts, ends, strict=True):
            if state is None or previous is None:
                frozen, state = init_state(params, phase.labels, phase.tx, key)
            else:
                frozen, state = advance(frozen, state, previous.labels, phase.labels, phase.tx)
            begun = {group: begun.get(group, steps) for group in phase.groups}
            taken = {group: steps - begun[group] for group in phase.groups}
            phase_steps = (last - first) * per_epoch
            state = adjust(state, self.rates(phase, scale), phase_steps, taken)
            state = self.train(phase, frozen, state, rows, seed, range(first, last))
            if state is None:
                return Fit(None, time.perf_counter() - started, steps)
            previous = phase
            steps += phase_steps
        assert state is not None
        seconds = time.perf_counter() - started + self.encoding_seconds * len(rows)
        return Fit(tree.merge(frozen, state.params), seconds, steps)

    def rates(self, phase: Phase, scale: float) -> dict[str, float]:
        """The peak rate of every group, ``scale`` times the default."""
        width = self.pretrained.config.width
        rates = {}
        for group, factor in phase.groups.items():
            rates[group] = scale * phases.default_rate(group, phase.head_only, width) * factor
        return rates

    def train(
        self,
        phase: Phase,
        frozen: tree.Tree,
        state: State,
        rows: np.ndarray,
        seed: int,
        epochs: range,
    ) -> State | None:
        """The state after the epochs; None where the loss was not finite."""
        train = phase.sets["train"].take(rows)
        inputs = phases.with_anchor(frozen, phase.step, phase.labels, self.source.params)
        batches = itertools.chain.from_iterable(
            train.batches(self.shapes, seed, epoch) for epoch in epochs
        )
        try:
            for new_state, _ in run_steps(phase.step, inputs, state, batches, LOG_AT_THE_END):
                state = new_state
        except TrainingError:
            return None
        return state

    def score(self, params: tree.Tree, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Logits [N, C] of a set, or of rows of it."""
        examples = self.phases[-1].sets[name]
        if rows is not None:
            examples = examples.take(rows)
        return evaluate(self.forward, params, examples.eval_batches(), len(examples))

    def flops(self, rows: int, epochs: int) -> float:
        """FLOPs of all steps of a fit, by the compiler, and of encoding its examples once."""
        per_epoch = -(-rows // BATCH)
        config = self.pretrained.config
        tokens = float(self.phases[0].sets["train"].file_sequences.lengths.mean())
        total = 0.0
        for phase, step_flops in zip(self.phases, self.step_flops, strict=True):
            depth = phase.step.prefix.depth if phase.step.prefix else 0
            total += phase.share * epochs * per_epoch * step_flops
            if depth > 1:
                total += rows * prefix_flops(config, depth, tokens, tokens)
        return total

    @functools.cached_property
    def step_flops(self) -> list[float]:
        """FLOPs of one step of each phase's suffix, at the usual shape."""
        params = self.start(0)
        by_phase = []
        for phase in self.phases:
            frozen, state = init_state(params, phase.labels, phase.tx, jax.random.key(0))
            batch = next(iter(phase.sets["train"].batches(self.shapes, 0, 0)))
            inputs = phases.with_anchor(frozen, phase.step, phase.labels, self.source.params)
            programs = phase.step.programs(inputs, state, batch).values()
            by_phase.append(sum(program.cost_analysis()["flops"] for program in programs))
        return by_phase


def choose_shapes(train: Examples) -> packing.BatchShapes:
    """Shapes for every number of examples up to a batch: few rows for few examples, the usual
    ones, and room to spare.
    """
    usual = train.batch_shapes(BATCH, 0, 1)
    rows = {min(3, usual.rows[0]), usual.rows[-1], 2 * usual.rows[-1]}
    return packing.BatchShapes(usual.width, tuple(sorted(rows)), BATCH)

"""Many short fits of one strategy: compiled once, with other seeds, examples, rates and lengths as data."""

import dataclasses
import functools
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
from adapt.models import Classifier, Encoder, Model
from adapt.prefix_cache import policy
from adapt.pretrained import hub
from adapt.training import frozen_prefix, losses, optim, phases, strategies
from adapt.training.loop import evaluate, run_steps
from adapt.training.regularizers import Regularizer
from adapt.training.step import State, Step, advance, init_state, make_eval, make_step

BATCH = 32
REPEATS = 5  # of a timed window
LONG = 1 << 30  # steps between looks at the device: once, at the end


def adjustable(weight_decay: float = 0.01) -> optax.GradientTransformation:
    """AdamW whose peak rate and length are part of its state (see :func:`adjusted`): other ones do not compile anew."""

    def adamw(peak: Any, steps: Any, begun: Any) -> optax.GradientTransformation:
        def rate(count: Any) -> Any:
            at = count - begun
            warm = jnp.maximum(jnp.round(0.1 * steps), 1)
            return peak * jnp.minimum(
                (at + 1) / warm, jnp.maximum(steps - at, 0) / jnp.maximum(steps - warm, 1)
            )

        return optim.adamw(rate, weight_decay)

    return optax.inject_hyperparams(adamw)(peak=0.0, steps=1.0, begun=0.0)


def adjusted(state: State, rates: dict[str, float], steps: int, begun: dict[str, int]) -> State:
    """The state with peak rates by group, the length of the phase, and the steps that a group took before it."""

    def replaced(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        for group, rate in rates.items():
            for what, value in (("peak", rate), ("steps", steps), ("begun", begun[group])):
                if f"['{group}']" in name and name.endswith(f".hyperparams['{what}']"):
                    return jax.device_put(np.float32(value), leaf.sharding)
        return leaf

    return dataclasses.replace(
        state, opt_state=jax.tree_util.tree_map_with_path(replaced, state.opt_state)
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase with its compiled step, and the sets with what its prefix makes of them."""

    groups: dict[str, float]  # factors of the rates
    share: float  # of the epochs
    labels: tree.Tree
    tx: Any
    step: Step
    sets: dict[str, Examples]
    alone: bool  # only the head trains


class Arm:
    """One strategy on one checkpoint: ``fit`` trains it on some rows of the training set, ``score`` tests it."""

    def __init__(
        self, name: str, pretrained: hub.Pretrained, sets: dict[str, Examples], classes: int
    ):
        self.name, self.source = name, pretrained
        spec = strategies.strategy(name, pretrained.config.layers, 6)
        self.strategy, self.pretrained = spec, phases.prepare(spec, pretrained)
        self.model = Model(
            Encoder(self.pretrained.config),
            Classifier(classes, "mean", dropout=pretrained.config.dropout),
        )
        self.params = tree.drop(pretrained.params, "head")
        self.plan = shapes(sets["train"])
        whole, self.phases, self.encoding = (
            self.start(0),
            [],
            0.0,
        )  # seconds an example of what is kept, were it not there
        for phase in spec.phases:
            labels, groups = strategies.label_phase(phase, whole, pretrained.config.layers)
            tx = optim.by_label({group: adjustable() for group in groups}, labels, 1.0)
            cut = frozen_prefix.cut(labels, pretrained.config.layers)
            regularizer = Regularizer(spec.l2sp, spec.mixout) if spec.l2sp or spec.mixout else None
            step = make_step(self.model, losses.cross_entropy, tx, cut, regularizer=regularizer)
            kept = sets
            if step.prefix and cut > 1:  # an embedding alone costs less than to look it up
                frozen = jax.device_put(optim.frozen(whole, labels), jax.local_devices()[0])
                kept, _ = policy.with_states(step.prefix, frozen, sets)
                below = step.prefix.split(frozen)[0]
                self.encoding += clock.forward_seconds(
                    REPEATS, step.prefix, below, sets["train"]
                ) / len(sets["train"].whole)
            share = phase.epochs / sum(phase.epochs for phase in spec.phases)
            alone = phase.groups == ("head",) and not spec.shared_schedule
            self.phases.append(Phase(groups, share, labels, tx, step, kept, alone))
        self.forward = make_eval(self.model, self.phases[-1].step.prefix)

    def start(self, seed: int) -> tree.Tree:
        """The parameters that a fit with this seed begins with."""
        key = jax.random.key(seed)
        params = tree.graft(self.params, "head", self.model.init_head(jax.random.fold_in(key, 2)))
        return phases.start(self.strategy, self.model, params, jax.random.fold_in(key, 3))

    def fit(self, rows: np.ndarray, seed: int, scale: float, epochs: int) -> "Fit":
        """Train on the rows ``rows`` of the training set, every rate times ``scale``. A fit that diverges has no parameters."""
        state = None
        frozen = {}
        before = {}
        begun = {}
        steps = 0
        key = jax.random.key(seed)
        per_epoch = -(-len(rows) // BATCH)
        started = time.perf_counter()
        width = self.pretrained.config.width
        ends = (
            np.round(np.cumsum([phase.share for phase in self.phases]) * epochs)
            .astype(int)
            .tolist()
        )
        for number, (phase, last) in enumerate(zip(self.phases, ends, strict=True)):
            first = ends[number - 1] if number else 0
            if state is None:
                frozen, state = init_state(
                    self.start(seed), phase.labels, phase.tx, jax.random.fold_in(key, 1)
                )
            else:
                frozen, state = advance(frozen, state, before, phase.labels, phase.tx)
            begun = {group: begun.get(group, steps) for group in phase.groups}
            rates = {
                group: scale * phases.default_rate(group, phase.alone, width) * factor
                for group, factor in phase.groups.items()
            }
            offsets = {group: steps - began for group, began in begun.items()}
            state = adjusted(state, rates, (last - first) * per_epoch, offsets)
            part = phase.sets["train"].take(rows)
            given = phases.given(frozen, phase, self.source.params)
            batches = (
                batch
                for epoch in range(first, last)
                for batch in part.batches(self.plan, seed, epoch)
            )
            try:
                for taken, _ in run_steps(phase.step, given, state, batches, LONG):
                    state = taken
            except TrainingError:
                return Fit(None, time.perf_counter() - started, steps)
            before = phase.labels
            steps = steps + (last - first) * per_epoch
        assert state is not None
        return Fit(
            tree.merge(frozen, state.params),
            time.perf_counter() - started + self.encoding * len(rows),
            steps,
        )

    def score(self, params: tree.Tree, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Logits [N, C] of a set, or of rows of it."""
        part = self.phases[-1].sets[name]
        part = part if rows is None else part.take(rows)
        return evaluate(self.forward, params, part.windows(), len(part))

    def flops(self, rows: int, epochs: int) -> float:
        """Of all of a fit's steps, by the compiler, and of encoding its examples once."""
        per_epoch = -(-rows // BATCH)
        total = 0.0
        c = self.pretrained.config
        tokens = float(self.phases[0].sets["train"].whole.lengths.mean())
        for phase, per_step in zip(self.phases, self.step_flops, strict=True):
            cut = phase.step.prefix.depth if phase.step.prefix else 0
            total += phase.share * epochs * per_epoch * per_step
            total += rows * prefix_flops(c, cut, tokens, tokens) if cut > 1 else 0.0
        return total

    @functools.cached_property
    def step_flops(self) -> list[float]:
        """FLOPs of one step of each phase's suffix, at the plan's usual shape."""
        found = []
        whole = self.start(0)
        for phase in self.phases:
            frozen, state = init_state(whole, phase.labels, phase.tx, jax.random.key(0))
            batch = next(iter(phase.sets["train"].batches(self.plan, 0, 0)))
            programs = phase.step.programs(
                phases.given(frozen, phase, self.source.params), state, batch
            )
            found.append(sum(program.cost_analysis()["flops"] for program in programs.values()))
        return found


@dataclasses.dataclass(frozen=True)
class Fit:
    params: tree.Tree | None
    seconds: float
    steps: int


def shapes(part: Examples) -> packing.Plan:
    """One plan for every number of examples up to a batch: few rows for few examples, the usual ones, and room to spare."""
    usual = part.plan(BATCH, 0, 1)
    return packing.Plan(
        usual.width,
        tuple(sorted({min(3, usual.rows[0]), usual.rows[-1], 2 * usual.rows[-1]})),
        BATCH,
    )

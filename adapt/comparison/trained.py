"""Cells of a strategy that trains: each try is a fit, exactly as :func:`adapt.finetune` makes one.

Rates, lengths and seeds are data of a compiled step, and all fits have the same shapes: a strategy
compiles once. What a frozen prefix makes of the data is computed once for all of its cells. Where
it is quicker, the fits of several seeds and rates train together (:mod:`adapt.comparison.together`).
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from adapt import tree
from adapt.comparison import together
from adapt.comparison.cells import Cell, Cost, Outputs, Try, choose
from adapt.comparison.material import Draw, Material, draw_rows, tested_cell
from adapt.comparison.options import CompareOptions
from adapt.comparison.together import StepCost
from adapt.cost import clock
from adapt.data.examples import Examples
from adapt.data.packing import BatchShapes
from adapt.errors import TrainingError
from adapt.finetuning import build_plan, check_scores
from adapt.fitting import Fitted, Plan, fit
from adapt.options import FinetuningOptions
from adapt.prefix_cache import policy
from adapt.pretrained.hub import Pretrained
from adapt.task_data import TaskData
from adapt.training import optim, phases
from adapt.training.events import Callback
from adapt.training.loop import evaluate
from adapt.training.phases import CompiledPhase
from adapt.training.step import init_trainable, make_eval

logger = logging.getLogger(__name__)

REPEATS = 5  # of a timed window
DEPTH_TO_CACHE = 2  # an embedding alone costs less than to look it up
PADDING = 0.85  # shapes whose rows differ by less become one

# A fit with its figures; None in its place where the loss diverged.
Tried: TypeAlias = "tuple[Try, Fit | None]"


class States:
    """The files of a comparison with what the frozen prefix of a strategy's phase makes of them."""

    def __init__(self, material: Material):
        self.material = material
        self.refrozen: set[int] = set()  # phases, by number, whose prefix an earlier phase trained
        self.by_depth: dict[int, dict[str, Examples]] = {}
        self.encoding_seconds: dict[int, float] = {}  # of a training example

    def sets(self, phase: CompiledPhase, frozen: tree.Tree) -> dict[str, Examples]:
        """All files; computed at the first call for a phase.

        They have no states where those would be of one fit alone, whose earlier phase trained them.
        """
        if phase.number in self.refrozen:
            return self.material.sets
        cut = phase.step.prefix
        depth = depth_of(phase)
        if depth not in self.by_depth:
            sets = self.material.sets
            self.encoding_seconds[depth] = 0.0
            if cut is not None and depth >= DEPTH_TO_CACHE:
                train = sets["train"]
                seconds = clock.forward_seconds(REPEATS, cut, cut.split(frozen)[0], train)
                self.encoding_seconds[depth] = seconds / len(train)
                sets, _ = policy.with_states(cut, frozen, sets)
            self.by_depth[depth] = sets
        return self.by_depth[depth]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellData(TaskData):
    """The examples of one cell, with states that were computed before."""

    material: Material
    draw: Draw
    states: States

    def choose_cache(
        self, phase: CompiledPhase, frozen: tree.Tree, earlier: bool | None
    ) -> policy.CacheDecision:
        return policy.CacheDecision({}, "the states are there, or nothing is frozen")

    def with_states(
        self,
        phase: CompiledPhase,
        frozen: tree.Tree,
        decision: policy.CacheDecision,
        emit: Callback,
    ) -> tuple["CellData", policy.CacheDecision]:
        sets = cell_sets(self.material, self.states.sets(phase, frozen), self.draw, self.seed)
        return dataclasses.replace(self, sets=sets), decision


def refrozen(phases: Sequence[CompiledPhase]) -> set[int]:
    """The numbers of phases that freeze a stage which an earlier phase trained."""
    numbers = set()
    for phase in phases:
        earlier = [depth_of(other) for other in phases if other.number < phase.number]
        if earlier and min(earlier) < depth_of(phase):
            numbers.add(phase.number)
    return numbers


def depth_of(phase: CompiledPhase) -> int:
    """How many leading stages a phase leaves frozen."""
    cut = phase.step.prefix
    return 0 if cut is None else cut.depth


def cell_sets(
    material: Material, files: dict[str, Examples], draw: Draw, seed: int
) -> dict[str, Examples]:
    """The sets of a cell, taken from the files: what trains, what chooses, what is tested on."""
    train = files["train"]
    sets = {"train": train.take(draw.train)}
    if material.validation is None:
        sets["validation"] = train.take(draw.held_out)
    else:
        sets["validation"] = files["validation"]
    if draw.test is not None:
        sets["test"] = train.take(draw.test)
    sets |= {name: files[name] for name in material.tests}
    task = material.task
    sets = {name: task.pair_examples(examples, seed) for name, examples in sets.items()}
    task.check_scored(sets["validation"], f"what seed {seed} chooses by", needs_loss=True)
    return sets | {"train": task.training_examples(sets["train"])}


def num_epochs(examples: int, options: FinetuningOptions, compared: CompareOptions) -> int:
    """The epochs of a fit: few examples are gone through more often."""
    per_epoch = -(-examples // options.batch_size)
    return max(options.epochs, -(-compared.min_steps // per_epoch))


class Trainer:
    """One strategy on one checkpoint."""

    def __init__(
        self,
        material: Material,
        options: FinetuningOptions,
        compared: CompareOptions,
    ):
        self.material = material
        self.options = options
        self.compared = compared
        self.states = States(material)

    @functools.cached_property
    def pretrained(self) -> Pretrained:
        """The checkpoint on the device: once, not at every fit."""
        pretrained = self.material.pretrained
        params = jax.device_put(pretrained.params, jax.local_devices()[0])
        return dataclasses.replace(pretrained, params=params)

    def check(self) -> Plan:
        """A plan of a fit. Raises :class:`AdaptError` for options that contradict each other,
        before any fit.
        """
        draw = draw_rows(self.material, self.compared.budgets[0], 0)
        options = self.options_for(draw, 1.0)
        data = self.data(draw, 0, options, BatchShapes(64, (1,), 1))
        plan = build_plan(self.material.pretrained, data, options)
        check_scores(plan, data)
        return plan

    def options_for(self, draw: Draw, rate: float) -> FinetuningOptions:
        """The options of a fit: few examples are gone through more often, and to the end. An epoch
        of a few steps is too short for patience to tell anything.
        """
        epochs = num_epochs(len(draw.train), self.options, self.compared)
        patience = self.options.patience if epochs == self.options.epochs else 0
        return dataclasses.replace(self.options, epochs=epochs, patience=patience, rate_factor=rate)

    def data(
        self, draw: Draw, seed: int, options: FinetuningOptions, shapes: BatchShapes | None = None
    ) -> CellData:
        """The examples of a cell in batches, by default of the shapes of all cells."""
        material = self.material
        sets = cell_sets(material, material.sets, draw, seed)
        return CellData(
            task=material.task,
            names=material.task.output_names(material.names),
            sets=sets,
            shapes=self.shapes if shapes is None else shapes,
            seed=seed,
            accumulate=1,
            steps_per_epoch=-(-len(sets["train"]) // options.batch_size),
            caching=options,
            label_type=material.label_type,
            score=options.score,
            material=material,
            draw=draw,
            states=self.states,
        )

    @functools.cached_property
    def shapes(self) -> BatchShapes:
        """Shapes of training batches that serve every cell."""
        found = []
        for budget in self.compared.budgets:
            for seed in range(self.compared.seeds):
                draw = draw_rows(self.material, budget, seed)
                epochs = self.options_for(draw, 1.0).epochs
                train = cell_sets(self.material, self.material.sets, draw, seed)["train"]
                size = self.options.batch_size
                found.append(train.batch_shapes(size, seed, epochs, width=self.width))
        return common_shapes(found)

    @property
    def width(self) -> int:
        """The width of rows that holds every training example."""
        return self.material.train.batch_shapes(1, 0, epochs=1).width

    def cells(self, budget: str, seeds: Sequence[int]) -> Iterator[tuple[Cell, Outputs]]:
        """The cells of a budget, each when it is ready."""
        if not seeds:
            return
        rates = self.compared.rates
        draws = {seed: draw_rows(self.material, budget, seed) for seed in seeds}
        if self.group_size == 1:
            for seed, draw in draws.items():
                fits = (self.fit(draw, seed, rate) for rate in rates)
                yield self.cell(budget, seed, draw, fits)
            return
        for part in split(seeds, max(self.group_size // len(rates), 1)):
            found = self.fit_seeds({seed: draws[seed] for seed in part})
            for seed in part:
                yield self.cell(budget, seed, draws[seed], found[seed])

    def cell(
        self, budget: str, seed: int, draw: Draw, fits: Iterable[Tried]
    ) -> tuple[Cell, Outputs]:
        """Test the fit that the validation examples choose among those of all rates."""
        tries: list[Try] = []
        chosen = None
        for tried, made in fits:
            tries.append(tried)
            if choose(tries) == len(tries) - 1:
                chosen = made
        number = choose(tries)
        if chosen is None:
            raise TrainingError(
                f"{self.options.strategy} diverged at every rate with {budget} labels and seed "
                f"{seed}: give lower `rates`"
            )
        outputs = chosen.test_outputs()
        cost = Cost(
            seconds=tries[number].seconds + self.encoding_seconds(chosen, draw),
            flops=self.flops(chosen, draw),
            parameters=chosen.parameters,
        )
        key = (self.options.strategy, budget, seed)
        return tested_cell(self.material, key, draw, tries, outputs, cost), outputs

    def begin(self, draw: Draw, seed: int, rate: float) -> "Begun":
        """A fit before its first step."""
        options = self.options_for(draw, rate)
        data = self.data(draw, seed, options)
        plan = build_plan(self.pretrained, data, options, seed)
        self.states.refrozen = refrozen(plan.phases)
        return Begun(rate, options, data, plan)

    def begin_first(self) -> "Begun":
        """The first fit of all: it stands for the others where a cost is measured."""
        draw = draw_rows(self.material, self.compared.budgets[0], 0)
        return self.begin(draw, 0, self.compared.rates[0])

    def fit(self, draw: Draw, seed: int, rate: float) -> Tried:
        """One fit by itself; None in its place where the loss diverged."""
        return self.fit_alone(self.begin(draw, seed, rate))

    def fit_alone(self, begun: "Begun") -> Tried:
        """:meth:`fit` of what has begun."""
        seconds = Seconds()
        try:
            fitted = fit(begun.plan, begun.data, begun.options)
        except TrainingError:
            fitted = None
        return self.tried(begun, fitted, seconds(), 1)

    def fit_seeds(self, draws: Mapping[int, Draw]) -> dict[int, list[Tried]]:
        """The fits of every rate of some seeds, together where they have one program."""
        begun = {}
        by_program: dict[Any, list[int]] = {}
        for seed, draw in draws.items():
            begun[seed] = [self.begin(draw, seed, rate) for rate in self.compared.rates]
            program = together.program_of(begun[seed][0].plan)
            by_program.setdefault(program, []).append(seed)
        found: dict[int, list[Tried]] = {seed: [] for seed in draws}
        for seeds in by_program.values():
            for first in range(0, len(self.compared.rates), self.group_size):
                rows = [begun[seed][first : first + self.group_size] for seed in seeds]
                for seed, fits in zip(seeds, self.fit_group(rows), strict=True):
                    found[seed] += fits
        return found

    def fit_group(self, rows: Sequence[Sequence["Begun"]]) -> list[list[Tried]]:
        """Fits of some seeds (the rows) and rates, all of them together."""
        count = len(rows) * len(rows[0])
        if count == 1:
            return [[self.fit_alone(rows[0][0])]]
        seconds = Seconds()
        fitted = together.fit_together(
            [[begun.plan for begun in row] for row in rows],
            [[begun.data for begun in row] for row in rows],
            rows[0][0].options,
        )
        of_a_fit = seconds() / count
        found = []
        for row, fitted_row in zip(rows, fitted, strict=True):
            tries = zip(row, fitted_row, strict=True)
            found.append([self.tried(begun, one, of_a_fit, count) for begun, one in tries])
        return found

    def tried(self, begun: "Begun", fitted: Fitted | None, seconds: float, count: int) -> Tried:
        """What came out of a fit, which trained with ``count`` - 1 others."""
        if fitted is None:
            return Try(begun.rate, np.nan, np.nan, seconds, 0, 0, count), None
        progress = fitted.progress
        assert progress.best_score is not None
        tried = Try(
            rate=begun.rate,
            score=progress.best_score,
            loss=progress.best_loss,
            seconds=seconds,
            steps=fitted.steps,
            best_step=progress.best_step,
            together=count,
        )
        return tried, Fit(begun.plan, fitted, self.states)

    @functools.cached_property
    def group_size(self) -> int:
        """How many fits train together; 1: each alone."""
        wanted = self.compared.together
        if wanted == "off":
            return 1
        begun = self.begin_first()
        if len(begun.plan.phases) > 1:
            return 1
        cost = self.step_cost(begun.plan, begun.data, 0)
        if wanted == "auto" and not together.pays(cost, begun.plan):
            return 1
        size = together.most_together(cost)
        fits = min(size, self.compared.seeds * len(self.compared.rates))
        logger.info(f"{self.options.strategy}: {fits} fits train together")
        return size

    def encoding_seconds(self, made: "Fit", draw: Draw) -> float:
        """What the states of the examples would have taken without the cache."""
        seconds = 0.0
        for phase in made.plan.phases:
            if phase.number in self.states.refrozen:  # a step encodes
                continue
            depth = depth_of(phase)
            seconds += self.states.encoding_seconds.get(depth, 0.0) * draw.labelled
        return seconds

    def flops(self, made: "Fit", draw: Draw) -> float:
        """FLOPs of all steps of a fit, by the compiler, and of encoding its examples once."""
        total = 0.0
        for number, phase in enumerate(made.plan.phases):
            steps = len(phase.epochs) * made.plan.steps_per_epoch
            total += steps * self.step_cost(made.plan, made.data, number).flops
            depth = depth_of(phase)
            if depth >= DEPTH_TO_CACHE and phase.number not in self.states.refrozen:
                total += draw.labelled * self.material.encoding_flops(depth)
        return total

    def step_cost(self, plan: Plan, data: CellData, number: int) -> StepCost:
        """What one step of a phase takes, at the usual shape."""
        if number not in self.known_costs:
            self.known_costs[number] = step_cost(plan, data, plan.phases[number])
        return self.known_costs[number]

    @functools.cached_property
    def known_costs(self) -> dict[int, StepCost]:
        return {}


@dataclasses.dataclass(frozen=True)
class Begun:
    """A fit before its first step."""

    rate: float
    options: FinetuningOptions
    data: CellData
    plan: Plan


class Seconds:
    """The seconds since this object was made, without those of compiling."""

    def __init__(self) -> None:
        self.start = self.now()

    def now(self) -> float:
        return time.perf_counter() - clock.compiling().seconds

    def __call__(self) -> float:
        return self.now() - self.start


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit that ended well."""

    plan: Plan
    fitted: Fitted
    states: States

    @property
    def data(self) -> CellData:
        data = self.fitted.active.data
        assert isinstance(data, CellData)
        return data

    @property
    def phase(self) -> CompiledPhase:
        """The phase of the best checkpoint."""
        return self.plan.phases[self.fitted.progress.best_phase]

    @property
    def parameters(self) -> int:
        """How many parameters the last phase trains."""
        return tree.count(optim.trainable(self.plan.params, self.plan.phases[-1].labels))

    @functools.cached_property
    def params(self) -> tree.Tree:
        """The best parameters."""
        return self.fitted.best_params()

    def test_outputs(self) -> dict[str, np.ndarray]:
        """The head's outputs on every set that is tested on, float32, by what validation decided."""
        forward = make_eval(self.phase.model, self.phase.step.prefix)
        data = self.data
        params = self.fitted.active.params(self.params)
        if self.phase is not self.fitted.active.phase:
            params = self.phase.place(self.params)
            files = self.states.sets(self.phase, optim.frozen(params, self.phase.labels))
            sets = cell_sets(data.material, files, data.draw, data.seed)
        else:
            sets = dict(data.sets)
        outputs = {}
        for name, examples in sets.items():
            if name not in ("train", "validation"):
                batches = examples.eval_batches()
                found = evaluate(forward, params, batches, examples.num_outputs)
                decisions = self.fitted.progress.best_scores
                outputs[name] = data.task.apply_decisions(found, examples.targets, decisions)
        return outputs


def step_cost(plan: Plan, data: CellData, phase: CompiledPhase) -> StepCost:
    """What one step of a phase takes on a batch of its first epoch, by the compiler."""
    frozen = phase.place_frozen(optim.frozen(plan.params, phase.labels))
    state = init_trainable(plan.params, phase.labels, phase.tx, plan.key)
    files = data.states.sets(phase, frozen)
    sets = cell_sets(data.material, files, data.draw, data.seed)
    batch = next(iter(dataclasses.replace(data, sets=sets).batches(0, 0)))
    inputs = phases.with_anchor(frozen, phase, plan.pretrained.params)
    return together.step_cost(phase.step, inputs, state, batch)


def split(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """The items in parts of ``size``; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def common_shapes(found: Sequence[BatchShapes]) -> BatchShapes:
    """Shapes that hold the batches of all of ``found``, which have one width: as few as pad little."""
    rows = sorted({count for shapes in found for count in shapes.rows}, reverse=True)
    kept: list[int] = []
    for count in rows:
        if not kept or count < PADDING * kept[-1]:
            kept.append(count)
    sequences = [shapes.sequences for shapes in found if shapes.sequences is not None]
    return BatchShapes(
        found[0].width, tuple(sorted(kept)), found[0].examples, max(sequences, default=None)
    )

"""Cells of a strategy that trains: each try is a fit, exactly as :func:`adapt.finetune` makes one.

Rates, lengths and seeds are data of a compiled step, and all fits have the same shapes: a strategy
compiles once. What a frozen prefix makes of the data is computed once for all of its cells.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import numpy as np

from adapt import tree
from adapt.comparison.cells import Cell, Outputs, Try, choose
from adapt.comparison.material import Draw, Material, draw_rows, score_outputs
from adapt.comparison.options import CompareOptions
from adapt.cost import clock
from adapt.cost.flops import prefix_flops
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
from adapt.training.step import init_state, make_eval

REPEATS = 5  # of a timed window
DEPTH_TO_CACHE = 2  # an embedding alone costs less than to look it up
PADDING = 0.85  # shapes whose rows differ by less become one


class States:
    """The files of a comparison with what the frozen prefix of a strategy's phase makes of them."""

    def __init__(self, material: Material):
        self.material = material
        self.by_depth: dict[int, dict[str, Examples]] = {}
        self.encoding_seconds: dict[int, float] = {}  # of a training example

    def sets(self, phase: CompiledPhase, frozen: tree.Tree) -> dict[str, Examples]:
        """All files; computed at the first call for a phase."""
        cut = phase.step.prefix
        depth = 0 if cut is None else cut.depth
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
    pair = material.task.pair_examples
    return {name: pair(examples, seed) for name, examples in sets.items()}


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

    def check(self) -> None:
        """Raise :class:`AdaptError` for options that contradict each other, before any fit."""
        draw = draw_rows(self.material, self.compared.budgets[0], 0)
        options = self.options_for(draw, 1.0)
        data = self.data(draw, 0, options, BatchShapes(64, (1,), 1))
        check_scores(build_plan(self.material.pretrained, data, options), data)

    def options_for(self, draw: Draw, rate: float) -> FinetuningOptions:
        """The options of a fit: few examples are gone through more often."""
        epochs = num_epochs(len(draw.train), self.options, self.compared)
        return dataclasses.replace(self.options, epochs=epochs, rate_factor=rate)

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

    def cell(self, budget: str, seed: int) -> tuple[Cell, Outputs]:
        """Fit every rate, and test the one that the validation examples choose."""
        draw = draw_rows(self.material, budget, seed)
        tries: list[Try] = []
        chosen = None
        for rate in self.compared.rates:
            tried, made = self.fit(draw, seed, rate)
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
        scores, floors = score_outputs(self.material, outputs, draw, seed)
        cell = Cell(
            strategy=self.options.strategy,
            budget=budget,
            seed=seed,
            labelled=draw.labelled,
            tries=tries,
            chosen=number,
            scores=scores,
            floors=floors,
            seconds=tries[number].seconds + self.encoding_seconds(chosen, draw),
            flops=self.flops(chosen, draw),
            parameters=chosen.parameters,
        )
        return cell, outputs

    def fit(self, draw: Draw, seed: int, rate: float) -> tuple[Try, "Fit | None"]:
        """One fit; None in its place where the loss diverged."""
        options = self.options_for(draw, rate)
        data = self.data(draw, seed, options)
        plan = build_plan(self.pretrained, data, options, seed)
        started = time.perf_counter()
        before = clock.compiling().seconds
        try:
            fitted = fit(plan, data, options)
        except TrainingError:
            seconds = time.perf_counter() - started
            return Try(rate, np.nan, np.nan, seconds, 0, 0), None
        seconds = time.perf_counter() - started - (clock.compiling().seconds - before)
        progress = fitted.progress
        assert progress.best_score is not None
        tried = Try(
            rate=rate,
            score=progress.best_score,
            loss=progress.best_loss,
            seconds=seconds,
            steps=fitted.steps,
            best_step=progress.best_step,
        )
        return tried, Fit(plan, fitted, self.states)

    def encoding_seconds(self, made: "Fit", draw: Draw) -> float:
        """What the states of the examples would have taken without the cache."""
        seconds = 0.0
        for phase in made.plan.phases:
            depth = 0 if phase.step.prefix is None else phase.step.prefix.depth
            seconds += self.states.encoding_seconds.get(depth, 0.0) * draw.labelled
        return seconds

    def flops(self, made: "Fit", draw: Draw) -> float:
        """FLOPs of all steps of a fit, by the compiler, and of encoding its examples once."""
        total = 0.0
        train = self.material.train
        config = self.pretrained.config
        tokens = float(train.file_sequences.lengths.mean())
        sequences = draw.labelled * len(train.sequences) / len(train)
        for number, phase in enumerate(made.plan.phases):
            steps = len(phase.epochs) * made.plan.steps_per_epoch
            total += steps * self.step_flops(made, number)
            depth = 0 if phase.step.prefix is None else phase.step.prefix.depth
            if depth >= DEPTH_TO_CACHE:
                total += sequences * prefix_flops(config, depth, tokens, tokens)
        return total

    def step_flops(self, made: "Fit", number: int) -> float:
        """FLOPs of one step of a phase, at the usual shape."""
        if number not in self.known_flops:
            self.known_flops[number] = compiled_flops(made, made.plan.phases[number])
        return self.known_flops[number]

    @functools.cached_property
    def known_flops(self) -> dict[int, float]:
        return {}


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fit that ended well."""

    plan: Plan
    fitted: Fitted
    states: States

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
        """The head's outputs on every set that is tested on, float32."""
        forward = make_eval(self.phase.model, self.phase.step.prefix)
        data = self.fitted.active.data
        assert isinstance(data, CellData)
        if self.phase is not self.fitted.active.phase:
            frozen = optim.frozen(self.params, self.phase.labels)
            files = self.states.sets(self.phase, frozen)
            sets = cell_sets(data.material, files, data.draw, data.seed)
        else:
            sets = dict(data.sets)
        outputs = {}
        for name, examples in sets.items():
            if name not in ("train", "validation"):
                batches = examples.eval_batches()
                outputs[name] = evaluate(forward, self.params, batches, examples.num_outputs)
        return outputs


def compiled_flops(made: Fit, phase: CompiledPhase) -> float:
    """FLOPs of one step of a phase on a batch of its first epoch, by the compiler."""
    plan = made.plan
    frozen, state = init_state(plan.params, phase.labels, phase.tx, plan.key)
    data = made.fitted.active.data
    assert isinstance(data, CellData)
    files = made.states.sets(phase, frozen)
    sets = cell_sets(data.material, files, data.draw, data.seed)
    batch = next(iter(dataclasses.replace(data, sets=sets).batches(0, 0)))
    inputs = phases.with_anchor(frozen, phase.step, phase.labels, plan.pretrained.params)
    programs = phase.step.programs(inputs, state, batch).values()
    return sum(program.cost_analysis()["flops"] for program in programs)


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

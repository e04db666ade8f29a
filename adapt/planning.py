"""What would each strategy cost on these data, before any of them runs?

A few steps of some programs are timed on this machine: the whole encoder forward, and the suffixes
of ``full``, ``frozen``, ``top:1`` and ``top:L``. The depths between follow from the last two, since
a step's cost is linear in the depth. Everything else is counted. Expect the seconds, which leave
out compiling, within a fifth of the real ones on a machine as quiet as it was::

    report = plan("minilm", texts, labels, also=["lora:8"], epochs=5)
    report.to_pandas()                       # a row a strategy

:func:`plan` is :func:`prepare_workload`, :func:`measure_overhead` and
:func:`estimate_strategies`; the command makes the same calls.
"""

import collections
import contextlib
import contextvars
import dataclasses
import itertools
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adapt import tree
from adapt.cost import clock, flops
from adapt.cost.memory import MemoryFit, fit_memory
from adapt.data import packing
from adapt.data.examples import Examples
from adapt.data.inputs import Columns, as_list, make_parts
from adapt.data.shapes import busy_tokens
from adapt.devices import compute_dtype, this_device
from adapt.errors import StrategyError
from adapt.finetuning import with_head
from adapt.models import EncoderConfig, Model, peft
from adapt.options import (
    CacheDType,
    DType,
    FinetuningOptions,
    FrozenDType,
    Long,
    Quoting,
    check_seeds,
    is_of,
    wanted,
)
from adapt.other_names import suggests
from adapt.prefix_cache import policy, states
from adapt.prefix_cache.states import ignore
from adapt.prefix_cache.store import CachedArray
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import warn_long
from adapt.task_data import read_data
from adapt.tasks import TASKS, get_task, metrics
from adapt.training import checkpoint, frozen_prefix, optim, phases, strategies
from adapt.training.events import OnProgress
from adapt.training.losses import Loss
from adapt.training.step import (
    State,
    Step,
    cast_kernels,
    init_trainable,
    is_kernel,
    make_step,
    place_kernels,
)

TOP = re.compile(r"top:\d+")
logger = logging.getLogger(__name__)

ALSO = ("bitfit", "lora:8", "adapters:16")  # planned for besides full, top:K and frozen
FIT = "full"  # the strategy whose steps are fitted to the memory
# The share of the device's memory that a step may take. The rest is for batches that wait there, for
# what is copied for a checkpoint, and for gaps between arrays.
MEMORY_SHARE = 0.9
COMPILED_AT_ONCE = 4  # programs: most of a compilation runs on one core
WORTH = 0.85  # of the seconds of full fine-tuning: what saves less is not worth training less


@dataclasses.dataclass(frozen=True)
class Workload:
    """The run whose cost is asked for, whatever its strategy.

    ``model`` computes in the run's dtype, ``params`` has its encoder and a new head, ``sets`` are
    ``train``, ``validation`` and perhaps ``test``.
    """

    model: Model
    params: tree.Tree
    sets: Mapping[str, Examples]
    loss: Loss
    epochs: int
    batch_size: int
    seed: int = 0
    cache_dtype: str | None = None  # of the states that the cache keeps; None: that of the model
    repeats: int = 10  # steps that are timed, of each program
    names: Sequence[str] = ()  # of the labels
    frozen_dtype: str | None = None  # of frozen kernels; None: that of the model

    @property
    def layers(self) -> int:
        return self.model.encoder.config.layers

    @property
    def own_blocks(self) -> int:
        return self.model.encoder.config.own_blocks


@dataclasses.dataclass(frozen=True)
class MeasuredStep:
    """What one step of a strategy takes after its frozen prefix."""

    first_seconds: float  # the first step, which loads what was compiled
    seconds: float  # the median of the others
    peak_bytes: float
    flops_per_example: float  # as the compiler counts them


@dataclasses.dataclass(frozen=True)
class Timings:
    """What was timed."""

    steps: dict[str, MeasuredStep]  # by strategy
    prefix: tuple[float, float]  # a training batch through the encoder: (first, median) seconds
    forward: float  # seconds of every example of the training file through the encoder

    def step(self, strategy: str, layers: int) -> MeasuredStep:
        """A step of a strategy; of a depth between those that were timed, on the line of the two."""
        if not TOP.fullmatch(strategy):
            return self.steps[strategy]
        shallow = dataclasses.astuple(self.steps["top:1"])
        deep = dataclasses.astuple(self.steps[f"top:{layers}"])
        share = (int(strategy.removeprefix("top:")) - 1) / max(layers - 1, 1)
        between = [low + share * (high - low) for low, high in zip(shallow, deep, strict=True)]
        return MeasuredStep(*between)

    def to_json(self) -> dict[str, Any]:
        steps = {name: dataclasses.astuple(cost) for name, cost in self.steps.items()}
        return {**steps, "prefix": self.prefix, "forward": self.forward}


@dataclasses.dataclass(frozen=True)
class Overhead:
    """What every run does besides computing, in seconds."""

    set_up: float
    score: float
    plot: float
    first_save: float  # imports Orbax
    byte_saved: float  # a byte of a checkpoint


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one strategy costs. Seconds are those of a whole run here, compiling left out."""

    strategy: str
    cut: int  # how many leading stages are frozen
    parameters_trained: int
    optimizer_bytes: int
    flops_per_example: float
    flops_per_example_cached: float
    cache_bytes: int
    peak_bytes: int
    seconds: float  # without the cache
    seconds_cached: float | None  # None: there is nothing to cache

    @property
    def best(self) -> float:
        """Seconds with the cache or without it, whichever is less."""
        return min(self.seconds, self.seconds_cached or self.seconds)

    def is_worth_it(self, full: "Estimate") -> bool:
        """Whether it saves enough of the seconds of full fine-tuning. Accuracy is not asked."""
        return self.best <= WORTH * full.best


@dataclasses.dataclass(frozen=True)
class PlanReport:
    """What every strategy costs on some data, what was timed for it, and how a step fits the memory
    of the device, if that is known.
    """

    estimates: Sequence[Estimate]
    timings: Timings
    overhead: Overhead
    fit: MemoryFit | None = None

    def __repr__(self) -> str:
        least = min(self.estimates, key=lambda estimate: estimate.best)
        costs = f"full {self.full.best:.3g} s; least {least.strategy} {least.best:.3g} s"
        return f"PlanReport({len(self.estimates)} strategies: {costs})"

    @property
    def full(self) -> Estimate:
        """The cost of full fine-tuning, against which others are judged."""
        return next(estimate for estimate in self.estimates if estimate.strategy == "full")

    def to_pandas(self) -> Any:
        """A DataFrame with a row a strategy: the fields of :class:`Estimate`, the seconds of the
        better way as ``best``, and ``is_worth_it``.
        """
        import pandas

        rows = []
        for estimate in self.estimates:
            judged = {"best": estimate.best, "is_worth_it": estimate.is_worth_it(self.full)}
            rows.append(dataclasses.asdict(estimate) | judged)
        return pandas.DataFrame(rows)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A strategy of one phase, applied to a model."""

    model: Model
    params: tree.Tree
    labels: tree.Tree
    tx: optax.GradientTransformation
    depth: int  # how many leading stages are frozen


@suggests
def plan(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any = None,
    *,
    test: Any = None,
    task: str = "classification",
    also: Sequence[str] = ALSO,
    epochs: int = 3,
    batch_size: int = 32,
    steps: int = 10,
    seed: int = 0,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    image_column: str | None = None,
    quoting: Quoting | None = None,
    pooling: str | None = None,
    cache_dtype: CacheDType | None = None,
    max_length: int | None = None,
    image_size: int | None = None,
    long: Long | None = None,
    dtype: DType = "auto",
    frozen_dtype: FrozenDType | None = None,
    memory: float | None = None,
    fit: str = FIT,
    on_progress: OnProgress | None = None,
) -> PlanReport:
    """What each strategy would cost on these data, before any of them runs.

        report = adapt.plan("minilm", texts, labels, also=["lora:8"], epochs=5)
        report.to_pandas()                      # a row a strategy: seconds, FLOPs, bytes

    ``pretrained``, ``inputs``, ``labels`` and ``test`` are as in :func:`adapt.finetune`, and so are
    ``epochs``, ``batch_size`` and what else such a run has. ``also`` names strategies besides
    ``full``, every ``top:K`` and ``frozen``. ``steps`` are timed, of each program;
    ``on_progress(done, total)`` counts strategies, once when compiled and once when timed. It takes
    some seconds to a minute, most of it compiling; the seconds that it predicts leave that out, and
    a plot.

    ``fit`` is the strategy whose steps are fitted to ``memory``, in GiB: by default what the device
    has, less a tenth. Where it does not say, as a CPU does not, nothing is fitted. What came of it
    is ``report.fit``, whose ``options`` are arguments of :func:`adapt.finetune`. It compiles three
    to six programs, for the device that is there.

    Raises :class:`DataError` for data that are not exactly understood, :class:`StrategyError` for
    arguments that contradict each other; both are :class:`AdaptError`.
    """
    started = time.perf_counter()
    compiled_before = clock.compiling().seconds
    options = FinetuningOptions(
        checkpoint=hub.source_of(pretrained),
        max_length=max_length,
        image_size=image_size,
        long=long,
        dtype=dtype,
        frozen_dtype=frozen_dtype,
        task=task,
        pooling=pooling,
        cache_dtype=cache_dtype,
        epochs=epochs,
        batch_size=batch_size,
        patience=0,  # as many epochs as are planned for
    )
    columns = Columns(
        text=text_column,
        text_pair=text_pair_column,
        label=label_column,
        image=image_column,
        quoting=quoting,
    )
    also = as_list(also, "also")
    workload = prepare_workload(
        pretrained,
        inputs,
        labels,
        options,
        also,
        test=test,
        columns=columns,
        steps=steps,
        seed=seed,
    )
    compiling = clock.compiling().seconds - compiled_before
    set_up = time.perf_counter() - started - compiling
    with tempfile.TemporaryDirectory() as folder:
        overhead = measure_overhead(Path(folder), workload, set_up)
    fitted = fit_to_memory(workload, fit, memory)
    estimates, timings = estimate_strategies(workload, also, overhead, on_progress or ignore)
    return PlanReport(estimates, timings, overhead, fitted)


def prepare_workload(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any,
    options: FinetuningOptions,
    also: Sequence[str],
    *,
    test: Any = None,
    columns: Columns | None = None,
    steps: int = 10,
    seed: int = 0,
) -> Workload:
    """What strategies are applied to: the encoder with the head that a run begins with, and the
    data that it would have; see :func:`plan` for the arguments and the errors.
    """
    options.check()
    check_task(options.task)
    check_seeds(seed=seed)
    if not is_of(steps, int) or steps < 1:
        raise StrategyError(f"`steps` is {steps!r}: {wanted(int)}, at least 1")
    pretrained = hub.loaded(pretrained)
    pretrained = hub.with_options(pretrained, options, seed)
    for name in also:
        check_planned(name, pretrained.config, options.epochs)
    task = get_task(options.task)
    parts = make_parts(
        inputs,
        labels,
        columns or Columns(),
        test=test,
        are_images=pretrained.config.is_image,
        are_words=task.takes_words,
    )
    pretrained = task.with_options(pretrained, options, parts["train"].columns.texts)
    data = read_data(parts, task, options, pretrained, seed=seed)
    for name, examples in data.sets.items():
        warn_long(examples.long, name)
    head = task.head(pretrained, options, data.names)
    model, params = with_head(pretrained, head, jax.random.fold_in(jax.random.key(seed), 2))
    return Workload(
        model=model.cast(jnp.dtype(compute_dtype(options.dtype))),
        params=params,
        sets=data.sets,
        loss=task.loss,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=seed,
        cache_dtype=options.cache_dtype,
        repeats=steps,
        names=data.names,
        frozen_dtype=options.frozen_dtype,
    )


def check_task(name: str) -> None:
    """Raise :class:`StrategyError` for a task whose examples are not of one text, or of one row of
    outputs.
    """
    if get_task(name).has_row_per_example:
        return
    planned = sorted(other for other, task in TASKS.items() if task.has_row_per_example)
    raise StrategyError(
        f"`task` {name} is not planned, for an example is more than a row of outputs there: "
        f"give one of {', '.join(planned)}"
    )


def check_planned(name: str, config: EncoderConfig, epochs: int) -> None:
    """Raise :class:`StrategyError` for what is no strategy, and for one of several phases."""
    if not isinstance(name, str):
        raise StrategyError(f"`also` has {name!r}: {wanted(str)}")
    phases_of_it = strategies.strategy_for(config, name, epochs).phases
    if len(phases_of_it) > 1:
        raise StrategyError(
            f"{name} has {len(phases_of_it)} phases, and a plan is of one: plan what it does in "
            "each"
        )


def estimate_strategies(
    workload: Workload,
    also: Sequence[str],
    overhead: Overhead,
    on_progress: OnProgress = ignore,
) -> tuple[list[Estimate], Timings]:
    """(the cost of ``full``, every ``top:K``, ``frozen`` and those of ``also``; what was timed).

    ``on_progress(done, total)`` is that of :func:`time_programs`. Raises :class:`StrategyError` for
    a strategy of several phases.
    """
    also = those_that_train(also, workload.params)
    timings = time_programs(workload, also, on_progress)
    names = planned_strategies(workload.own_blocks, also)
    return [estimate(workload, timings, overhead, name) for name in names], timings


def those_that_train(also: Sequence[str], params: tree.Tree) -> Sequence[str]:
    """``also`` without ``bitfit`` where nobody named it and the encoder has no biases.

    Raises :class:`StrategyError` where somebody did, before anything is timed.
    """
    if "bitfit" not in also or strategies.has_biases(params):
        return also
    if tuple(also) != ALSO:
        raise StrategyError("`also` has bitfit, which trains biases, and this encoder has none")
    logger.warning("bitfit is not planned, for this encoder has no biases")
    return [name for name in also if name != "bitfit"]


def planned_strategies(layers: int, also: Sequence[str]) -> list[str]:
    """The names of the strategies of a plan, each once."""
    depths = [f"top:{count}" for count in range(layers, 0, -1)]
    return list(dict.fromkeys(["full", *depths, "frozen", *also]))


def prepare(name: str, model: Model, params: tree.Tree) -> Prepared:
    """A strategy applied to a model with some rates, which do not matter to its cost.

    Raises :class:`StrategyError` for a strategy of several phases.
    """
    config = model.encoder.config
    check_planned(name, config, 6)
    strategy = strategies.strategy_for(config, name, 6)
    (phase,) = strategy.phases
    config = peft.with_peft(config, strategy.peft)
    model = Model(model.encoder.clone(config=config), model.head)
    params = phases.init_params(strategy, model, params, jax.random.key(0))
    labels, groups = strategies.label_phase(phase, params, config.own_blocks)
    optimizers = {group: optim.adamw(optim.schedule(1e-5, 100)) for group in groups}
    tx = optim.by_label(optimizers, labels, 1.0)
    return Prepared(model, params, labels, tx, frozen_prefix.cut(labels, config.layers))


def time_programs(
    workload: Workload, also: Sequence[str] = (), on_progress: OnProgress = ignore
) -> Timings:
    """Time a step of ``frozen``, ``top:1``, ``top:L``, ``full`` and those of ``also``, and the
    encoder.

    All of them are compiled first, some at a time; while a program is timed nothing else runs.
    ``on_progress(done, total)`` counts strategies, once when compiled and once when timed.
    """
    names = ["frozen", "top:1", f"top:{workload.own_blocks}", "full", *also]
    names = list(dict.fromkeys(names))
    total = 2 * len(names)
    batches = batches_of_one_shape(workload)
    planned = {name: plan_step(workload, name) for name in names}
    costs = compile_steps(workload, planned, batches[0], lambda done: on_progress(done, total))

    steps = {}
    forward = 0.0
    prefix = (0.0, 0.0)
    for number, (name, (prepared, step)) in enumerate(planned.items(), 1):
        key = jax.random.key(0)
        state = init_trainable(prepared.params, prepared.labels, prepared.tx, key)
        frozen = optim.frozen(prepared.params, prepared.labels)
        frozen = place_kernels(frozen, stored_in(workload))
        if name == "frozen":
            forward, prefix = time_encoder(workload, step, frozen, batches)
        seconds = time_step(step, frozen, state, batches[0], workload.repeats)
        steps[name] = MeasuredStep(*seconds, *costs[name])
        on_progress(len(names) + number, total)
    return Timings(steps, prefix, forward)


def plan_step(workload: Workload, name: str) -> tuple[Prepared, Step]:
    """A strategy applied to the model of a workload, and its step."""
    prepared = prepare(name, workload.model, workload.params)
    return prepared, make_step(prepared.model, workload.loss, prepared.tx, prepared.depth)


def compile_steps(
    workload: Workload,
    planned: Mapping[str, tuple[Prepared, Step]],
    batch: packing.Arrays,
    on_compiled: Callable[[int], None],
) -> dict[str, tuple[int, float]]:
    """:func:`compiled_cost` of every step, by strategy. ``on_compiled`` gets the number of those
    that are done.

    Some are compiled at a time, each in a thread with the settings of this one. JAX keeps the
    programs, and a call with arrays such as these takes them from there. After an error no other
    is begun.
    """
    settings = JaxSettings.of_this_thread()

    def compile_one(prepared: Prepared, step: Step) -> tuple[int, float]:
        with settings.applied():
            frozen, state = abstract_arguments(prepared, stored_in(workload))
            return compiled_cost(step, frozen, state, batch)

    costs = {}
    with ThreadPoolExecutor(COMPILED_AT_ONCE) as pool:
        futures = {}
        for name, step in planned.items():
            context = contextvars.copy_context()
            futures[name] = pool.submit(context.run, compile_one, *step)
        try:
            for number, (name, future) in enumerate(futures.items(), 1):
                costs[name] = future.result()
                on_compiled(number)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return costs


@dataclasses.dataclass(frozen=True)
class JaxSettings:
    """What JAX's context managers have set in a thread, which other threads do not see."""

    precision: Any
    device: Any
    x64: bool

    @classmethod
    def of_this_thread(cls) -> "JaxSettings":
        """What the thread that calls this has set."""
        config: Any = jax.config
        precision = config.jax_default_matmul_precision
        return cls(precision, config.jax_default_device, config.jax_enable_x64)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the thread that enters has these settings."""
        now = JaxSettings.of_this_thread()
        with contextlib.ExitStack() as entered:
            if now.precision != self.precision:
                entered.enter_context(jax.default_matmul_precision(self.precision))
            if now.device != self.device:
                entered.enter_context(jax.default_device(self.device))
            if now.x64 != self.x64:
                entered.enter_context(jax.enable_x64(self.x64))
            yield


def abstract_arguments(prepared: Prepared, frozen_dtype: str | None) -> tuple[tree.Tree, Any]:
    """The shapes and dtypes of the frozen parameters and of the :class:`State` of step 0, on the
    first device, where a run has them.
    """
    frozen = optim.frozen(prepared.params, prepared.labels)
    if frozen_dtype is not None:
        frozen = jax.eval_shape(lambda params: cast_kernels(params, frozen_dtype), frozen)

    def first_state(trainable: tree.Tree) -> State:
        return State(
            step=jnp.zeros((), jnp.int32),
            params=trainable,
            opt_state=prepared.tx.init(trainable),
            key=jax.random.key(0),
            halted=jnp.zeros((), bool),
        )

    state = jax.eval_shape(first_state, optim.trainable(prepared.params, prepared.labels))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def on_device(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    return jax.tree.map(on_device, frozen), jax.tree.map(on_device, state)


def batches_of_one_shape(workload: Workload) -> list[packing.Arrays]:
    """The first training batches, of their most frequent shape: others are some rows more or less."""
    train = workload.sets["train"]
    shapes = train.batch_shapes(workload.batch_size, workload.seed, workload.epochs)
    first = itertools.islice(train.batches(shapes, workload.seed, 0), workload.repeats + 1)
    by_shape = collections.defaultdict(list)
    for batch in first:
        by_shape[batch["segments"].shape].append(batch)
    return max(by_shape.values(), key=len)


def time_encoder(
    workload: Workload, step: Step, frozen: tree.Tree, batches: list[packing.Arrays]
) -> tuple[float, tuple[float, float]]:
    """(seconds of the whole file, (first, median) seconds of a training batch), all stages frozen."""
    assert step.prefix is not None
    run = step.prefix.run
    prefix_params, _ = step.prefix.split(frozen)
    train = workload.sets["train"]
    forward = clock.forward_seconds(workload.repeats, step.prefix, prefix_params, train)
    batch_seconds = clock.timed(
        lambda number: run(prefix_params, batches[number % len(batches)]), workload.repeats
    )
    return forward, batch_seconds


def time_step(
    step: Step, frozen: tree.Tree, state: State, batch: packing.Arrays, repeats: int
) -> tuple[float, float]:
    """(seconds of the first step after the frozen prefix, the median of the others), on one batch;
    ``state`` is donated.
    """
    with_hidden = dict(batch)
    if step.prefix is not None:
        prefix_params, _ = step.prefix.split(frozen)
        with_hidden["hidden"] = np.asarray(step.prefix.run(prefix_params, batch))
    return clock.step_seconds(step, frozen, state, with_hidden, repeats)


def compiled_cost(
    step: Step, frozen: tree.Tree, state: Any, batch: packing.Arrays
) -> tuple[int, float]:
    """(bytes that a step needs at once, FLOPs of its suffix an example), as the compiler says.

    ``frozen`` and ``state`` may be shapes, as :func:`abstract_arguments` makes them.
    """
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch.items()}
    programs = step.programs(frozen, state, shapes)
    peaks = {name: clock.peak_bytes(program) for name, program in programs.items()}
    if step.prefix is not None:  # its parameters stay while the suffix runs
        prefix_params, _ = step.prefix.split(frozen)
        peaks["suffix"] += tree.nbytes(prefix_params)
    suffix_flops = programs["suffix"].cost_analysis()["flops"]
    return max(peaks.values()), suffix_flops / len(batch["label"])


def fit_to_memory(workload: Workload, name: str, memory: float | None = None) -> MemoryFit | None:
    """How steps of a strategy fit ``memory`` GiB, by default nine tenths of what the device has; None
    where it does not say how much that is.

    Raises :class:`StrategyError` for what is no strategy of one phase or no memory, and where not
    even one example fits.
    """
    if memory is not None and not (is_of(memory, float) and memory > 0):
        raise StrategyError(f"`memory` is {memory!r}: {wanted(float)} of GiB, more than 0")
    check_planned(name, workload.model.encoder.config, workload.epochs)
    nbytes = this_device().memory
    limit = None if nbytes is None else int(MEMORY_SHARE * nbytes)
    if memory is not None:
        limit = int(memory * 2**30)
    if limit is None:
        return None

    if workload.frozen_dtype is not None:
        check_freezes(name, workload)

    def tokens_of(micro_batch: int) -> int:
        batch = largest_batch_of(workload, micro_batch, workload.batch_size // micro_batch)
        return batch["segments"].size // max(workload.batch_size // micro_batch, 1)

    def measure(remat: str, micro_batch: int, accumulate: int) -> float:
        return step_bytes(workload, name, remat, micro_batch, accumulate)

    return fit_memory(
        measure,
        limit,
        workload.batch_size,
        strategy=name,
        tokens_of=tokens_of,
        busy_tokens=busy_tokens(workload.model.encoder.config),
        most_examples=len(workload.sets["train"]),
    )


def check_freezes(name: str, workload: Workload) -> None:
    """Raise :class:`StrategyError` where a strategy leaves no kernel frozen to be stored."""
    labels = tree.paths(prepare(name, workload.model, workload.params).labels)
    if not any(is_kernel(path) and labels[path] == optim.FROZEN for path in labels):
        raise StrategyError(
            f"`frozen_dtype` {workload.frozen_dtype}: `fit` {name} freezes no kernel of the "
            "encoder: give a `fit` that does, such as lora:8"
        )


def step_bytes(
    workload: Workload, name: str, remat: str, micro_batch: int, accumulate: int
) -> float:
    """Bytes that a step of a strategy needs at once on the device that is there, in its largest
    batch; infinite where the compiler refuses it for its memory.
    """
    prepared = prepare(name, workload.model, workload.params)
    model = dataclasses.replace(prepared.model, remat=remat)
    step = make_step(model, workload.loss, prepared.tx, prepared.depth)
    frozen, state = abstract_arguments(prepared, stored_in(workload))
    batch = largest_batch_of(workload, micro_batch, accumulate)
    try:
        needed, _ = compiled_cost(step, frozen, state, batch)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return float("inf")
    return needed


def largest_batch_of(workload: Workload, micro_batch: int, accumulate: int) -> packing.Arrays:
    """A training batch of the largest shape that batches of so many examples have."""
    train = workload.sets["train"]
    shapes = train.batch_shapes(micro_batch, workload.seed, workload.epochs, accumulate)
    shapes = dataclasses.replace(shapes, rows=shapes.rows[-1:])
    return next(train.batches(shapes, workload.seed, 0, accumulate=accumulate))


def measure_overhead(
    folder: Path, workload: Workload, set_up: float, plot: float = 0.0
) -> Overhead:
    """What every run of a workload does besides computing, on the disk of ``folder``.

    ``set_up`` are the seconds that loading and reading took, ``plot`` those of drawing history.png,
    which a run of the command does.
    """
    finish = measure_finish(folder, len(workload.names))
    return Overhead(set_up=set_up, plot=plot, **finish)


def measure_finish(folder: Path, num_classes: int) -> dict[str, float]:
    """The fields ``score``, ``first_save`` and ``byte_saved`` of :class:`Overhead`.

    Writes two checkpoints under ``folder``, which is left to the caller to delete.
    """
    classes = max(num_classes, 2)
    started = time.perf_counter()
    metrics.classification(np.eye(4, classes, dtype=np.float32), np.arange(4) % classes)
    scored = time.perf_counter()
    checkpoint.write_tree(folder / "first", {"a": np.zeros(4, np.float32)})
    saved = time.perf_counter()
    array = np.zeros(16 << 20, np.float32)
    checkpoint.write_tree(folder / "checkpoint", {"a": array})
    ended = time.perf_counter()
    return {
        "score": scored - started,
        "first_save": saved - scored,
        "byte_saved": (ended - saved) / array.nbytes,
    }


def estimate(workload: Workload, timings: Timings, overhead: Overhead, name: str) -> Estimate:
    """The cost of one strategy, from what was timed and what can be counted."""
    prepared = prepare(name, workload.model, workload.params)
    trainable = optim.trainable(prepared.params, prepared.labels)
    optimizer_bytes = tree.nbytes(jax.eval_shape(prepared.tx.init, trainable))
    step = timings.step(name, workload.own_blocks)

    # FLOPs an example, counted by hand where a strategy is a depth.
    config = workload.model.encoder.config
    train = workload.sets["train"]
    span = train.tokens_per_sequence
    tokens = train.tokens_per_example
    suffix_flops = step.flops_per_example
    if name in ("full", "frozen") or TOP.fullmatch(name):
        suffix_flops = flops.step_flops(config, prepared.depth, tokens, span)
    prefix_flops = flops.prefix_flops(config, prepared.depth, tokens, span)

    arrays = arrays_of(workload, prepared)
    saves = workload.epochs + 1
    saved_bytes = saves * (tree.nbytes(trainable) + optimizer_bytes)
    once = (
        overhead.set_up
        + overhead.first_save
        + overhead.score
        + overhead.plot
        + overhead.byte_saved * saved_bytes
    )
    seconds, seconds_cached = run_seconds(workload, timings, step.seconds, prepared.depth, arrays)
    return Estimate(
        strategy=name,
        cut=prepared.depth,
        parameters_trained=tree.count(trainable),
        optimizer_bytes=optimizer_bytes,
        flops_per_example=suffix_flops + prefix_flops,
        flops_per_example_cached=suffix_flops,
        cache_bytes=sum(array.nbytes for array in policy.distinct(arrays)),
        peak_bytes=int(step.peak_bytes),
        seconds=once + seconds,
        seconds_cached=once + seconds_cached if prepared.depth else None,
    )


def arrays_of(workload: Workload, prepared: Prepared) -> dict[str, CachedArray]:
    """Where the cache would keep the states of each set; empty if nothing is frozen."""
    if not prepared.depth:
        return {}
    dtype = workload.cache_dtype or workload.model.encoder.dtype
    params = prepared.params
    if workload.frozen_dtype is not None:
        params = cast_kernels(params, workload.frozen_dtype)
    arrays = {}
    for name, examples in workload.sets.items():
        arrays[name] = states.cached_array(params, prepared.model, prepared.depth, examples, dtype)
    return arrays


def stored_in(workload: Workload) -> str | None:
    """The dtype in which a run keeps its frozen kernels on the device; None: as they are."""
    if workload.frozen_dtype is not None:
        return workload.frozen_dtype
    dtype = str(jnp.dtype(workload.model.encoder.dtype))
    return None if dtype == "float32" else dtype


def run_seconds(
    workload: Workload,
    timings: Timings,
    suffix_seconds: float,
    depth: int,
    arrays: Mapping[str, CachedArray],
) -> tuple[float, float]:
    """Seconds of all steps and evaluations of a run: (without the cache, with it)."""
    sets = workload.sets
    train = sets["train"]
    steps = workload.epochs * -(-len(train) // workload.batch_size)
    frozen_share = min(max(depth - 1, 0), workload.layers) / workload.layers  # of the blocks
    forward = timings.forward / len(train.file_sequences)  # seconds a sequence

    evaluated = 0  # sequences, of all evaluations
    for name, examples in sets.items():
        if name == "validation":
            evaluated += workload.epochs * len(examples.sequences)
        elif name != "train":
            evaluated += len(examples.sequences)

    _, prefix_seconds = timings.prefix
    step_seconds = suffix_seconds + frozen_share * prefix_seconds
    seconds = steps * step_seconds + forward * evaluated

    filling = 0.0
    file_sizes = {array.folder: len(sets[name].file_sequences) for name, array in arrays.items()}
    for array in policy.distinct(arrays):
        if not array.is_complete:
            computing = file_sizes[array.folder] * forward * frozen_share
            filling += computing + array.nbytes / policy.WRITE_RATE
    evaluating = forward * (1 - frozen_share) * evaluated
    return seconds, filling + steps * suffix_seconds + evaluating

"""The loop of every training run: phases of epochs of steps, validations, checkpoints, events.

:func:`fit` knows no task and prints nothing. :mod:`adapt.finetuning` and :mod:`adapt.pretraining`
make its plan and data.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from adapt import tree
from adapt.cost import clock, flops
from adapt.cost.clock import Laps
from adapt.data import packing
from adapt.data.shapes import RATE
from adapt.devices import Device, this_device
from adapt.errors import DivergedError, TrainingError
from adapt.models import Model
from adapt.options import TrainingOptions
from adapt.parallel.sharding import Layout, shard_tree
from adapt.prefix_cache.policy import CacheDecision
from adapt.pretrained.hub import Pretrained
from adapt.training import events, feeding, frozen_storage, optim, phases, run_state
from adapt.training.events import Callback
from adapt.training.loop import STEP_BY_STEP, Pace, run_steps
from adapt.training.metrics_log import finite
from adapt.training.phases import CompiledPhase
from adapt.training.run_state import Checkpoints, MemoryCheckpoints, Progress
from adapt.training.step import State, advance, cast_kernel, init_state, init_trainable

Scores = Mapping[str, float]  # by metric


class Evaluate(Protocol):
    """The scores and the mean loss of a set, ``"validation"`` or ``"test"``."""

    def __call__(
        self, params: tree.Tree, name: str, decisions: Mapping[str, float | None] | None = None
    ) -> tuple[Scores, float]:
        """(the scores, the mean loss) of the set ``name``.

        ``decisions``, such as a threshold, are those of an earlier validation, which has them among
        its scores. None: they are chosen on this set, and are among the scores that are returned.
        """
        ...


class TrainingData(Protocol):
    """What :func:`fit` trains on, and scores what it has trained by."""

    @property
    def primary_metric(self) -> str:
        """The score by which validations compare, where more is better; or "loss", where less is."""
        ...

    @property
    def latest_is_best(self) -> bool:
        """Whether the last validation counts as the best one, whatever its score."""
        ...

    def batches(self, epoch: int, skip: int) -> Iterable[packing.Arrays]:
        """The batches of one epoch from batch ``skip`` on, always the same ones."""
        ...

    def make_evaluate(self, phase: CompiledPhase) -> Evaluate:
        """The function that scores a set; its programs are compiled once."""
        ...

    def evaluation_programs(
        self, phase: CompiledPhase, params: tree.Tree
    ) -> Iterable[Callable[[], object]]:
        """Functions, each of which compiles one program of the evaluations; ``params`` are shapes."""
        ...

    def choose_cache(
        self, phase: CompiledPhase, frozen: tree.Tree, earlier: bool | None
    ) -> CacheDecision | None:
        """Whether outputs of the frozen prefix are kept in the cache; None for data that have none.

        ``earlier`` is what a run that goes on had chosen before it stopped.
        """
        ...

    def with_states(
        self,
        phase: CompiledPhase,
        frozen: tree.Tree,
        decision: CacheDecision,
        emit: Callback,
    ) -> tuple["TrainingData", CacheDecision]:
        """(the data with these outputs, what was decided in the end)."""
        ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What trains, and in which steps: a run without its data and its folder."""

    pretrained: Pretrained  # the checkpoint, with what the run's model.json says of the head
    discarded: dict[str, Any]  # of the checkpoint's head
    model: Model  # float32, on no mesh; each phase has the one that computes
    params: tree.Tree  # before the first step
    phases: Sequence[CompiledPhase]
    steps_per_epoch: int
    steps: int
    key: jax.Array
    layout: Layout | None = None

    @property
    def dtype(self) -> str:
        """The dtype of the computation, by name."""
        return self.phases[0].dtype

    def end_of(self, epoch: int) -> int:
        """The step with which an epoch ends."""
        return min((epoch + 1) * self.steps_per_epoch, self.steps)

    def epochs_left(self, phase: CompiledPhase, step: int) -> list[int]:
        """The epochs of a phase that do not end before ``step`` steps were taken, or with them."""
        return [epoch for epoch in phase.epochs if self.end_of(epoch) > step]


@dataclasses.dataclass(frozen=True)
class ActivePhase:
    """A phase that was entered: its frozen parameters, and the data as these prepare them.

    ``frozen`` are these as the run's checkpoints have them, ``computed`` as a step takes them, on
    the devices: with kernels in the dtype of the computation.
    """

    phase: CompiledPhase
    frozen: tree.Tree
    computed: tree.Tree
    data: TrainingData
    evaluate: Evaluate

    def params(self, params: tree.Tree) -> tree.Tree:
        """All parameters as an evaluation takes them, on the devices; ``params`` are those of a
        checkpoint.
        """
        layout = self.phase.model.layout
        if self.phase.frozen_dtype is None:
            return shard_tree(params, layout)
        trainable = optim.trainable(params, self.phase.labels)
        return tree.merge(self.computed, shard_tree(trainable, layout))

    def check_unmoved(self) -> None:
        """Raise :class:`TrainingError` unless ``computed`` is still what it was made from."""
        if self.phase.frozen_dtype is None:
            return
        computed = tree.paths(self.computed)
        for path, leaf in tree.paths(self.frozen).items():
            for name, again in cast_kernel(path, leaf, self.phase.frozen_dtype).items():
                if not run_state.has_same_bits(computed[name], again):
                    raise TrainingError(
                        f"the frozen parameters on the device moved: {name} is no longer that of "
                        "the checkpoint; please report this"
                    )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """How training ended. ``active`` is the phase in which it did."""

    outcome: events.Outcome
    steps: int
    compile_seconds: float
    session: "Session"
    active: ActivePhase

    @property
    def progress(self) -> Progress:
        return self.session.progress

    def best_params(self) -> tree.Tree:
        """All parameters of the best checkpoint."""
        return self.session.checkpoints.load_params(self.session.plan.model.shapes())

    def last_params(self) -> tree.Tree:
        """All parameters of the last checkpoint, of a run that was stopped."""
        return self.session.checkpoints.load_params(self.session.plan.model.shapes(), "last")


def fit(
    plan: Plan,
    data: TrainingData,
    options: TrainingOptions,
    *,
    checkpoints: Checkpoints | None = None,
    callbacks: Iterable[Callback] = (),
    laps: Laps | None = None,
    validate_first: bool = False,
) -> Fitted:
    """Train the phases of a plan, epoch by epoch, with a validation and a checkpoint after each.

    ``checkpoints`` keep the run and say whether it goes on after a stop: then it is bit for bit the
    run that was never stopped. By default the best parameters are kept in memory. ``callbacks`` get
    the events of :mod:`adapt.training.events`. ``laps`` collects the seconds that each kind of work
    took. ``validate_first`` scores the parameters before the first step, too. Raises
    :class:`DivergedError` where a loss is not finite; the checkpoints until then are good.
    """
    session = Session.open(plan, options, checkpoints, callbacks, laps)
    frozen, state = session.init_state()
    session.emit(events.Started(session.summaries, plan.steps, session.first_step))
    active = None
    outcome: events.Outcome = "complete"
    for phase in plan.phases[session.progress.phase :]:
        if active is not None:
            frozen, state = advance(
                frozen,
                state,
                active.phase.labels,
                phase.labels,
                phase.tx,
                plan.layout,
                is_placed=phase.frozen_dtype is None,
            )
        active = session.enter(phase, frozen, data, state)
        # A run may have stopped after its first checkpoint and before this.
        if validate_first and session.progress.best_score is None:
            session.validate(active, state, phase.epochs.start)
        # A regularizer finds the pre-trained values beside what is frozen.
        inputs = phases.with_anchor(active.computed, phase, plan.pretrained.params)
        shapes: set[Any] = set()
        pace = STEP_BY_STEP
        for epoch in plan.epochs_left(phase, int(state.step)):
            if session.is_stale(phase):
                outcome = "early"
                break
            batches = session.batches(active, epoch, int(state.step))
            if session.device.is_accelerator:
                first, batches = feeding.peek(feeding.ahead(batches))
                pace = session.pace(phase, first)
            records = run_steps(
                phase.step,
                inputs,
                state,
                batches,
                session.log_every,
                shapes,
                session.on_compile,
                pace,
            )
            with session.compiling_evaluations(active, state) as wait:
                for state, record in records:
                    session.log(epoch, record, phase)
                    if session.save_is_due(epoch):
                        session.save(state, is_best=False)
                wait()
            session.laps.lap("train")
            if session.progress.step == plan.end_of(epoch):
                session.validate(active, state, epoch)
            if session.must_stop():
                return session.finish("stopped", active)
    assert active is not None
    return session.finish(outcome, active)


@dataclasses.dataclass
class Session:
    """What stays the same while a run is trained, and what it knows of its progress."""

    plan: Plan
    options: TrainingOptions
    checkpoints: Checkpoints
    emit: Callback
    laps: Laps
    progress: Progress
    resumes: bool
    compiled_before: float  # seconds of this process
    device: Device
    is_watched: bool  # whether anybody gets the events
    first_step: int = 0
    # phases whose evaluations were compiled beside training
    compiled: set[int] = dataclasses.field(default_factory=set)

    @classmethod
    def open(
        cls,
        plan: Plan,
        options: TrainingOptions,
        checkpoints: Checkpoints | None,
        callbacks: Iterable[Callback],
        laps: Laps | None,
    ) -> "Session":
        checkpoints = MemoryCheckpoints() if checkpoints is None else checkpoints
        before = checkpoints.resume()
        progress = Progress() if before is None else before
        progress.total_steps = plan.steps
        callbacks = tuple(callbacks)
        return cls(
            plan=plan,
            options=options,
            checkpoints=checkpoints,
            emit=events.broadcast(callbacks),
            is_watched=bool(callbacks),
            laps=Laps() if laps is None else laps,
            progress=progress,
            resumes=before is not None,
            compiled_before=clock.compiling().seconds,
            device=this_device(),
        )

    def init_state(self) -> tuple[tree.Tree, State]:
        """(frozen parameters, state) to begin with, or of the last checkpoint.

        Frozen parameters that a step takes in another dtype stay where they are, on the host.
        """
        plan = self.plan
        phase = plan.phases[self.progress.phase]
        params = plan.params
        if self.resumes:
            params = self.checkpoints.load_params(plan.model.shapes(), "last")
        key = jax.random.fold_in(plan.key, 1)
        if phase.frozen_dtype is None:
            frozen, state = init_state(params, phase.labels, phase.tx, key, plan.layout)
        else:
            frozen = optim.frozen(params, phase.labels)
            if self.resumes:  # a mesh reads a checkpoint straight to its devices
                frozen = fetched(frozen)
            state = init_trainable(params, phase.labels, phase.tx, key, plan.layout)
        state = self.checkpoints.restore(state)
        self.first_step = int(state.step)
        self.progress.step = self.first_step
        return frozen, state

    @property
    def summaries(self) -> tuple[events.PhaseSummary, ...]:
        return tuple(phase.summary(self.plan.params) for phase in self.plan.phases)

    def enter(
        self,
        phase: CompiledPhase,
        frozen: tree.Tree,
        data: TrainingData,
        state: State | None,
        digest: str | None = None,
        computed: tree.Tree | None = None,
    ) -> ActivePhase:
        """Choose the cache, save what a new phase begins with, and fill the cache.

        Without a ``state`` the phase is only evaluated. ``digest`` is that of ``frozen``, and
        ``computed`` what a step takes of it, where they are known.
        """
        progress = self.progress
        if state is not None:
            summary = phase.summary(self.plan.params)
            self.emit(events.PhaseStarted(summary, int(state.step)))
        if computed is None:
            computed = frozen
            if phase.frozen_dtype is not None:
                computed = phase.place_frozen(frozen)
        # States of the checkpoint's own kernels serve whatever stores the same bits.
        cached_from = computed if phase.rounds_kernels else frozen
        decision = data.choose_cache(phase, cached_from, progress.was_cached(phase.number))
        is_cached = decision is not None and decision.enabled
        if decision is not None:
            self.emit(events.CacheChosen(phase.number, is_cached, decision.reason))
        is_new = state is not None and not progress.has_begun(phase.number)
        if is_new:
            digest = tree.digest(frozen) if digest is None else digest
            progress.begin_phase(phase.number, digest, is_cached)
        if state is not None and phase.rounds_kernels and self.is_watched:
            self.report_storage(phase, frozen, computed, data, state)
        if state is not None and is_new:
            self.checkpoints.begin_phase(frozen, state, progress)
            self.emit(events.Saved(progress.step, is_best=False))
        self.laps.lap("set_up")

        if decision is not None:
            data, decision = data.with_states(phase, computed, decision, self.emit)
            cache = decision.summary()
            progress.note_cache(phase.number, cache)
            if cache is not None:
                self.emit(events.CacheReady(phase.number, cache["dtype"], cache["relative_error"]))
        self.laps.lap("encode")
        evaluate = self.announced(data.make_evaluate(phase))
        return ActivePhase(phase, frozen, computed, data, evaluate)

    def report_storage(
        self,
        phase: CompiledPhase,
        frozen: tree.Tree,
        computed: tree.Tree,
        data: TrainingData,
        state: State,
    ) -> None:
        """Report what storing the frozen kernels as ``computed`` changes, measured before the first
        step of the phase.
        """
        stored = self.progress.stored(phase.number)
        if stored is None:
            batch = next(iter(data.batches(phase.epochs.start, 0)))
            event = frozen_storage.measure(
                phase.model,
                phase.dtype,
                str(phase.frozen_dtype),
                frozen,
                computed,
                state.params,
                batch,
                phase.number,
            )
            self.progress.note_stored(phase.number, dataclasses.asdict(event))
        else:
            event = events.FrozenStored(**stored)
        self.emit(event)

    def batches(self, active: ActivePhase, epoch: int, step: int) -> Iterable[packing.Arrays]:
        """The batches of an epoch after ``step`` steps of the run, up to where it is to stop."""
        skip = step - epoch * self.plan.steps_per_epoch
        batches = active.data.batches(epoch, skip)
        stop = self.options.stop_after
        if stop is not None and step < stop:
            return itertools.islice(batches, stop - step)
        return batches

    def pace(self, phase: CompiledPhase, batch: packing.Arrays | None) -> Pace:
        """How the steps of a phase keep an accelerator busy, by its first batch.

        Records are late, unless a checkpoint may be due with one.
        """
        steps = 1
        if batch is not None and phase.step.takes_several(batch):
            steps = steps_a_call(phase, batch)
        return Pace(min(steps, self.log_every), is_late=not self.options.save_every)

    def compiling_evaluations(
        self, active: ActivePhase, state: State
    ) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Inside, the programs of evaluations compile beside training, on an accelerator and where
        that has not been done; see :func:`adapt.training.feeding.compiling_beside`.
        """
        if not self.device.is_accelerator or active.phase.number in self.compiled:
            return contextlib.nullcontext(lambda: None)
        self.compiled.add(active.phase.number)
        self.emit(events.Compiling("evaluation", is_beside=True))
        params = tree.shapes(tree.merge(active.computed, state.params))
        return feeding.compiling_beside(active.data.evaluation_programs(active.phase, params))

    @property
    def log_every(self) -> int:
        """Steps between looks at the device: rare enough to cost nothing, and at every save."""
        every = self.options.log_every or max(1, min(20, self.plan.steps_per_epoch // 5))
        return min(every, self.options.save_every or every)

    def log(self, epoch: int, record: dict[str, float], phase: CompiledPhase) -> None:
        self.progress.count(record)
        rates = phase.rates(self.progress.step - 1)
        self.emit(events.Stepped(epoch, record, rates))

    def on_compile(self, batch: Mapping[str, Any]) -> None:
        rows = batch.get("segments", batch["weight"])
        self.emit(events.Compiling("step", np.shape(rows)))

    def announced(self, evaluate: Evaluate) -> Evaluate:
        """The same function, whose calls are announced, and that the first one compiles."""
        called = []

        def evaluate_announced(
            params: tree.Tree, name: str, decisions: Mapping[str, float | None] | None = None
        ) -> tuple[Scores, float]:
            self.emit(events.Evaluating(name))
            if not called and not self.compiled:
                self.emit(events.Compiling("evaluation"))
            called.append(name)
            return evaluate(params, name, decisions)

        return evaluate_announced

    def save_is_due(self, epoch: int) -> bool:
        """Whether a checkpoint is to be written now, within the epoch."""
        every = self.options.save_every
        step = self.progress.step
        if not every or step == self.plan.end_of(epoch):
            return False
        return step // every > self.progress.saved // every

    def save(self, state: State, is_best: bool) -> None:
        self.checkpoints.save(state, self.progress, is_best)
        self.emit(events.Saved(self.progress.step, is_best))

    def validate(self, active: ActivePhase, state: State, epoch: int) -> None:
        """Score the validation examples, and save a checkpoint, perhaps as the best one."""
        progress = self.progress
        params = tree.merge(active.computed, state.params)
        scores, loss = active.evaluate(params, "validation")
        check_finite(loss, progress.step)
        if progress.step == 0:
            progress.first_loss = loss
        metric = active.data.primary_metric
        score = -loss if metric == "loss" else scores[metric]
        is_best = progress.compare(score, loss, active.data.latest_is_best)
        if is_best:
            progress.best_scores = {name: finite(value) for name, value in scores.items()}
        self.emit(events.Validated(epoch, progress.step, loss, scores, is_best))
        self.laps.lap("evaluate")
        self.save(state, is_best)
        self.laps.lap("save")

    def is_stale(self, phase: CompiledPhase) -> bool:
        """Whether the last phase has gone on for too long without a better validation."""
        is_last = phase is self.plan.phases[-1]
        return is_last and self.progress.stale >= self.options.patience > 0

    def must_stop(self) -> bool:
        """Whether ``stop_after`` was reached in this session, before the run's end."""
        stop = self.options.stop_after or 0
        step = self.progress.step
        return self.first_step < stop <= step < self.plan.steps

    def finish(self, outcome: events.Outcome, active: ActivePhase) -> Fitted:
        step = self.progress.step
        self.emit(events.Finished(step, self.progress.best_step, outcome))
        compile_seconds = clock.compiling().seconds - self.compiled_before
        return Fitted(outcome, step, compile_seconds, self, active)


def fetched(params: tree.Tree) -> tree.Tree:
    """The arrays as NumPy's, but those that lie on the devices of several processes."""

    def fetch(_: str, leaf: Any) -> Any:
        is_local = getattr(leaf, "is_fully_addressable", False)
        return tree.to_numpy(leaf) if is_local else leaf

    return tree.map_paths(fetch, params)


# The work of a call that keeps an accelerator busy while the host prepares the next one; at the rate
# of adapt.data.shapes a step of MiniLM on 32 sentences takes 1.3 ms.
SECONDS_A_CALL = 0.02
MOST_STEPS = 16


def steps_a_call(phase: CompiledPhase, batch: packing.Arrays) -> int:
    """How many steps are taken in one call: as many as take ``SECONDS_A_CALL``, by their matrix
    products.
    """
    config = phase.model.encoder.config
    depth = phase.step.prefix.depth if phase.step.prefix else 0
    tokens = np.size(batch["segments"]) if "segments" in batch else 0
    span = np.shape(batch["segments"])[-1] if tokens else 0
    seconds = flops.step_flops(config, depth, tokens, span) / RATE
    if seconds * MOST_STEPS <= SECONDS_A_CALL:
        return MOST_STEPS
    return max(int(SECONDS_A_CALL / seconds), 1)


def check_finite(loss: float, step: int) -> None:
    """Raise :class:`DivergedError` when the validation loss after ``step`` is not finite."""
    if not np.isfinite(loss):
        raise DivergedError(
            f"the validation loss is not finite after step {step}: training stopped, the last good "
            "checkpoint is kept; lower the learning rate, or look at the validation data",
            steps=step,
        )

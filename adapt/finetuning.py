"""Fine-tuning as a library: examples of a task, a plan of what trains, the test of the result.

    sets, names = read_sets(data_options, options, pretrained)
    data = TaskData.build(task, names, sets, options)   # examples with labels, in batches
    plan = build_plan(pretrained, data, options)        # no old head, a new one, phases
    fitted = fit(plan, data, options, callbacks=[print])
    tested = test(plan, data, fitted)                   # with the best checkpoint

:func:`adapt.fitting.fit` is the loop.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adapt import extensions, tree
from adapt.cost import clock
from adapt.data import packing, tables
from adapt.data.examples import Examples
from adapt.data.labels import stratified_split
from adapt.errors import StrategyError, TrainingError
from adapt.features import pooling_weights
from adapt.fitting import Evaluate, Fitted, Plan, Scores
from adapt.models import Encoder, Model, peft
from adapt.options import (
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    StrategyOptions,
    TaskOptions,
    TrainingOptions,
    check_ranges,
)
from adapt.parallel import sharding
from adapt.prefix_cache import policy
from adapt.pretrained.hub import Pretrained, check_head, check_inputs
from adapt.tasks import Task, get_task
from adapt.tasks.base import text_columns
from adapt.training import events, optim, phases, strategies
from adapt.training.events import Callback
from adapt.training.loop import evaluate
from adapt.training.metrics_log import finite
from adapt.training.phases import CompiledPhase
from adapt.training.step import make_eval

HELD_OUT = 0.1  # of the training rows, for validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuningOptions(
    ModelOptions, TaskOptions, StrategyOptions, OptimizerOptions, TrainingOptions
):
    """All options of a fine-tuning run but those of its data, its folder and its devices."""

    def check(self) -> None:
        """Raise :class:`StrategyError` for options that contradict each other or are out of range."""
        if self.strategy == "frozen" and self.learning_rate is not None:
            raise StrategyError(
                '`learning_rate` is the encoder\'s, and `strategy="frozen"` does not train it: '
                "give `head_learning_rate`"
            )
        is_positive = min(self.epochs, self.batch_size, self.accumulate) >= 1
        if not is_positive or self.batch_size % self.accumulate:
            raise StrategyError(
                f"`epochs` {self.epochs}, `batch_size` {self.batch_size} and "
                f"`accumulate` {self.accumulate} must be at least 1, and `accumulate` a divisor "
                "of `batch_size`"
            )
        check_ranges(self)


def read_sets(
    data: DataOptions,
    options: FinetuningOptions,
    pretrained: Pretrained,
    seed: int = 0,
    layout: sharding.Layout | None = None,
) -> tuple[dict[str, Examples], list[str]]:
    """(the sets ``train``, ``validation`` and ``test``, the names of what the head puts out).

    Without a validation set 10% of the training rows are held out; ``seed`` decides which, and how
    examples are paired. Raises :class:`DataError` for what can't be read, :class:`StrategyError`
    for data that do not fit the checkpoint or the task.
    """
    check_inputs(pretrained, data.image_column)
    task = get_task(options.task)
    columns = text_columns(data.text_column, data.text_pair_column)
    task.check_columns(columns, pretrained)
    task.check_head(options, pretrained)
    task.check_batches(options)
    parts = tables.read_parts(data)
    names = task.label_names(parts["train"], data.label_column, columns)
    sets = {}
    for name, table in parts.items():
        labels = task.encode_labels(table, data.label_column, names)
        sets[name] = task.examples(pretrained, table, columns, labels, data.image_column)
    if not data.validation:
        train = sets["train"]
        rows, held_out_rows = stratified_split(train.labels, HELD_OUT, seed)
        # What was truncated is counted once, for the whole file.
        sets["validation"] = dataclasses.replace(train.take(held_out_rows), truncated=0)
        sets["train"] = train.take(rows)
    for name, examples in sets.items():
        paired = task.pair_examples(examples, seed)
        sets[name] = dataclasses.replace(paired, layout=layout)
    return sets, task.output_names(names)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Labelled examples of a task: the sets ``train``, ``validation`` and ``test``."""

    task: Task
    names: Sequence[str]  # of the labels, or of what the head puts out
    sets: Mapping[str, Examples]
    shapes: packing.BatchShapes  # of training batches
    seed: int
    accumulate: int
    steps_per_epoch: int
    caching: StrategyOptions

    @classmethod
    def build(
        cls,
        task: Task,
        names: Sequence[str],
        sets: Mapping[str, Examples],
        options: FinetuningOptions,
        seed: int = 0,
    ) -> "TaskData":
        """Data in batches of the options' size; ``seed`` decides the order of the examples."""
        size = options.batch_size // options.accumulate
        shapes = sets["train"].batch_shapes(size, seed, options.epochs, options.accumulate)
        steps = -(-len(sets["train"]) // options.batch_size)
        return cls(task, names, sets, shapes, seed, options.accumulate, steps, options)

    @property
    def primary_metric(self) -> str:
        return self.task.primary_metric

    @property
    def latest_is_best(self) -> bool:
        return False

    def batches(self, epoch: int, skip: int) -> Iterable[packing.Arrays]:
        return self.sets["train"].batches(self.shapes, self.seed, epoch, skip, self.accumulate)

    def make_evaluate(self, phase: CompiledPhase) -> Evaluate:
        forward = make_eval(phase.model, phase.step.prefix)

        def evaluate_set(params: tree.Tree, name: str) -> tuple[Scores, float]:
            part = self.sets[name]
            outputs = evaluate(forward, params, part.eval_batches(), part.num_outputs)
            scores = self.task.metrics(outputs, part.targets, self.names)
            return scores, self.task.mean_loss(outputs, part.targets)

        return evaluate_set

    def choose_cache(
        self, phase: CompiledPhase, frozen: tree.Tree, earlier: bool | None
    ) -> policy.CacheDecision:
        cut = phase.step.prefix
        rate = None if cut is None or self.caching.cache == "off" else clock.matmul_rate()
        return policy.choose(
            cut,
            frozen,
            self.sets,
            self.caching,
            epochs=len(phase.epochs),
            matmul_rate=rate,
            earlier=earlier,
        )

    def with_states(
        self,
        phase: CompiledPhase,
        frozen: tree.Tree,
        decision: policy.CacheDecision,
        emit: Callback,
    ) -> tuple["TaskData", policy.CacheDecision]:
        sets, decision = policy.with_states(
            phase.step.prefix,
            frozen,
            self.sets,
            decision,
            on_progress=lambda done, total: emit(events.CacheProgress(done, total)),
            on_wait=lambda: emit(events.CacheWaiting()),
        )
        return dataclasses.replace(self, sets=sets), decision


def build_plan(
    pretrained: Pretrained,
    data: TaskData,
    options: FinetuningOptions,
    seed: int = 0,
    layout: sharding.Layout | None = None,
) -> Plan:
    """The encoder with a new head, what the strategy adds to it, and the phases in which it trains.

    Raises :class:`StrategyError` for options that contradict each other, the encoder or the task.
    """
    strategy = strategies.strategy(options.strategy, pretrained.config.layers, options.epochs)
    config = peft.with_peft(pretrained.config, strategy.peft)
    pretrained = dataclasses.replace(pretrained, config=config)
    key = jax.random.key(seed)
    head = data.task.head(pretrained, options, data.names)
    check_head(head)
    model, params = with_head(pretrained, head, jax.random.fold_in(key, 2))
    params |= {"head": data.task.init_head(params["head"], data.sets["train"].labels)}
    params = phases.init_params(strategy, model, params, jax.random.fold_in(key, 3))

    computed = dataclasses.replace(model, layout=layout, remat=options.remat, scan=options.scan)
    if options.dtype == "bfloat16":
        computed = computed.cast(jnp.bfloat16)
    loss = data.task.training_loss(options, data.sets["train"].targets, data.names)
    compiled = phases.build_phases(
        strategy, options.strategy, computed, params, loss, options, data.steps_per_epoch
    )
    policy.check(options, [phase.step.prefix for phase in compiled])
    adapted = dataclasses.replace(
        pretrained,
        head=model.head,
        labels=tuple(data.task.output_names(data.names)),
        task=options.task,
    )
    imports = extensions.used_by(adapted, options.strategy)
    return Plan(
        pretrained=dataclasses.replace(adapted, imports=imports),
        discarded=tree.discarded(pretrained.params, "head"),
        model=model,
        params=params,
        phases=compiled,
        steps_per_epoch=data.steps_per_epoch,
        steps=compiled[-1].epochs.stop * data.steps_per_epoch,
        key=key,
        layout=layout,
    )


def with_head(pretrained: Pretrained, head: Any, key: jax.Array) -> tuple[Model, tree.Tree]:
    """(model, parameters) of the encoder under a new ``head``, a module of :mod:`adapt.models`.

    A head that pools by the checkpoint's pooler gets the pre-trained one.
    """
    model = Model(Encoder(pretrained.config), head)
    fresh = model.init_head(key)
    if getattr(head, "pooling", None) == "pooler":
        fresh = tree.graft(
            tree.drop(fresh, "pooler"), "pooler", pooling_weights(pretrained)["pooler"]
        )
    encoder = tree.drop(pretrained.params, "head")
    return model, tree.graft(encoder, "head", fresh)


@dataclasses.dataclass(frozen=True)
class Tested:
    """The test of the best checkpoint."""

    params: tree.Tree  # of that checkpoint
    scores: dict[str, float | None]  # metrics, loss, and the baselines that look at no input
    facts: dict[str, Any]  # what else result.json says: steps, parameters, phases, digests


def test(plan: Plan, data: TaskData, fitted: Fitted) -> Tested:
    """Score the test set with the best checkpoint, read back, in the phase in which it was trained.

    Raises :class:`TrainingError` if what is frozen in that phase has moved.
    """
    session = fitted.session
    params = fitted.best_params()
    phase = plan.phases[fitted.progress.best_phase]
    frozen = optim.frozen(params, phase.labels)
    active = fitted.active
    if phase is not active.phase:
        active = session.enter(phase, frozen, data, None)
    # On the devices, as the parameters of validations were: otherwise it would compile once more.
    metrics, loss = active.evaluate(sharding.shard_tree(params, plan.layout), "test")
    baseline = data.task.baseline(data.sets["train"].targets, data.sets["test"].targets)
    session.laps.lap("evaluate")
    scores = {name: finite(value) for name, value in [*metrics.items(), ("loss", loss)]}
    scores |= {name: finite(value) for name, value in baseline.items()}
    return Tested(params, scores, facts_of(plan, fitted, phase, params, frozen))


def facts_of(
    plan: Plan, fitted: Fitted, phase: CompiledPhase, params: tree.Tree, frozen: tree.Tree
) -> dict[str, Any]:
    """What result.json says of a run beside its scores and its seconds."""
    progress = fitted.progress
    before = progress.phases[phase.number]["digest"]
    after = tree.digest(frozen)
    if after != before:
        raise TrainingError(
            "the frozen parameters moved: the digests before and after differ; please report this"
        )
    caches = [entry["cache"] for entry in progress.phases if entry.get("cache")]
    summaries = []
    for each in plan.phases:
        counts = tree.summary(plan.params, each.labels)
        summaries.append({"epochs": len(each.epochs), "parameters": counts})
    return {
        "padding": 1 - progress.tokens / progress.slots if progress.slots else None,
        "cache": caches[-1] if caches else None,
        "parameters_trained": tree.count(optim.trainable(params, phase.labels)),
        "parameters_frozen": tree.count(frozen),
        "phases": summaries,
        "steps": fitted.steps,
        "best_step": progress.best_step,
        "best_phase": progress.best_phase,
        "validation_score": progress.best_score,
        "discarded": plan.discarded,
        "frozen_digest_before": before,
        "frozen_digest_after": after,
    }

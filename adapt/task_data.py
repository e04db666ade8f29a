"""The labelled data of a run: parts of tables as examples of a task, in batches.

Each part is read by the task, for one encoder; without a validation set some rows are held out.

    parts = make_parts(texts, labels, Columns())
    data = read_data(parts, task, options, pretrained)      # train, validation, perhaps test
    data.sets["train"]
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.cost import clock
from adapt.data import packing
from adapt.data.augmentation import parse
from adapt.data.examples import Examples
from adapt.data.inputs import Part
from adapt.data.labels import label_type, log_classes, stratified_split
from adapt.data.repeated import count_repeated
from adapt.data.weights import read_extras, read_weights, scaled
from adapt.errors import DataError, StrategyError
from adapt.fitting import Evaluate, Scores
from adapt.options import HELD_OUT, FinetuningOptions, StrategyOptions
from adapt.parallel import sharding
from adapt.prefix_cache import policy
from adapt.pretrained.hub import Pretrained, check_inputs
from adapt.pretrained.tokenizer import NO_LONG_TEXTS
from adapt.tasks import Task
from adapt.tasks.metrics import Metric, own_scores
from adapt.training import events, feeding
from adapt.training.events import Callback
from adapt.training.loop import evaluate, shape_of
from adapt.training.phases import CompiledPhase
from adapt.training.step import compile_eval, make_eval

LATEST = "latest"  # among the outputs: those of the last validation


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
    label_type: str = "str"  # what labels are in the training table: a key of LABEL_TYPES
    score: str | None = None  # what decides between validations; None: the task's own metric
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=dict)  # beside the task's
    # rows of the other parts whose inputs are in the training data
    repeated: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # training rows (or words) of every class before some are held out; {} where there are none
    class_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    # of every part as it was read, before a seed held rows out or paired them
    file_digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # those of the head for the test set, once it was scored, and of the best validation, which
    # keep_best makes of those of the "latest"
    outputs: dict[str, np.ndarray] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @classmethod
    def build(
        cls,
        task: Task,
        names: Sequence[str],
        sets: Mapping[str, Examples],
        options: FinetuningOptions,
        seed: int = 0,
        label_type: str = "str",
        metrics: Mapping[str, Metric] | None = None,
    ) -> "TaskData":
        """Data in batches of the options' size; ``seed`` decides the order of the examples."""
        size = options.batch_size // options.accumulate
        shapes = sets["train"].batch_shapes(size, seed, options.epochs, options.accumulate)
        steps = -(-len(sets["train"]) // options.batch_size)
        return cls(
            task=task,
            names=names,
            sets=sets,
            shapes=shapes,
            seed=seed,
            accumulate=options.accumulate,
            steps_per_epoch=steps,
            caching=options,
            label_type=label_type,
            score=options.score,
            metrics=metrics or {},
        )

    @property
    def primary_metric(self) -> str:
        return self.score or self.task.deciding_metric(self.names)

    def scores(self, outputs: np.ndarray, part: Examples) -> Scores:
        """All metrics of a set, those of the task first."""
        names = self.task.scored_names(part, self.names)
        scores = self.task.metrics(outputs, self.task.truth(part), names)
        return scores | own_scores(self.metrics, outputs, part.targets)

    @property
    def latest_is_best(self) -> bool:
        return False

    def batches(self, epoch: int, skip: int) -> Iterable[packing.Arrays]:
        return self.sets["train"].batches(self.shapes, self.seed, epoch, skip, self.accumulate)

    def make_evaluate(self, phase: CompiledPhase) -> Evaluate:
        forward = make_eval(phase.model, phase.step.prefix)

        def evaluate_set(
            params: tree.Tree, name: str, decisions: Mapping[str, float | None] | None = None
        ) -> tuple[Scores, float]:
            part = self.sets[name]
            batches = feeding.fed(part.eval_batches())
            outputs = evaluate(forward, params, batches, part.num_outputs)
            loss = self.task.mean_loss(outputs, part.targets)
            made: Scores = {}
            if decisions is None:
                decisions = made = self.task.decide(outputs, part.targets)
            outputs = self.task.apply_decisions(outputs, part.targets, decisions)
            self.outputs["test" if name == "test" else LATEST] = outputs
            return {**self.scores(outputs, part), **made}, loss

        return evaluate_set

    def keep_best(self, event: events.Event) -> None:
        """A callback that keeps the outputs of the best validation."""
        if isinstance(event, events.Validated) and event.is_best:
            self.outputs["validation"] = self.outputs[LATEST]

    def evaluation_programs(
        self, phase: CompiledPhase, params: tree.Tree
    ) -> Iterator[Callable[[], object]]:
        if phase.model.layout is not None:
            return  # a mesh lays out the batch before each call
        seen = set()
        for name, part in self.sets.items():
            for batch in part.eval_shapes() if name != "train" else ():
                shape = shape_of(batch)
                if shape not in seen:
                    seen.add(shape)
                    cut = phase.step.prefix
                    yield functools.partial(compile_eval, phase.model, cut, params, batch)

    def choose_cache(
        self, phase: CompiledPhase, frozen: tree.Tree, earlier: bool | None
    ) -> policy.CacheDecision:
        cut = phase.step.prefix
        if self.sets["train"].augmentation is not None:
            return policy.CacheDecision({}, "pictures are augmented, so no two epochs are the same")
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


def read_data(
    parts: Mapping[str, Part],
    task: Task,
    options: FinetuningOptions,
    pretrained: Pretrained,
    *,
    held_out: float = HELD_OUT,
    seed: int = 0,
    split_seed: int | None = None,
    layout: sharding.Layout | None = None,
    metrics: Mapping[str, Metric] | None = None,
    weights: Any = None,
    extras: Any = None,
) -> TaskData:
    """The parts as examples of the task for this encoder.

    Where there is no part ``validation``, a share ``held_out`` of the training rows becomes one, by
    classes; ``split_seed`` decides which (default: ``seed``). ``weights`` are those of the training
    rows, where no column has them; validation and test are not weighted. ``extras`` are arrays [N,
    ...] of the training rows that their batches bring along. Raises :class:`DataError` for what
    can't be read, :class:`StrategyError` for data that do not fit the checkpoint or the task.
    """
    train = parts["train"]
    check_inputs(pretrained, train.columns.image)
    task.check_columns(train.columns.texts, pretrained)
    task.check_head(options, pretrained)
    task.check_batches(options)
    names = task.label_names(train.table, train.columns.label, train.columns.texts)
    names = task.all_names(pretrained, names, train.table, train.columns.label)
    weights = read_weights(train.table, weights, train.columns.weight)
    sets = {name: read_examples(part, task, names, pretrained) for name, part in parts.items()}
    sets["train"] = dataclasses.replace(
        sets["train"], weights=weights, extras=read_extras(extras, len(train.table))
    )
    file_digests = {name: examples.digest for name, examples in sets.items()}
    class_counts = task.class_counts(sets["train"].targets, names)
    log_classes(train.table, class_counts)
    if "validation" not in sets:
        whole = sets["train"]
        split_seed = seed if split_seed is None else split_seed
        rows, held_out_rows = stratified_split(task.strata(whole), held_out, split_seed)
        # What was too long is counted once, for the whole file.
        held_out_part = whole.take(held_out_rows)
        sets["validation"] = dataclasses.replace(
            held_out_part, long=NO_LONG_TEXTS, weights=None, extras={}
        )
        sets["train"] = whole.take(rows)
    sets["train"] = with_scaled_weights(sets["train"])
    for name, examples in sets.items():
        paired = task.pair_examples(examples, seed)
        sets[name] = dataclasses.replace(paired, layout=layout)
    check_scored(task, sets, parts)
    sets["train"] = task.training_examples(sets["train"])
    sets["train"] = with_augmentation(sets["train"], options, pretrained)
    if not len(sets["train"]):
        raise DataError(
            f"{train.table.name}: what every row is to learn lies beyond the tokens of an example: "
            "give a larger `max_length`"
        )
    task.check_scored(sets["train"], train.table.name, needs_loss=True)
    # Validation before test, as a person reads them.
    in_order = {name: sets[name] for name in ("train", "validation", "test") if name in sets}
    data = TaskData.build(
        task,
        task.output_names(names),
        in_order,
        options,
        seed,
        label_type(train.table, train.columns.label),
        metrics,
    )
    return dataclasses.replace(
        data,
        repeated=count_repeated(parts),
        class_counts=class_counts,
        file_digests=file_digests,
    )


def check_scored(task: Task, sets: Mapping[str, Examples], parts: Mapping[str, Part]) -> None:
    """Raise :class:`DataError` for a validation or test set of which nothing can be scored."""
    for name in ("validation", "test"):
        if name not in sets:
            continue
        where = f"{parts['train'].table.name}: what was held out for validation"
        if name in parts:
            where = parts[name].table.name
        task.check_scored(sets[name], where, needs_loss=name == "validation")


def with_augmentation(
    training: Examples, options: FinetuningOptions, pretrained: Pretrained
) -> Examples:
    """The same examples with the augmentation of the options.

    Raises :class:`StrategyError` for an encoder of texts.
    """
    augmentation = parse(options.augment)
    if augmentation is None:
        return training
    if not pretrained.config.is_image:
        raise StrategyError(
            f"`augment` {' '.join(options.augment)} is of pictures, and {pretrained.source} is a "
            "text encoder: leave it out"
        )
    return dataclasses.replace(training, augmentation=augmentation)


def with_scaled_weights(training: Examples) -> Examples:
    """The same examples with weights of a mean of 1, where they have weights.

    Raises :class:`DataError` where none of them counts, but those that were held out did.
    """
    if training.weights is None:
        return training
    if not training.weights.any():
        raise DataError(
            "`weights`: every example above 0 was held out for validation: give `validation`"
        )
    return dataclasses.replace(training, weights=scaled(training.weights))


def read_examples(part: Part, task: Task, names: Sequence[str], pretrained: Pretrained) -> Examples:
    """The rows of a part with their labels as examples."""
    columns = part.columns
    table = task.with_character_offsets(part.table, columns)
    task.check_labels(table, columns.label, columns.texts)
    labels = task.encode_labels(table, columns.label, names)
    return task.examples(pretrained, table, columns.texts, labels, columns.image)

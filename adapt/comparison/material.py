"""The data of a comparison: examples for one encoder, and which of them a cell sees.

The same seed draws the same examples for every strategy, so that strategies are compared in pairs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapt import tree
from adapt.comparison.cells import Cell, Cost, Key, Outputs, Try, as_finite, choose
from adapt.comparison.options import CompareOptions, count_of
from adapt.cost.flops import prefix_flops
from adapt.data.examples import Examples
from adapt.data.inputs import Part
from adapt.data.labels import is_class_numbers, label_type, log_classes, stratified_split
from adapt.errors import DataError, StrategyError
from adapt.options import HELD_OUT, TaskOptions
from adapt.pretrained.hub import Pretrained, check_inputs
from adapt.probing.selection import stratified_folds
from adapt.task_data import read_examples
from adapt.tasks import Task

FEW = 128  # examples up to which every class gets an equal share
HELD_OUT_OF_A_BUDGET = 0.2  # those that choose, where only some of the examples are used
FEWEST_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Material:
    """The data as examples of a task for one encoder.

    Without a test set the training examples are dealt into folds: seed s is tested on fold s.
    """

    pretrained: Pretrained
    task: Task
    names: Sequence[str]  # of the labels
    label_type: str
    train: Examples
    validation: Examples | None  # None: some of the training examples choose
    metric: str  # the score that chooses and is reported
    tests: Mapping[str, Examples]  # "test", where there is one, and sets that are only tested on
    folds: np.ndarray | None  # int [N], of every training example; None: there is a test set

    @property
    def class_counts(self) -> dict[str, int]:
        """How many training examples, or words, each class has; {} where labels are no classes."""
        return self.task.class_counts(self.train.targets, self.names)

    def encoding_flops(self, depth: int) -> float:
        """FLOPs of the first ``depth`` stages of the encoder on one training example, by hand."""
        config = self.pretrained.config
        train = self.train
        return prefix_flops(config, depth, train.tokens_per_example, train.tokens_per_sequence)

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the encoder and of the data, by which a comparison that goes on is known."""
        encoder = tree.digest(self.pretrained.params["encoder"])
        return {"encoder": encoder} | {name: part.digest for name, part in self.sets.items()}

    @property
    def sets(self) -> dict[str, Examples]:
        """All files, by name."""
        sets = {"train": self.train, **self.tests}
        if self.validation is not None:
            sets["validation"] = self.validation
        return sets


@dataclasses.dataclass(frozen=True)
class Draw:
    """Rows of the training examples, int64, that a seed and a budget see.

    ``held_out`` choose, unless there are validation examples; ``test`` is None where there is a
    test set.
    """

    train: np.ndarray
    held_out: np.ndarray
    test: np.ndarray | None

    @property
    def labelled(self) -> int:
        """How many labelled examples were used."""
        return len(self.train) + len(self.held_out)


def read_material(
    parts: Mapping[str, Part],
    also_test: Mapping[str, Part],
    task: Task,
    options: TaskOptions,
    pretrained: Pretrained,
    compared: CompareOptions,
) -> Material:
    """The parts as examples. Raises DataError for what can't be read, StrategyError for what does
    not go together.
    """
    train = parts["train"]
    check_inputs(pretrained, train.columns.image)
    task.check_columns(train.columns.texts, pretrained)
    if train.columns.weight is not None:
        raise StrategyError("`weights`: a comparison weighs no examples; leave them out")
    task.check_head(options, pretrained)
    names = task.label_names(train.table, train.columns.label, train.columns.texts)
    names = task.all_names(pretrained, names, train.table, train.columns.label)
    read = {}
    for name, part in {**parts, **also_test}.items():
        read[name] = read_examples(part, task, names, pretrained)
        if name != "train":
            task.check_scored(task.pair_examples(read[name], seed=0), part.table.name)
    training = read.pop("train")
    validation = read.pop("validation", None)
    folds = None
    if "test" not in read:
        folds = deal_folds(task.strata(training), max(compared.seeds, FEWEST_FOLDS))
    kind = label_type(train.table, train.columns.label)
    material = Material(
        pretrained=pretrained,
        task=task,
        names=names,
        label_type=kind,
        train=training,
        validation=validation,
        metric=compared.score or task.deciding_metric(task.output_names(names)),
        tests=read,
        folds=folds,
    )
    log_classes(train.table, material.class_counts)
    return material


def deal_folds(labels: Any, count: int) -> np.ndarray:
    """The fold of every example, int [N]; classes keep their shares.

    Raises DataError where there are fewer examples than folds.
    """
    if len(labels) < 2 * count:
        raise DataError(
            f"{len(labels)} examples are too few to be dealt into {count} folds: name a `test` set"
        )
    if is_class_numbers(labels):
        return stratified_folds(labels, count, [0]).argmax(0)
    return np.random.default_rng(0).permutation(len(labels)) % count


def check_budgets(options: CompareOptions, material: Material) -> None:
    """Raise DataError for a budget of more examples than there are, or of fewer than two a class."""
    draw = draw_rows(material, "all", seed=0)
    most = draw.labelled
    fewest = 2 * max(len(material.names), 1)
    for budget in options.budgets:
        count = count_of(budget)
        if count is not None and not fewest <= count <= most:
            raise DataError(
                f"`budgets` {budget} must be all, or from {fewest} (two for each class) to {most} "
                "examples"
            )


def draw_rows(material: Material, budget: str, seed: int) -> Draw:
    """The rows that a seed draws of the training examples.

    All of them are split as :func:`adapt.finetune` splits them with this seed.
    """
    labels = material.task.strata(material.train)
    pool = np.arange(len(material.train))
    test = None
    if material.folds is not None:
        fold = seed % (int(material.folds.max()) + 1)
        test = np.flatnonzero(material.folds == fold)
        pool = np.flatnonzero(material.folds != fold)
    count = count_of(budget)
    share = HELD_OUT
    if count is not None:
        pool = pool[draw_some(labels[pool], count, seed)]
        share = HELD_OUT_OF_A_BUDGET
    if material.validation is not None:
        return Draw(pool, np.zeros(0, np.int64), test)
    train, held_out = stratified_split(labels[pool], share, seed)
    return Draw(pool[train], pool[held_out], test)


def draw_some(labels: Any, count: int, seed: int) -> np.ndarray:
    """``count`` rows in random order; as many of each class while there are few."""
    random = np.random.default_rng([seed, count])
    order = random.permutation(len(labels))
    if count > FEW or not is_class_numbers(labels):
        return order[:count]
    classes = int(labels.max()) + 1
    ranks = np.zeros(len(labels), np.int64)  # of every row among those of its class
    for number in range(classes):
        of_class = order[labels[order] == number]
        ranks[of_class] = np.arange(len(of_class))
    one_of_each_in_turn = order[np.argsort(ranks[order], kind="stable")]
    return random.permutation(one_of_each_in_turn[:count])


def test_examples(material: Material, draw: Draw) -> dict[str, Examples]:
    """The examples that a cell is tested on, by set."""
    sets = dict(material.tests)
    if draw.test is not None:
        sets = {"test": material.train.take(draw.test), **sets}
    return sets


def tested_cell(
    material: Material,
    key: Key,
    draw: Draw,
    tries: Sequence[Try],
    outputs: Outputs,
    cost: Cost,
) -> Cell:
    """The cell whose best try gave these outputs on the test sets, at this cost."""
    strategy, budget, seed = key
    scores, floors = score_outputs(material, outputs, draw, seed)
    return Cell(
        strategy=strategy,
        budget=budget,
        seed=seed,
        labelled=draw.labelled,
        tries=tries,
        chosen=choose(tries),
        scores=scores,
        floors=floors,
        seconds=cost.seconds,
        flops=cost.flops,
        parameters=cost.parameters,
    )


def score_outputs(
    material: Material, outputs: Outputs, draw: Draw, seed: int
) -> tuple[dict[str, dict[str, float | None]], dict[str, float | None]]:
    """(the scores of every test set by metric, what scores on the test without a look at any
    input).
    """
    task = material.task
    targets = targets_of(material, draw, seed)
    scores = {}
    for name, values in outputs.items():
        names = scored_names(material, name)
        scores[name] = as_finite(task.metrics(values, targets[name], names))
    train = task.pair_examples(material.train.take(draw.train), seed)
    return scores, as_finite(task.baseline(task.truth(train), targets["test"]))


def scored_names(material: Material, name: str) -> Sequence[str]:
    """The names of the classes of a test set; see :meth:`Task.scored_names`."""
    names = material.task.output_names(material.names)
    part = material.tests.get(name, material.train)
    return material.task.scored_names(part, names)


def targets_of(material: Material, draw: Draw, seed: int) -> dict[str, Any]:
    """What the outputs of every test set are scored against, in their order."""
    task = material.task
    targets = {}
    for name, examples in test_examples(material, draw).items():
        targets[name] = task.truth(task.pair_examples(examples, seed))
    return targets

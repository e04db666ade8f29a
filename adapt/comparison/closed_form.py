"""Cells of a strategy that leaves the encoder as it is: heads on its features, for all budgets and
seeds together.

A probe is logistic regression, whose tries are strengths of its penalty; a centroid is the nearest
class mean.
"""

import dataclasses
import time

import jax
import numpy as np

from adapt import tree
from adapt.comparison.cells import Cells, Cost, Try, choose
from adapt.comparison.material import Draw, Material, draw_rows, tested_cell
from adapt.comparison.options import CompareOptions
from adapt.cost import clock
from adapt.data.examples import Examples
from adapt.errors import StrategyError
from adapt.models import POOLINGS, Classifier, Encoder, Model
from adapt.options import TaskOptions
from adapt.prefix_cache import policy
from adapt.pretrained.families import get_family
from adapt.pretrained.hub import default_pooling
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.tasks.metrics import more_is_better
from adapt.training import frozen_prefix
from adapt.training.events import OnProgress

REPEATS = 5  # of a timed window
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of a probe: cheap, so it tries all of them


def check(strategy: str, material: Material, options: TaskOptions) -> None:
    """Raise :class:`StrategyError` where labels are no classes, for options of heads that train,
    and for a score that is not there.
    """
    if options.layers or options.keep_head or options.class_weights != "none":
        option = "layers" if options.layers else "class_weights"
        if options.keep_head:
            option = "keep_head"
        raise StrategyError(
            f"`{option}` is of heads that train, and `strategies` {strategy} is none: leave out one"
        )
    if options.pooling is not None and options.pooling not in POOLINGS:
        raise StrategyError(
            f"`pooling` {options.pooling} has weights, and `strategies` {strategy} fits a head on "
            f"{', '.join(POOLINGS)}: give one of these"
        )
    task = material.task
    if task.probed_as != "classes":
        raise StrategyError(
            f"`strategies` {strategy} fits classes, and `task` is {task.name}: leave it out"
        )
    labels = material.train.labels
    logits = np.random.default_rng(0).normal(size=(len(labels), len(material.names)))
    scores = task.metrics(logits.astype(np.float32), labels, task.output_names(material.names))
    if material.metric not in scores:
        known = [name for name in scores if more_is_better(name)]
        raise StrategyError(f"unknown `score` {material.metric!r}: give one of {', '.join(known)}")


def fill(
    strategy: str,
    material: Material,
    options: CompareOptions,
    pooling: str | None,
    cells: Cells,
    on_progress: OnProgress | None = None,
) -> None:
    """Add every cell of a probe or a centroid that is not there yet."""
    missing = []
    for budget in options.budgets:
        for seed in range(options.seeds):
            if (strategy, budget, seed) not in cells:
                missing.append((budget, seed))
    if not missing:
        return
    draws = [draw_rows(material, budget, seed) for budget, seed in missing]
    features, encoding_seconds = pooled_features(material, pooling)
    encoding_flops = material.encoding_flops(material.pretrained.config.layers + 1)
    heads = fit_heads(strategy, material, features, draws)
    for number, (budget, seed) in enumerate(missing):
        draw = draws[number]
        tries = [judge(heads, material, number, k, draw) for k in range(len(heads.strengths))]
        chosen = choose(tries)
        outputs = test_outputs(heads, material, number, chosen, draw)
        cost = Cost(
            seconds=heads.seconds + encoding_seconds * draw.labelled,
            flops=encoding_flops * draw.labelled,
            parameters=heads.count_parameters(number, chosen),
        )
        key = (strategy, budget, seed)
        cells.add(tested_cell(material, key, draw, tries, outputs, cost), outputs)
        if on_progress is not None:
            on_progress(number + 1, len(missing))


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads of every cell and strength, on scaled features of every file."""

    fitted: linear.Linear
    features: dict[str, np.ndarray]  # scaled, by file
    strengths: tuple[float, ...]
    seconds: float  # of one fit

    def logits(self, file: str, rows: np.ndarray | None, number: int, k: int) -> np.ndarray:
        """Logits float32 [N, C] of one head; for two classes a head has one column."""
        x = self.features[file] if rows is None else self.features[file][rows]
        values = x @ self.fitted.kernel[number, k].T + self.fitted.bias[number, k]
        if values.shape[1] == 1:
            values = np.concatenate([np.zeros_like(values), values], 1)
        return values.astype(np.float32)

    def count_parameters(self, number: int, k: int) -> int:
        """How many parameters one head has."""
        return self.fitted.kernel[number, k].size + self.fitted.bias[number, k].size


def fit_heads(
    strategy: str,
    material: Material,
    features: dict[str, np.ndarray],
    draws: list[Draw],
) -> Heads:
    """One head for each draw and strength, all of them together."""
    classes = len(material.names)
    # All files one after the other, the training file first: some of its rows train.
    count = sum(len(values) for values in features.values())
    train = np.zeros((len(draws), count), bool)
    for mask, draw in zip(train, draws, strict=True):
        mask[draw.train] = True
    labels = np.zeros(count, np.int32)
    labels[: len(material.train)] = material.train.labels
    started = time.perf_counter()
    scaled = linear.standardize(np.concatenate(list(features.values())), train)
    if strategy == "probe":
        strengths = PENALTIES
        fitted = logistic(scaled, labels, train, strengths, classes)
    else:
        strengths = (0.0,)
        fitted = linear.centroid(scaled, labels, train, classes)
    seconds = (time.perf_counter() - started) / len(draws) / len(strengths)
    ends = np.cumsum([len(values) for values in features.values()])
    parts = np.split(scaled.x, ends[:-1])
    return Heads(fitted, dict(zip(features, parts, strict=True)), strengths, seconds)


def judge(heads: Heads, material: Material, number: int, k: int, draw: Draw) -> Try:
    """A head's score on the examples that choose."""
    if material.validation is None:
        logits = heads.logits("train", draw.held_out, number, k)
        labels = material.train.labels[draw.held_out]
    else:
        logits = heads.logits("validation", None, number, k)
        labels = material.validation.labels
    task = material.task
    scores = task.metrics(logits, labels, task.output_names(material.names))
    return Try(
        rate=heads.strengths[k],
        score=float(scores[material.metric]),
        loss=task.mean_loss(logits, labels),
        seconds=heads.seconds,
        steps=0,
        best_step=0,
    )


def test_outputs(
    heads: Heads, material: Material, number: int, k: int, draw: Draw
) -> dict[str, np.ndarray]:
    """The logits of one head on every set that is tested on."""
    outputs = {}
    if draw.test is not None:
        outputs["test"] = heads.logits("train", draw.test, number, k)
    for name in material.tests:
        outputs[name] = heads.logits(name, None, number, k)
    return outputs


def pooled_features(material: Material, pooling: str | None) -> tuple[dict[str, np.ndarray], float]:
    """(the pooled features [N, D] of every set, the seconds that an example takes to encode).

    ``pooling`` is by default the checkpoint's own, or that of the family.
    """
    pretrained = material.pretrained
    chosen = pooling or default_pooling(pretrained)
    if chosen not in POOLINGS:  # a run's, with weights that are of its own head
        chosen = get_family(pretrained.config.family).pooling
    if chosen not in POOLINGS:  # nor has the family one without
        chosen = "mean"
    model = Model(Encoder(pretrained.config), Classifier(0, chosen))
    cut = frozen_prefix.cut_at(model, model.stages)
    params = tree.drop(pretrained.params, "head")
    params = jax.device_put(params, jax.local_devices()[0])
    sets, _ = policy.with_states(cut, params, material.sets)
    train = material.train
    seconds = clock.forward_seconds(REPEATS, cut, cut.split(params)[0], train)
    features = {name: text_vectors(part) for name, part in sets.items()}
    return features, seconds / len(train)


def text_vectors(part: Examples) -> np.ndarray:
    """The vector of every text by its pooled states, [N, D]: the mean of those of its windows."""
    vectors = np.asarray(part.states)
    if part.windows is not None:
        vectors = part.windows.mean(vectors)
    return vectors[part.rows]

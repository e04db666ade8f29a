"""Strategies by label budgets by seeds: every cell of the grid is fitted once and kept in a file.

A seed draws the labelled examples, the head and the order of the batches; the same seed draws the
same examples for every way. A fifth of them chooses among the rates, or strengths of the penalty,
that a way tries. The test is done once, with what was chosen.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from adapt import tree
from adapt.comparison.summary import cell_name
from adapt.comparison.trials import BATCH, REPEATS, Arm, Fit
from adapt.cost import clock, flops
from adapt.data.examples import Examples
from adapt.data.labels import stratified_split
from adapt.errors import DataError, StrategyError
from adapt.files import write_json
from adapt.models import Classifier, Encoder, Model
from adapt.prefix_cache import policy
from adapt.pretrained import hub
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.tasks import metrics
from adapt.training import frozen_prefix, strategies
from adapt.training.events import OnProgress

ALL = 0
STRATIFIED = 128  # examples up to which every class gets an equal share
PENALTIES = (1.0, 10.0, 100.0, 0.1, 1000.0)  # in the order in which tries take them
RATES = (1.0, 3.0, 0.3, 10.0, 0.1)
HELD_OUT = 0.2  # of the labelled examples: those that choose

Sets = dict[str, Examples]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, on which data, and how often."""

    title: ClassVar[str] = "comparison"

    # of what trains the encoder
    checkpoint: str = "tiny-bert"
    # one more checkpoint, of what leaves the encoder as it is
    features: str = "minilm"
    # a bundled set, with a train and a test part
    data: str = "reviews"
    # sets that are tested too and never trained on
    out_of_domain: tuple[str, ...] = ("amazon", "tweets", "nyt")
    text_column: str = "text"
    label_column: str = "label"
    # what trains the encoder
    strategies: tuple[str, ...] = ("full", "lp-ft", "top:1", "bitfit", "lora:8")
    # labelled examples; 0: all
    budgets: tuple[int, ...] = (8, 32, 128, 500, 2000, ALL)
    # each draws other examples, another head and another order
    seeds: int = 5
    # rates, or penalties, that every way may try
    tries: int = 3
    # at least, of a fit on few examples
    steps: int = 60
    # at least
    epochs: int = 2
    # examples of each set out of the domain
    test: int = 1000


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint with the data as examples for its encoder: train, test, and the sets out of the
    domain.
    """

    name: str
    pretrained: hub.Pretrained
    sets: Sets
    classes: int


@dataclasses.dataclass(frozen=True)
class Way:
    """A method on a checkpoint."""

    method: str  # "probe", "centroid", or a strategy
    source: Source

    @property
    def title(self) -> str:
        return f"{self.method}, {self.source.name}"

    @property
    def trains(self) -> bool:
        return self.method not in FROZEN_METHODS


FROZEN_METHODS = ("probe", "centroid")


def check_options(options: CompareOptions, layers: int) -> None:
    """Raise :class:`StrategyError` for options that make no sense; ``layers`` are the trained
    encoder's.
    """
    in_range = 1 <= options.tries <= len(RATES) and options.seeds >= 2
    if not in_range or not options.budgets or not options.strategies:
        raise StrategyError(
            f"`tries` must be 1 to {len(RATES)}, `seeds` 2 or more, and no list empty"
        )
    lists = {"strategies": options.strategies, "budgets": options.budgets}
    for name, values in lists.items():
        if len(set(values)) < len(values):
            shown = ", ".join(map(str, values))
            raise StrategyError(f"`{name}` has one of {shown} twice: leave it out")
    for name in options.strategies:
        strategies.strategy(name, layers, 6)


def check_budgets(options: CompareOptions, source: Source) -> None:
    """Raise :class:`DataError` for a budget of more examples than there are, or of fewer than two a
    class.
    """
    count = len(source.sets["train"])
    classes = source.classes
    for budget in options.budgets:
        if budget and not 2 * classes <= budget <= count:
            raise DataError(
                f"`budgets` {budget} must be 0 (all) or {2 * classes} (two for each of {classes} "
                f"classes) to {count} examples"
            )


def make_ways(options: CompareOptions, sources: Sequence[Source]) -> list[Way]:
    """Probe and centroid on every checkpoint, then the strategies on the first."""
    ways = []
    for source in sources:
        ways += [Way(method, source) for method in FROZEN_METHODS]
    ways += [Way(strategy, sources[0]) for strategy in options.strategies]
    return ways


def fill_grid(
    options: CompareOptions,
    ways: Sequence[Way],
    folder: Path,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Fit every cell that has no file in ``folder`` yet; returns all of them."""
    per_way = len(options.budgets) * options.seeds
    for number, way in enumerate(ways):

        def report(done: int, before: int = number * per_way) -> None:
            if on_progress:
                on_progress(before + done, len(ways) * per_way)

        if way.trains:
            fit_trained(options, way, folder, report)
        else:
            fit_frozen(options, way, folder, report)
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def draw_rows(labels: np.ndarray, budget: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows to train on, rows to choose by), 4 to 1, of ``budget`` rows; as many of each class
    while there are few.
    """
    rng = np.random.default_rng([seed, budget])
    order = rng.permutation(len(labels))
    if budget and budget <= STRATIFIED:
        classes = int(labels.max()) + 1
        drawn = []
        for index in range(classes):
            share = budget // classes + (index < budget % classes)
            drawn.append(order[labels[order] == index][:share])
        order = rng.permutation(np.concatenate(drawn))
    order = order[: budget or len(labels)]
    train, held_out = stratified_split(labels[order], HELD_OUT, seed)
    return order[train], order[held_out]


def num_epochs(options: CompareOptions, rows: int) -> int:
    """Epochs of a fit on ``rows`` examples."""
    per_epoch = -(-rows // BATCH)
    return max(options.epochs, -(-options.steps // per_epoch))


def fit_trained(
    options: CompareOptions, way: Way, folder: Path, report: Callable[[int], None]
) -> None:
    """The cells of a way that trains the encoder."""
    sets = way.source.sets
    arm = None
    done = 0
    for budget in options.budgets:
        for seed in range(options.seeds):
            done += 1
            path = folder / f"{cell_name(way.title, budget, seed)}.json"
            if path.exists():
                continue
            if arm is None:
                arm = Arm(way.method, way.source.pretrained, sets, way.source.classes)
            rows, held_out = draw_rows(sets["train"].labels, budget, seed)
            epochs = num_epochs(options, len(rows))
            best = None
            for scale in RATES[: options.tries]:
                fit = arm.fit(rows, seed, scale, epochs)
                loss = validation_loss(arm, fit, sets, held_out)
                if best is None or loss < best[0]:
                    best = (loss, scale, fit)
            assert best is not None
            loss, scale, fit = best
            if fit.params is None:
                raise StrategyError(
                    f"{way.title} diverged at every rate with {budget or 'all'} examples "
                    f"and seed {seed}"
                )
            logits = {}
            for name in sets:
                if name != "train":
                    logits[name] = arm.score(fit.params, name)
            notes = {
                "tried": scale,
                "seconds": fit.seconds,
                "steps": fit.steps,
                "flops": arm.flops(len(rows), epochs),
                "validation_loss": float(loss),
            }
            save_cell(path, way.title, budget, seed, sets, logits, notes)
            report(done)


def validation_loss(arm: Arm, fit: Fit, sets: Sets, held_out: np.ndarray) -> float:
    """The mean loss of a fit on the rows that choose; inf where it diverged."""
    if fit.params is None:
        return np.inf
    return mean_loss(arm.score(fit.params, "train", held_out), sets, held_out)


def fit_frozen(
    options: CompareOptions, way: Way, folder: Path, report: Callable[[int], None]
) -> None:
    """The cells of a way that leaves the encoder as it is: heads for all budgets and seeds
    together.
    """
    sets = way.source.sets
    classes = way.source.classes
    cells = []
    for budget in options.budgets:
        cells += [(budget, seed) for seed in range(options.seeds)]
    paths = [folder / f"{cell_name(way.title, *cell)}.json" for cell in cells]
    if all(path.exists() for path in paths):
        return
    features, encoding_seconds = mean_features(way.source)
    draws = [draw_rows(sets["train"].labels, *cell) for cell in cells]

    # All sets one after the other, the training set first: some of its rows train.
    count = sum(len(values) for values in features.values())
    train = np.zeros((len(cells), count), bool)
    for mask, (rows, _) in zip(train, draws, strict=True):
        mask[rows] = True
    labels = np.zeros(count, np.int32)
    labels[: len(sets["train"])] = sets["train"].labels
    started = time.perf_counter()
    scaled = linear.standardise(np.concatenate(list(features.values())), train)
    if way.method == "probe":
        penalties = PENALTIES[: options.tries]
        heads = logistic(scaled, labels, train, penalties, classes)
    else:
        penalties = (0.0,)
        heads = linear.centroid(scaled, labels, train, classes)
    fit_seconds = (time.perf_counter() - started) / len(cells) / len(penalties)

    ends = np.cumsum([len(values) for values in features.values()])
    parts = np.split(scaled.x, ends[:-1])
    scaled_sets = dict(zip(features, parts, strict=True))
    config = way.source.pretrained.config
    tokens = float(sets["train"].file_sequences.lengths.mean())
    flops_per_example = flops.prefix_flops(config, config.layers + 1, tokens, tokens)
    for number, (budget, seed) in enumerate(cells):
        rows, held_out = draws[number]
        losses = []
        for k in range(len(penalties)):
            logits = head_logits(scaled_sets["train"], heads, number, k)
            losses.append(mean_loss(logits[held_out], sets, held_out))
        best = int(np.argmin(losses))
        logits = {}
        for name in sets:
            if name != "train":
                logits[name] = head_logits(scaled_sets[name], heads, number, best)
        notes = {
            "tried": penalties[best],
            "seconds": fit_seconds + encoding_seconds * len(rows),
            "steps": 0,
            "flops": len(rows) * flops_per_example,
            "validation_loss": float(losses[best]),
        }
        save_cell(paths[number], way.title, budget, seed, sets, logits, notes)
        report(number + 1)


def mean_features(source: Source) -> tuple[dict[str, np.ndarray], float]:
    """(mean-pooled features of every set, out of the cache; the seconds that an example takes to
    encode).
    """
    config = source.pretrained.config
    model = Model(Encoder(config), Classifier(0, "mean"))
    cut = frozen_prefix.cut_at(model, model.stages)
    params = tree.drop(source.pretrained.params, "head")
    params = jax.device_put(params, jax.local_devices()[0])
    sets, _ = policy.with_states(cut, params, source.sets)
    train = source.sets["train"]
    seconds = clock.forward_seconds(REPEATS, cut, cut.split(params)[0], train)
    features = {}
    for name, examples in sets.items():
        features[name] = np.asarray(examples.states)[examples.rows]
    return features, seconds / len(train.file_sequences)


def head_logits(x: np.ndarray, heads: linear.Linear, number: int, k: int) -> np.ndarray:
    """Logits [N, C] of one head on scaled features; for two classes a head has one column."""
    values = x @ heads.kernel[number, k].T + heads.bias[number, k]
    if values.shape[1] == 1:
        return np.concatenate([np.zeros_like(values), values], 1)
    return values


def mean_loss(logits: np.ndarray, sets: Sets, rows: np.ndarray) -> float:
    """Cross-entropy of rows of the training set."""
    labels = sets["train"].labels[rows]
    chosen = metrics.softmax(logits)[np.arange(len(rows)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def save_cell(
    path: Path,
    title: str,
    budget: int,
    seed: int,
    sets: Sets,
    logits: dict[str, np.ndarray],
    notes: dict[str, Any],
) -> None:
    """Write a cell: which examples are right as bits, then its JSON, by which it counts as done."""
    scores = {}
    correct = {}
    for name, values in logits.items():
        labels = sets[name].labels
        correct[name] = values.argmax(-1) == labels
        ece = metrics.calibration_error(metrics.softmax(values), labels)
        scores[name] = {"accuracy": float(correct[name].mean()), "ece": ece}
    np.savez_compressed(path.with_suffix(".npz"), **correct)  # pyright: ignore[reportArgumentType]
    write_json(path, {"way": title, "budget": budget, "seed": seed, **notes, "sets": scores})

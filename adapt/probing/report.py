"""A probe: heads on the features of every layer, the best chosen by inner folds, its test looked at
once.

    report = probe_features(features, labels, test, names, ProbeOptions())
    report.selected["test"]

``features`` are those of :func:`adapt.probing.layers.layer_features`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from adapt.errors import StrategyError
from adapt.options import FrozenDType, check_types
from adapt.probing import linear
from adapt.probing.logistic_regression import logistic
from adapt.probing.selection import (
    NestedSplits,
    Selection,
    interval,
    nested_splits,
    resample,
    score,
    select_candidate,
    select_strength,
)
from adapt.training.events import OnProgress

Method = Literal["logistic", "ridge", "knn", "centroid"]
REGRESSES = ("ridge", "knn")
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
NEIGHBOURS = (1, 5, 20, 50)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Which heads are fitted, and how the best is chosen."""

    title: ClassVar[str] = "probe"

    # of the head; default: logistic, or ridge for regression
    method: tuple[Method, ...] | None = None
    # of the tokens' states: mean, cls, max or last; default: the checkpoint's own, or else mean
    pooling: tuple[str, ...] | None = None
    # scale every feature vector to length 1, or not: no; default: what the checkpoint's folder says
    normalize: bool | None = None
    # what is put before a text, or its name in the checkpoint's folder; default: the folder's own
    prompt: str | None = None
    # of the encoder's kernels on the device; int8: with a scale for each output; default: float32,
    # in which all is computed
    frozen_dtype: FrozenDType | None = None
    # take features as they are; otherwise each is standardised on the rows that a head is fitted on
    unscaled: bool = False
    # of the L2 penalty: scikit-learn's 1 / C, or alpha
    strengths: tuple[float, ...] = STRENGTHS
    # of knn
    neighbours: tuple[int, ...] = NEIGHBOURS
    # inner folds that choose, and outer ones where there is no test
    folds: int = 5
    # each draws other folds
    seeds: int = 5

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings to try; the mean where none is named."""
        return ("mean",) if self.pooling is None else self.pooling

    def methods(self, regression: bool) -> tuple[str, ...]:
        if self.method is not None:
            return self.method
        return ("ridge",) if regression else ("logistic",)


@dataclasses.dataclass(frozen=True)
class ProbeReport:
    """The scores of every cell (a method on a layer's pooled features), and of what the inner folds
    selected.

    ``selected`` and each of the ``cells`` have the mean scores ``validation`` and ``test`` over
    seeds, ``low`` and ``high`` of the test's 95% interval, and the test ``by_seed``; a cell its
    ``method``, ``layer``, ``pooling`` and ``strengths``, ``selected`` what was chosen
    ``by_split``. ``floor`` is the score without features, ``selection`` says how all was chosen.
    """

    selected: dict[str, Any]
    cells: list[dict[str, Any]]
    floor: float
    examples: dict[str, Any]
    classes: list[str]
    selection: str

    def __repr__(self) -> str:
        choice, _, _ = self.choice
        test, low, high = (self.selected[name] for name in ("test", "low", "high"))
        scores = f"test {self.metric} {test:.3f}, {low:.3f} to {high:.3f}"
        return f"ProbeReport({len(self.cells)} cells; {choice}: {scores}; floor {self.floor:.3f})"

    @property
    def metric(self) -> str:
        """What heads are scored by."""
        return "accuracy" if self.classes else "Pearson's correlation"

    @property
    def choice(self) -> tuple[str, int, int]:
        """(what was selected most often, in how many splits, of how many)."""
        choices = []
        for choice in self.selected["by_split"]:
            choices.append(f"{choice['method']} on layer {choice['layer']}, {choice['pooling']}")
        most_frequent = max(dict.fromkeys(choices), key=choices.count)
        return most_frequent, choices.count(most_frequent), len(choices)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a cell; the columns are the entries of :attr:`cells`."""
        import pandas

        return pandas.DataFrame(self.cells)


def check_options(options: ProbeOptions, regression: bool) -> None:
    """Raise :class:`StrategyError` for options that contradict each other, are of another type or
    out of range.
    """
    check_types(options)
    methods = options.methods(regression)
    if regression:
        for name in methods:
            if name not in REGRESSES:
                raise StrategyError(
                    f"`method` {name} classifies, and `task` is regression: give ridge or knn"
                )
    lists = {"method": methods, "pooling": options.poolings, "strengths": options.strengths}
    for name, values in lists.items():
        if not values or len(set(values)) < len(values):
            shown = " ".join(map(str, values))
            raise StrategyError(f"`{name}` {shown}: give at least one, and none twice")
    if not all(0 < strength < 1e30 for strength in options.strengths):
        shown = " ".join(map(str, options.strengths))
        raise StrategyError(f"`strengths` {shown} must be above 0 and finite")
    for name, low in (("folds", 2), ("seeds", 1)):
        value = getattr(options, name)
        if not low <= value < 2**31:
            raise StrategyError(f"`{name}` {value} must be at least {low}")


def make_splits(
    labels: np.ndarray, test: np.ndarray, options: ProbeOptions, regression: bool
) -> NestedSplits:
    """The nested splits of N rows. Raises :class:`StrategyError` if a set has fewer rows than
    neighbours are asked for.
    """
    splits = nested_splits(labels, test, options.folds, options.seeds)
    if "knn" in options.methods(regression):
        fewest = int(splits.train.sum(1).min())
        neighbours = options.neighbours
        if not neighbours or min(neighbours) < 1 or max(neighbours) > fewest:
            shown = " ".join(map(str, neighbours))
            raise StrategyError(
                f"`neighbours` {shown} must be 1 to {fewest}, the rows of the smallest training set"
            )
    return splits


def probe_features(
    features: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    names: Sequence[str],
    options: ProbeOptions,
    on_progress: OnProgress | None = None,
) -> ProbeReport:
    """Fit every method on every layer and pooling, and select one by the inner folds.

    ``features`` float32 [layers + 1, poolings, N, D]; ``labels`` [N] are numbers of the classes
    ``names``, or values where there are none; ``test`` bool [N] marks the test rows: none, and
    every fold is the test once. ``on_progress`` is called with (cells done, cells in all).
    """
    classes = len(names)
    methods = options.methods(regression=not classes)
    scale = linear.unscaled if options.unscaled else linear.standardize
    splits = make_splits(labels, test, options, regression=not classes)
    tested = test if test.any() else ~test
    drawn = resample(np.flatnonzero(tested), len(labels))
    total = len(features) * len(options.poolings) * len(methods)
    cells = []
    selections = []
    for layer, pooled in enumerate(features):
        for pooling, x in zip(options.poolings, pooled, strict=True):
            scaled = scale(x, splits.train)
            for method in methods:
                fitted = fit_method(method, scaled, labels, splits, classes, options)
                selection = select_strength(fitted.answers, labels, splits, classes)
                strengths = [fitted.strengths[index] for index in selection.choice]
                cell = {"method": method, "layer": layer, "pooling": pooling}
                cell |= scores_of_test(selection, labels, tested, drawn, classes)
                cell |= {"strengths": strengths} | fitted.notes
                cells.append(cell)
                selections.append(selection)
                if on_progress:
                    on_progress(len(cells), total)
    winner = select_candidate(selections, splits)
    selected = scores_of_test(winner, labels, tested, drawn, classes)
    selected["by_split"] = describe_choices(winner, cells)
    num_test = int(test.sum()) or "each fold of train in its turn"
    return ProbeReport(
        selected=selected,
        cells=cells,
        floor=score_without_features(labels, test, classes),
        examples={"train": int((~test).sum()), "test": num_test},
        classes=list(names),
        selection=describe_protocol(options, bool(test.any())),
    )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The answers [S, K, H] to the rows that each set holds out, the K strengths, and notes on the
    fits.
    """

    answers: np.ndarray
    strengths: Sequence[Any]
    notes: dict[str, Any]


def fit_method(
    method: str,
    scaled: linear.Scaled,
    labels: np.ndarray,
    splits: NestedSplits,
    classes: int,
    options: ProbeOptions,
) -> Fitted:
    """Heads of one method on one layer's features, for all sets and strengths.

    The strongest penalty comes first, and most neighbours, so that it wins a tie.
    """
    train = splits.train
    notes: dict[str, Any] = {"constant_features": constant_features(scaled)}
    if method == "knn":
        counts = sorted(options.neighbours, reverse=True)
        answers = linear.nearest(scaled, labels, train, splits.held_out, tuple(counts), classes)
        return Fitted(np.asarray(answers), counts, notes)
    if method == "centroid":
        strengths: list[Any] = [None]
        heads = linear.centroid(scaled, labels, train, classes)
    elif method == "ridge":
        strengths = sorted(options.strengths, reverse=True)
        heads = linear.ridge(scaled, labels, train, strengths, classes)
    else:
        strengths = sorted(options.strengths, reverse=True)
        heads = logistic(scaled, labels, train, strengths, classes)
    if heads.converged is not None and heads.gradient is not None:
        notes["fits"] = heads.converged.size
        notes["largest_gradient"] = float(heads.gradient.max())
        notes["not_converged"] = [
            {"set": int(index), "strength": strengths[k]}
            for index, k in np.argwhere(~heads.converged)
        ]
    answers = linear.predict(heads, scaled.x, splits.held_out, classes)
    return Fitted(np.asarray(answers), strengths, notes)


def constant_features(scaled: linear.Scaled) -> list[int]:
    """The features that are constant in some training set."""
    return np.flatnonzero(np.isinf(scaled.std).any(0)).tolist()


def scores_of_test(
    selection: Selection, labels: np.ndarray, tested: np.ndarray, drawn: np.ndarray, classes: int
) -> dict[str, Any]:
    """The choice's mean validation score; the mean test score over seeds, with its interval."""
    by_seed = score(selection.answer, labels, tested[None], classes)[:, 0]
    low, high = interval(selection.answer, labels, drawn, classes)
    return {
        "validation": float(selection.validation.mean()),
        "test": float(by_seed.mean()),
        "low": low,
        "high": high,
        "by_seed": by_seed.tolist(),
    }


def describe_choices(winner: Selection, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The method, layer, pooling and strength that were selected for each outer split."""
    choices = []
    for split, number in enumerate(winner.choice):
        cell = cells[number]
        choice = {name: cell[name] for name in ("method", "layer", "pooling")}
        choices.append(choice | {"strength": cell["strengths"][split]})
    return choices


def score_without_features(labels: np.ndarray, test: np.ndarray, classes: int) -> float:
    """The score of always answering the most frequent class; a constant correlates with nothing."""
    if not classes:
        return 0.0
    most_frequent = np.bincount(labels[~test]).argmax()
    tested = test if test.any() else ~test
    return float(np.mean(labels[tested] == most_frequent))


def describe_protocol(options: ProbeOptions, with_test: bool) -> str:
    """How things were chosen, in a sentence."""
    folds = options.folds
    test = "the given test part" if with_test else f"each of {folds} outer folds"
    return (
        "strength, layer, pooling and method are chosen by the held out rows "
        f"of {folds} inner folds of the training rows, for each of {options.seeds} seeds; "
        f"{test} is looked at once, with what was chosen, fitted on all training rows"
    )

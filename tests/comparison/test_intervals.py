"""Intervals are those of seeds and examples together, and paired where strategies are compared."""

import numpy as np
import pytest

from adapt.comparison.intervals import interval, resampled
from adapt.tasks import TASKS
from tests.helpers import spans

NAMES = ["bad", "good"]


def seeds_of(right: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logits, labels) of each seed, of which ``right`` [seeds, N] says what is right."""
    labels = np.arange(right.shape[1]) % 2
    found = []
    for row in right:
        answer = np.where(row, labels, 1 - labels)
        found.append((np.eye(2, dtype=np.float32)[answer], labels))
    return found


def noisy(accuracy: float, seeds: int = 5, examples: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, examples)) < accuracy


def resample(right: np.ndarray, metric: str = "accuracy", is_one_test: bool = True) -> np.ndarray:
    return resampled(TASKS["classification"], NAMES, metric, seeds_of(right), is_one_test)


@pytest.mark.parametrize("is_one_test", [True, False])
def test_the_interval_covers_the_score_and_narrows_with_examples(is_one_test):
    low, high = interval(resample(noisy(0.8), is_one_test=is_one_test))
    assert low < 0.8 < high and high - low < 0.08
    few_low, few_high = interval(resample(noisy(0.8, examples=40), is_one_test=is_one_test))
    assert few_high - few_low > high - low


def test_where_only_seeds_differ_the_interval_is_that_of_their_mean():
    accuracies = [0.6, 0.7, 0.8, 0.9, 1.0]
    right = np.stack([np.arange(4000) % 10 < 10 * accuracy for accuracy in accuracies])
    low, high = interval(resample(right))
    expected = 2 * 1.96 * np.std(accuracies) / 5**0.5
    assert high - low == pytest.approx(expected, rel=0.15)


def test_differences_are_paired():
    """Two strategies that err on the same examples differ by less than their intervals are wide."""
    one = noisy(0.8)
    other = one.copy()
    other[:, :8] = ~other[:, :8]
    scores = resample(one)
    low, high = interval(scores - resample(other))
    alone_low, alone_high = interval(scores)
    assert high - low < 0.6 * (alone_high - alone_low)
    assert interval(scores - scores) == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_a_score_that_is_no_mean_over_examples_is_computed_anew(metric):
    right = noisy(0.8)
    low, high = interval(resample(right, metric))
    task = TASKS["classification"]
    whole = np.mean([task.metrics(*test, NAMES)[metric] for test in seeds_of(right)])
    assert low < whole < high and high - low < 0.15


OUTPUTS = {
    "classification": (np.random.default_rng(0).normal(size=(30, 3)), "accuracy"),
    "tags": (np.random.default_rng(1).normal(size=(30, 3)), "accuracy"),
    "choice": (np.random.default_rng(2).normal(size=(90, 1)), "accuracy"),
    "span": (np.random.default_rng(3).normal(size=(30, 2, 9)), "f1"),
    "multitask": (np.random.default_rng(4).normal(size=(30, 2, 3)), "accuracy"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_examples_count_adds_up_to_the_score(name):
    task = TASKS[name]
    outputs, metric = OUTPUTS[name]
    shape = {"multitask": (30, 2), "tags": (30, 2)}.get(name, (30,))
    labels = np.sort(np.random.default_rng(5).integers(0, 3, shape), axis=-1)
    if name == "span":
        labels = spans.labels([("a film so good", ["film"]), ("the end", ["end"])] * 15)
    names = ["a=x", "a=y", "a=z", "b=x", "b=y", "b=z"] if name == "multitask" else ["x", "y", "z"]
    by_example = task.example_scores(outputs, labels, names)
    scores = task.metrics(outputs, labels, names)
    assert metric in by_example
    for found, values in by_example.items():
        assert values.shape == (30,)
        assert values.mean() == pytest.approx(scores[found])


def test_what_spans_words_is_drawn_by_sentences():
    """A resample of sentences with an entity each is a binomial draw of those that are right."""
    task = TASKS["tags"]
    names = ["B-PER", "I-PER", "O"]
    right = np.arange(400) % 10 < 8  # of every sentence of three words
    labels = np.array([[0, 1], [1, 0], [2, 0]] * 400)
    logits = np.eye(3)[labels[:, 0]]
    logits[1::3][~right] = np.eye(3)[2]  # an entity that ends too early
    tests = [(logits, labels)]
    scores = resampled(task, names, "entity_f1", tests, is_one_test=True)
    assert np.mean(scores) == pytest.approx(0.8, abs=0.005)
    assert np.std(scores) == pytest.approx((0.8 * 0.2 / 400) ** 0.5, rel=0.15)
    of_words = resampled(task, names, "accuracy", tests, is_one_test=True)
    assert np.mean(of_words) == pytest.approx(1 - 0.2 / 3, abs=0.005)

"""Numbers that others published of all-MiniLM-L6-v2, and the same from here.

The sources, by test:

* Banking77: the results of MTEB for sentence-transformers/all-MiniLM-L6-v2, task
  Banking77Classification, test split, its ten experiments. The data are those of Casanueva et al.
  2020, "Efficient Intent Detection with Dual Sentence Encoders" (CC BY 4.0), which are no part of
  this project: they lie beside it, or the tests are skipped.
* The planets: a test of sentence-transformers, whose figures are of bfloat16, to 1%.
* "hello world": the canonical vectors in the tests of fastembed, to 1e-3.
"""

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import adapt
from adapt.probing.report import ProbeOptions, probe_features
from tests.helpers.tiny import ROOT

BANKING77 = ROOT.parent / "shared" / "anchors" / "banking77"
PER_CLASS = 8
PUBLISHED = (
    *(0.798052, 0.801623, 0.812987, 0.805519, 0.791883),
    *(0.804870, 0.790909, 0.788961, 0.809091, 0.800325),
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What MTEB classifies, as sentence vectors: the rows that any draw has, and then the test's."""

    features: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # int [N], numbers of the sorted names
    train: np.ndarray  # bool [draws, N]
    test: np.ndarray  # int [rows of the test]


@pytest.fixture(scope="module")
def banking77(asset) -> Protocol:
    if not BANKING77.is_dir():
        pytest.skip("Banking77 is not here: ../shared/anchors/banking77 has train.csv and test.csv")
    texts, labels = read_csv(BANKING77 / "train.csv")
    test_texts, test_labels = read_csv(BANKING77 / "test.csv")
    names, numbers = np.unique(labels, return_inverse=True)
    draws = list(drawn_by_mteb(numbers.tolist(), count=len(PUBLISHED)))
    used = np.unique(np.concatenate(draws))
    all_texts = [texts[row] for row in used] + test_texts
    train = np.zeros((len(draws), len(all_texts)), bool)
    for mask, rows in zip(train, draws, strict=True):
        mask[np.searchsorted(used, rows)] = True
    pretrained = adapt.load(asset("minilm"))
    return Protocol(
        features=adapt.encode(pretrained, all_texts, pooling="mean", normalize=True),
        labels=np.concatenate([numbers[used], np.searchsorted(names, test_labels)]),
        train=train,
        test=np.arange(len(used), len(all_texts)),
    )


def read_csv(path: Path) -> tuple[list[str], list[str]]:
    """(texts, categories)."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def drawn_by_mteb(labels: list[int], count: int) -> Iterator[np.ndarray]:
    """The rows of each draw: the first of each class, in an order that each draw shuffles on."""
    order = list(range(len(labels)))
    for _ in range(count):
        np.random.RandomState(42).shuffle(order)
        taken = dict.fromkeys(labels, 0)
        rows = []
        for row in order:
            if taken[labels[row]] < PER_CLASS:
                taken[labels[row]] += 1
                rows.append(row)
        yield np.array(rows)


@pytest.mark.slow
def test_banking77_by_scikit_learn_on_our_features_to_the_sixth_digit(banking77):
    x, y = banking77.features, banking77.labels
    accuracies = []
    for rows in banking77.train:
        assert np.bincount(y[rows]).tolist() == [PER_CLASS] * 77
        head = LogisticRegression(max_iter=100).fit(x[rows], y[rows])
        accuracies.append(head.score(x[banking77.test], y[banking77.test]))
    np.testing.assert_allclose(accuracies, PUBLISHED, rtol=0, atol=5e-7)


@pytest.mark.slow
def test_banking77_by_our_probe_at_the_same_objective(banking77):
    """As scikit-learn without a scaler and with C = 1; a probe of each draw, scored on the test."""
    options = ProbeOptions(strengths=(1.0,), unscaled=True, folds=2, seeds=1)
    accuracies = []
    for rows in banking77.train:
        used = np.concatenate([np.flatnonzero(rows), banking77.test])
        is_test = np.isin(used, banking77.test)
        features = banking77.features[None, None, used]
        names = [str(number) for number in range(77)]
        report = probe_features(features, banking77.labels[used], is_test, names, options)
        assert report.cells[0]["not_converged"] == []
        accuracies.append(report.selected["test"])
    np.testing.assert_allclose(accuracies, PUBLISHED, rtol=0, atol=1e-3)


QUESTION = "Which planet is known as the Red Planet?"
PLANETS = {
    "Venus is often called Earth's twin because of its similar size and proximity.": 0.46371,
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.": 0.81205,
    "Jupiter, the largest planet in our solar system, has a prominent red spot.": 0.72828,
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.": 0.75051,
}


def test_the_similarities_of_the_planets(asset):
    vectors = adapt.encode(asset("minilm"), [QUESTION, *PLANETS], normalize=True)
    np.testing.assert_allclose(vectors[1:] @ vectors[0], list(PLANETS.values()), rtol=0.01)


def test_the_canonical_vector_of_hello_world(asset):
    (vector,) = adapt.encode(asset("minilm"), ["hello world"], normalize=True)
    canonical = [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]
    np.testing.assert_allclose(vector[: len(canonical)], canonical, atol=1e-3)

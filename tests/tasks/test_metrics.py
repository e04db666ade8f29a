"""Metrics are those of scikit-learn and SciPy, whatever the labels and the scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from adapt.tasks import metrics

ROWS = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int, *shape: int, steps: int | None) -> np.ndarray:
    """Random numbers; with ``steps`` of few values, so that many are equal."""
    values = np.random.default_rng(seed).normal(size=shape)
    return values if steps is None else np.round(values * steps) / steps


@given(SEEDS, ROWS, st.integers(2, 6), st.sampled_from([None, 1, 3]))
def test_classes(seed, rows, classes, steps):
    logits = drawn(seed, rows, classes, steps=steps)
    labels = np.random.default_rng(seed).integers(classes, size=rows)
    found = metrics.classification(logits, labels)
    predicted = logits.argmax(-1)
    macro = reference.f1_score(labels, predicted, average="macro", zero_division=0.0)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["macro_f1"] == pytest.approx(macro)
    assert ("auroc" in found) == (classes == 2)
    if classes > 2:
        return
    rare = int(2 * labels.sum() <= rows)
    is_rare = labels == rare
    f1 = reference.f1_score(is_rare, predicted == rare, zero_division=0.0)
    assert found["rare_f1"] == pytest.approx(f1)
    if is_rare.all() or not is_rare.any():
        assert np.isnan([found["auroc"], found["average_precision"]]).all()


@given(SEEDS, ROWS, st.sampled_from([None, 1, 3]))
def test_ranking(seed, rows, steps):
    scores = drawn(seed, rows, steps=steps)
    labels = np.random.default_rng(seed).integers(2, size=rows) > 0
    labels = np.append(labels, [False, True])
    scores = np.append(scores, [0.0, 0.0])
    found = metrics.ranking(scores, labels)
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, scores))
    expected = reference.average_precision_score(labels, scores)
    assert found["average_precision"] == pytest.approx(expected)


@given(SEEDS, ROWS, st.integers(1, 5))
def test_several_labels(seed, rows, classes):
    logits = drawn(seed, rows, classes, steps=None)
    labels = np.random.default_rng(seed).integers(2, size=(rows, classes)).astype(np.float32)
    found = metrics.multilabel(logits, labels)
    predicted = logits > 0
    assert found["accuracy"] == pytest.approx((predicted == labels).all(1).mean())
    each = [
        reference.f1_score(labels[:, column], predicted[:, column], zero_division=0.0)
        for column in range(classes)
    ]
    assert found["macro_f1"] == pytest.approx(np.mean(each))


@given(SEEDS, ROWS, st.sampled_from([None, 1, 3]), st.sampled_from([1.0, 1e-6, 1e6, 1e100]))
def test_correlations(seed, rows, steps, scale):
    values = np.append(drawn(seed, rows, steps=steps), [0.0, 1.0]) * scale
    labels = np.append(drawn(seed + 1, rows, steps=steps), [1.0, -1.0])
    found = metrics.regression(values[:, None], labels)
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, labels).statistic, abs=1e-9)
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, labels).statistic, abs=1e-9)


@pytest.mark.parametrize("value", [np.nan, 1.0])
def test_what_is_not_defined_is_nan(value):
    """Outputs that are no numbers, and outputs that are all the same."""
    outputs = np.full((4, 1), value)
    found = metrics.regression(outputs, np.arange(4.0))
    assert np.isnan([found["pearson"], found["spearman"]]).all()
    found = metrics.classification(np.full((4, 2), np.nan), np.array([0, 1, 0, 1]))
    assert len(found) == 6 and np.isnan(list(found.values())).all()
    found = metrics.ranking(np.array([value, np.nan]), np.array([False, True]))
    assert np.isnan([found["auroc"], found["average_precision"]]).all()

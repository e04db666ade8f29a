"""Metrics agree with their definitions, and floors with one constant answer."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.tasks import TASKS, metrics, span_scores
from adapt.training import losses
from tests.helpers import spans

SEEDS = st.integers(0, 2**31)


def logits_of(seed: int, examples: int = 6, classes: int = 4, scale: float = 3.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((examples, classes))).astype(
        np.float32
    )


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([1.0, 100.0, 1e4]))
def test_probabilities_are_probabilities_for_logits_of_any_size(seed, scale):
    logits = logits_of(seed, scale=scale)
    with warnings.catch_warnings(action="error"):
        softmax, sigmoid = metrics.softmax(logits), metrics.sigmoid(logits)
    np.testing.assert_allclose(softmax.sum(-1), 1)
    for p in (softmax, sigmoid):
        assert np.all((p >= 0) & (p <= 1))
    np.testing.assert_array_equal(softmax.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal(sigmoid > 0.5, logits > 0)
    np.testing.assert_allclose(sigmoid + metrics.sigmoid(-logits), 1)


def test_macro_f1_by_hand():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2, 2]]
    found = metrics.tags(logits, np.array([0, 1, 1, 2, 2, 0]))
    # f1 by class: 2*1/(2+2) = 0.5; 2*1/(1+2) = 2/3; 2*2/(3+2) = 0.8
    assert found == pytest.approx({"accuracy": 4 / 6, "macro_f1": (0.5 + 2 / 3 + 0.8) / 3})


@settings(max_examples=10)
@given(SEEDS)
def test_perfect_answers_score_1(seed):
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1, 2], rng.integers(0, 3, 5)])
    found = metrics.classification(np.eye(3, dtype=np.float32)[label] * 100, label)
    assert found == pytest.approx({"accuracy": 1.0, "macro_f1": 1.0, "ece": 0.0})
    rare = metrics.classification(np.array([[9.0, -9], [9, -9], [-9, 9]]), np.array([0, 0, 1]))
    assert rare["rare_f1"] == rare["auroc"] == rare["average_precision"] == 1.0
    many = np.concatenate([np.eye(3), rng.integers(0, 2, (5, 3))]).astype(np.float32)
    assert metrics.multilabel(many * 2 - 1, many) == {"accuracy": 1.0, "macro_f1": 1.0}
    line = rng.standard_normal(8)
    assert metrics.regression(line[:, None], line) == pytest.approx(
        {"mse": 0.0, "pearson": 1.0, "spearman": 1.0}
    )
    pairs = np.repeat(rng.standard_normal((6, 9)), 2, 0)
    assert metrics.retrieval(pairs, np.ones(6, int)) == {"recall_at_1": 1.0, "mrr": 1.0}


def test_a_multilabel_answer_is_right_when_every_label_is():
    found = metrics.multilabel(np.array([[1, -1], [1, 1]]), np.array([[1, 0], [1, 0]], np.float32))
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize("values", [np.zeros(4), np.arange(1)])
def test_a_correlation_that_is_not_defined_is_nan_and_no_warning(values):
    found = metrics.regression(values[:, None], np.arange(len(values)))
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"]) and np.isfinite(found["mse"])


@settings(max_examples=20)
@given(SEEDS, st.floats(0.05, 0.95))
def test_the_scores_of_two_classes_are_those_of_the_rarer_one(seed, share):
    """Turning the classes round changes nothing; against the definitions, ties aside."""
    rng, logits = np.random.default_rng(seed), logits_of(seed, 20, 2)
    label = (rng.random(20) < share).astype(np.int32)
    found = metrics.classification(logits, label)
    if len(set(label)) < 2:
        assert np.isnan(found["auroc"]) and np.isnan(found["average_precision"])
        return
    rare = int(label.mean() <= 0.5)
    truth, score = label == rare, logits[:, rare] - logits[:, 1 - rare]
    above = (score[truth][:, None] > score[~truth]).mean()
    assert found["auroc"] == pytest.approx(above)
    precisions = [truth[score >= each].mean() for each in score[truth]]
    assert found["average_precision"] == pytest.approx(np.mean(precisions))
    right = (truth & (score > 0)).sum()
    assert found["rare_f1"] == pytest.approx(2 * right / (truth.sum() + (score > 0).sum()))
    if label.mean() != 0.5:
        assert metrics.classification(logits[:, ::-1], 1 - label) == pytest.approx(found)


@settings(max_examples=20)
@given(SEEDS, st.integers(1, 40))
def test_the_calibration_error_is_a_mean_over_bins_of_confidence(seed, count):
    """Guo et al. 2017, eq. 3, a bin at a time."""
    p = metrics.softmax(logits_of(seed, count, 3))
    label = np.random.default_rng(seed).integers(0, 3, count)
    confidence, right, expected = p.max(-1), p.argmax(-1) == label, 0.0
    for low in np.arange(15) / 15:
        held = (confidence > low) & (confidence <= low + 1 / 15)
        if held.any():
            expected += held.mean() * abs(right[held].mean() - confidence[held].mean())
    assert metrics.calibration_error(p, label) == pytest.approx(expected, abs=1e-9)


def test_an_overconfident_answer_has_the_calibration_error_that_it_is_off_by():
    p = np.tile([0.9, 0.1], (10, 1))
    assert metrics.calibration_error(p, np.array([0] * 6 + [1] * 4)) == pytest.approx(0.3)


@settings(max_examples=20)
@given(SEEDS)
def test_the_best_span_is_the_best_of_all_that_do_not_end_before_they_start(seed):
    logits = np.random.default_rng(seed).standard_normal((4, 2, 7)).astype(np.float32)
    logits[1, :, 3:] = -np.inf
    for (start, end), (starts, ends) in zip(span_scores.best_spans(logits), logits, strict=True):
        every = {(i, j): starts[i] + ends[j] for i in range(7) for j in range(i, 7)}
        assert (start, end) == max(every, key=lambda pair: every[pair])


def test_the_scores_of_several_columns_are_those_of_each():
    logits = np.stack([logits_of(0, 9, 3), logits_of(1, 9, 3)], 1)
    logits[:, 1, 2] = -np.inf
    labels = np.stack([np.arange(9) % 3, np.arange(9) % 2], 1)
    found = metrics.multitask(logits, labels, ["kind", "sign"])
    kind, sign = (
        metrics.classification(logits[:, 0], labels[:, 0]),
        metrics.classification(logits[:, 1, :2], labels[:, 1]),
    )
    expected = {f"{name}_kind": value for name, value in kind.items()}
    expected |= {f"{name}_sign": value for name, value in sign.items()}
    assert found == pytest.approx(
        expected | {"accuracy": (kind["accuracy"] + sign["accuracy"]) / 2}
    )


@settings(max_examples=10)
@given(SEEDS)
def test_retrieval_ranks_each_positive_among_all(seed):
    x = np.random.default_rng(seed).standard_normal((14, 3))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit[::2] @ unit[1::2].T
    ranks = [1 + int((row > row[n]).sum()) for n, row in enumerate(cosines)]
    found = metrics.retrieval(x, np.ones(7, int))
    assert found == pytest.approx(
        {"recall_at_1": ranks.count(1) / 7, "mrr": np.mean(1 / np.array(ranks))}
    )


def test_an_encoder_that_puts_everything_in_one_place_retrieves_by_chance():
    noise = 1e-8 * np.random.default_rng(0).standard_normal((40, 3))
    found = metrics.retrieval(np.ones((40, 3)) + noise, np.ones(20, int))
    assert found == pytest.approx({"recall_at_1": 1 / 20, "mrr": np.mean(1 / np.arange(1, 21))})


def test_a_choice_is_between_the_sequences_of_one_example():
    logits = np.array([[0.0], [3], [1], [5], [4], [0]])
    assert metrics.choice(logits, np.array([1, 2]))["accuracy"] == 0.5


@pytest.mark.parametrize("name", TASKS)
def test_the_score_that_decides_is_among_the_metrics(name):
    outputs = {"span": (4, 2, 6), "regression": (4, 1), "multitask": (4, 2, 3), "choice": (8, 1)}
    outputs |= {"contrastive": (8, 3), "setfit": (8, 3)}
    labels = {
        "multilabel": np.eye(4, 3),
        "multitask": np.eye(4, 2, dtype=int),
        "span": spans.labels([("a b c d", ["a"])] * 4),
        "tags": np.zeros((4, 2), int),
    }
    some = np.random.default_rng(0).standard_normal(outputs.get(name, (4, 3))).astype(np.float32)
    targets = labels.get(name, np.array([0, 1, 0, 1]))
    assert TASKS[name].primary_metric in TASKS[name].metrics(some, targets, ["a=x", "b=y"])


def test_the_mean_loss_of_a_set_does_not_depend_on_the_parts_it_is_computed_in():
    """Save that of a contrast, whose negatives are those of its part."""
    logits, label = logits_of(0, 30, 1), np.arange(10) % 3
    whole, parts = (TASKS["choice"].mean_loss(logits, label, size) for size in (256, 3))
    assert parts == pytest.approx(whole, rel=1e-6)
    x, ones = logits_of(0, 20), np.ones(10, int)
    expected = [losses.contrastive(x[at : at + 8], ones[:4]).sum() for at in (0, 8)] + [
        losses.contrastive(x[16:], ones[:2]).sum()
    ]
    assert TASKS["contrastive"].mean_loss(x, ones, 4) == pytest.approx(
        float(sum(expected)) / 10, rel=1e-5
    )


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
)
def test_the_majority_floor_is_the_accuracy_of_one_constant_answer(train, test):
    answer = int(np.bincount(train).argmax())
    expected = metrics.classification(np.eye(4)[[answer] * len(test)], np.array(test))["accuracy"]
    assert metrics.majority(np.array(train), np.array(test))["majority_accuracy"] == pytest.approx(
        expected
    )


def test_the_majority_floor_of_several_labels_is_their_most_frequent_set_and_of_columns_the_mean():
    train, test = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[1, 0], [1, 1]])
    assert TASKS["multilabel"].baseline(train, test) == {"majority_accuracy": 0.5}
    assert TASKS["multitask"].baseline(train, test) == {"majority_accuracy": 0.75}


def test_regression_is_measured_against_the_mean_of_training():
    assert TASKS["regression"].baseline(np.array([1.0, 3]), np.array([2.0, 4])) == {
        "mse_of_mean": 2.0
    }

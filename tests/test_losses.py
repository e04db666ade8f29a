"""Losses are per example and in float32; metrics agree with their definitions."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt import losses

SEEDS = st.integers(0, 2**31)


def logits_of(seed: int, examples: int = 6, classes: int = 4, scale: float = 3.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((examples, classes))).astype(np.float32)


@settings(max_examples=20)
@given(SEEDS)
def test_cross_entropy_is_minus_the_log_of_the_right_class_probability(seed):
    logits = logits_of(seed)
    label = np.random.default_rng(seed).integers(0, 4, 6).astype(np.int32)
    chosen = losses.probabilities(logits, "classification")[np.arange(6), label]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), label), -np.log(chosen), rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(SEEDS)
def test_binary_cross_entropy_is_the_mean_over_classes_of_independent_decisions(seed):
    logits = logits_of(seed)
    label = np.random.default_rng(seed).integers(0, 2, (6, 4)).astype(np.float32)
    p = losses.probabilities(logits, "multilabel")
    expected = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(losses.binary_cross_entropy(jnp.asarray(logits), label), expected, rtol=1e-4, atol=1e-5)


def test_squared_error_is_per_example():
    got = losses.squared_error(jnp.array([[1.0], [3.0]]), jnp.array([1.5, 1.0]))
    np.testing.assert_allclose(got, [0.25, 4.0])


@pytest.mark.parametrize("task", sorted(losses.LOSSES))
def test_losses_are_float32_and_one_an_example_whatever_the_compute_dtype(task):
    label = {"classification": np.zeros(5, np.int32), "multilabel": np.zeros((5, 3), np.float32)}
    logits = jnp.ones((5, 1 if task == "regression" else 3), jnp.bfloat16)
    loss = losses.LOSSES[task](logits, label.get(task, np.zeros(5, np.float32)))
    assert loss.shape == (5,) and loss.dtype == jnp.float32


@settings(max_examples=20)
@given(SEEDS, st.sampled_from([1.0, 100.0, 1e4]))
def test_probabilities_are_probabilities_for_logits_of_any_size(seed, scale):
    logits = logits_of(seed, scale=scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        softmax, sigmoid = losses.probabilities(logits, "classification"), losses.probabilities(logits, "multilabel")
    np.testing.assert_allclose(softmax.sum(-1), 1)
    for p in (softmax, sigmoid):
        assert np.all((p >= 0) & (p <= 1))
    np.testing.assert_array_equal(softmax.argmax(-1), logits.argmax(-1))
    np.testing.assert_array_equal(sigmoid > 0.5, logits > 0)
    np.testing.assert_allclose(sigmoid + losses.probabilities(-logits, "multilabel"), 1)


def test_regression_has_values_in_place_of_probabilities():
    np.testing.assert_array_equal(losses.probabilities(np.array([[2.5]], np.float32), "regression"), [[2.5]])


def test_macro_f1_by_hand():
    logits = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2, 2]]
    found = losses.metrics(logits, np.array([0, 1, 1, 2, 2, 0]), "classification")
    # f1 by class: 2*1/(2+2) = 0.5; 2*1/(1+2) = 2/3; 2*2/(3+2) = 0.8
    assert found == pytest.approx({"accuracy": 4 / 6, "macro_f1": (0.5 + 2 / 3 + 0.8) / 3})


@settings(max_examples=10)
@given(SEEDS)
def test_perfect_answers_score_1(seed):
    rng = np.random.default_rng(seed)
    label = np.concatenate([[0, 1, 2], rng.integers(0, 3, 5)])
    assert losses.metrics(np.eye(3)[label], label, "classification") == {"accuracy": 1.0, "macro_f1": 1.0}
    many = np.concatenate([np.eye(3), rng.integers(0, 2, (5, 3))]).astype(np.float32)
    assert losses.metrics(many * 2 - 1, many, "multilabel") == {"accuracy": 1.0, "macro_f1": 1.0}
    line = rng.standard_normal(8)
    found = losses.metrics(line[:, None], line, "regression")
    assert found == pytest.approx({"mse": 0.0, "pearson": 1.0, "spearman": 1.0})


def test_a_multilabel_answer_is_right_when_every_label_is():
    found = losses.metrics(np.array([[1, -1], [1, 1]]), np.array([[1, 0], [1, 0]], np.float32), "multilabel")
    assert found["accuracy"] == 0.5


@pytest.mark.parametrize("values", [np.zeros(4), np.arange(1)])
def test_a_correlation_that_is_not_defined_is_nan_and_no_warning(values):
    found = losses.metrics(values[:, None], np.arange(len(values)), "regression")
    assert np.isnan(found["pearson"]) and np.isnan(found["spearman"]) and np.isfinite(found["mse"])


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_the_majority_floor_is_the_accuracy_of_one_constant_answer(train, test):
    answer = int(np.bincount(train).argmax())
    expected = losses.metrics(np.eye(4)[[answer] * len(test)], np.array(test), "classification")["accuracy"]
    assert losses.majority_accuracy(np.array(train), np.array(test), "classification") == pytest.approx(expected)


def test_the_majority_floor_of_several_labels_is_their_most_frequent_set():
    train, test = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[1, 0], [1, 1]])
    assert losses.majority_accuracy(train, test, "multilabel") == 0.5

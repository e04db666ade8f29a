"""Losses are per example, in float32, and agree with their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt.tasks import TASKS, metrics
from adapt.training import losses

SEEDS = st.integers(0, 2**31)


def logits_of(seed: int, examples: int = 6, classes: int = 4, scale: float = 3.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((examples, classes))).astype(
        np.float32
    )


@settings(max_examples=20)
@given(SEEDS)
def test_cross_entropy_is_minus_the_log_of_the_right_class_probability(seed):
    logits = logits_of(seed)
    label = np.random.default_rng(seed).integers(0, 4, 6).astype(np.int32)
    chosen = metrics.softmax(logits)[np.arange(6), label]
    np.testing.assert_allclose(
        losses.cross_entropy(jnp.asarray(logits), label), -np.log(chosen), rtol=1e-4, atol=1e-5
    )


@settings(max_examples=20)
@given(SEEDS)
def test_binary_cross_entropy_is_the_mean_over_classes_of_independent_decisions(seed):
    logits = logits_of(seed)
    label = np.random.default_rng(seed).integers(0, 2, (6, 4)).astype(np.float32)
    p = metrics.sigmoid(logits)
    expected = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(-1)
    np.testing.assert_allclose(
        losses.binary_cross_entropy(jnp.asarray(logits), label), expected, rtol=1e-4, atol=1e-5
    )


def test_squared_error_is_per_example():
    got = losses.squared_error(jnp.array([[1.0], [3.0]]), jnp.array([1.5, 1.0]))
    np.testing.assert_allclose(got, [0.25, 4.0])


@settings(max_examples=10)
@given(SEEDS)
def test_the_loss_of_several_columns_is_the_sum_of_their_own(seed):
    """A column with fewer classes ends in -inf, which is no class: no share of it, and no gradient."""
    rng, logits = np.random.default_rng(seed), logits_of(seed, classes=5)
    label = np.stack([rng.integers(0, 3, 6), rng.integers(0, 2, 6)], 1).astype(np.int32)

    def padded(logits):
        short = jnp.pad(logits[:, 3:], ((0, 0), (0, 1)), constant_values=-jnp.inf)
        return losses.columns_cross_entropy(jnp.stack([logits[:, :3], short], 1), label).sum()

    def apart(logits):
        return sum(
            losses.cross_entropy(part, label[:, k]).sum()
            for k, part in enumerate((logits[:, :3], logits[:, 3:]))
        )

    for one, other in zip(
        *(jax.value_and_grad(f)(jnp.asarray(logits)) for f in (padded, apart)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_choice_is_over_the_sequences_of_one_example():
    logits, label = logits_of(0, 12, 1), np.array([2, 0, 1, 1], np.int32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits.reshape(4, 3), label)
    np.testing.assert_allclose(
        losses.choice_cross_entropy(jnp.asarray(logits), label), expected, rtol=1e-6
    )


def test_the_loss_of_a_span_is_that_of_its_ends_and_nothing_where_it_was_cut_off():
    logits = np.random.default_rng(0).standard_normal((3, 2, 5)).astype(np.float32)
    logits[:, :, 4:] = -np.inf
    label = np.array([[0, 3], [1, 1], [-1, -1]], np.int32)
    ends = optax.softmax_cross_entropy_with_integer_labels(logits[:2, :, :4], label[:2])
    loss = jax.jit(jax.value_and_grad(lambda x: losses.span_cross_entropy(x, label).sum()))
    found, gradient = loss(logits)
    assert found == pytest.approx(float(ends.mean(1).sum()), rel=1e-6)
    assert np.isfinite(gradient).all() and not np.any(gradient[2]) and not np.any(gradient[..., 4])


@settings(max_examples=10)
@given(SEEDS)
def test_the_contrastive_loss_is_the_cross_entropy_of_cosines_in_the_batch(seed):
    """By hand in float64; an empty slot is nobody's negative."""
    x = np.random.default_rng(seed).standard_normal((8, 5))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit[::2] @ unit[1::2].T / 0.05
    expected = np.log(np.exp(cosines).sum(1)) - np.diag(cosines)
    full = losses.contrastive(jnp.asarray(x, jnp.float32), jnp.ones(4, jnp.int32))
    np.testing.assert_allclose(full, expected, rtol=1e-4, atol=1e-4)
    with_empty = jnp.concatenate([jnp.asarray(x, jnp.float32), jnp.zeros((4, 5))])
    found = losses.contrastive(with_empty, jnp.array([1, 1, 1, 1, 0, 0]))
    np.testing.assert_allclose(found[:4], full, rtol=1e-6)


def test_the_cosine_error_is_0_for_a_right_angle_between_classes_and_none_within():
    x = jnp.array([[2.0, 0], [0, 3], [1, 1], [2, 2], [1, 0], [1, 0]])
    np.testing.assert_allclose(losses.cosine_error(x, jnp.array([0, 1, 0])), [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("loss", [losses.contrastive, losses.cosine_error])
def test_embeddings_of_zeros_have_a_finite_gradient(loss):
    x, label = jnp.zeros((4, 3)).at[0].set(1.0), jnp.array([1, 0])
    assert np.isfinite(jax.grad(lambda x: loss(x, label).sum())(x)).all()


OUTPUTS = {  # shapes of outputs and labels of five examples
    "classification": ((5, 3), (5,)),
    "cloze": ((5, 3), (5,)),
    "multilabel": ((5, 3), (5, 3)),
    "regression": ((5, 1), (5,)),
    "multitask": ((5, 2, 3), (5, 2)),
    "tags": ((5, 3), (5,)),
    "span": ((5, 2, 4), (5, 2)),
    "choice": ((15, 1), (5,)),
    "contrastive": ((10, 4), (5,)),
    "setfit": ((10, 4), (5,)),
}


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_float32_and_one_an_example_whatever_the_compute_dtype(task):
    outputs, label = OUTPUTS[task]
    kind = np.float32 if task in ("multilabel", "regression") else np.int32
    arrays = jax.ShapeDtypeStruct(outputs, jnp.bfloat16), jax.ShapeDtypeStruct(label, kind)
    loss = jax.eval_shape(TASKS[task].loss, *arrays)
    assert loss.shape == (5,) and loss.dtype == jnp.float32

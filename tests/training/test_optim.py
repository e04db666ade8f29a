"""Optimizers by group: FROZEN leaves do not move, own no state and have no part in a norm; rates and
decay by rule.
"""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt import tree
from adapt.errors import RuleError, StrategyError
from adapt.models import set_contextvar, target_device
from adapt.models.accelerated import PackedKernel, packed_kernel
from adapt.training import optim
from adapt.training.optim import FROZEN, adamw, by_label, schedule

BLOCK_00 = {
    "query": {"kernel": np.full((3, 2), 0.5, np.float32), "bias": np.full(2, -0.0, np.float32)}
}
BLOCK_01 = {"norm": {"scale": np.ones(4, np.float32), "bias": np.full(4, 0.25, np.float32)}}
HEAD = {
    "classifier": {"kernel": np.full((2, 3), -0.5, np.float32), "bias": np.zeros(3, np.float32)}
}
PARAMS = {"encoder": {"block_00": BLOCK_00, "block_01": BLOCK_01}, "head": HEAD}

ADAM = {"head": adamw(0.1, 0.5), "encoder": adamw(0.01, 0.5)}
SGD = {"head": optax.sgd(0.1, momentum=0.9), "encoder": optax.sgd(0.01, momentum=0.9)}
PLAIN = {"head": optax.identity(), "encoder": optax.identity()}

# Label trees: a group for each of the six leaves, in the order of their paths.
LABELS = st.lists(st.sampled_from([FROZEN, "head", "encoder"]), min_size=6, max_size=6).map(
    lambda groups: tree.unflatten(dict(zip(tree.paths(PARAMS), groups, strict=True)))
)


def make_tx(optimizers: dict, labels: tree.Tree, clip_norm: float | None = None):
    """The optimizer of the groups that are in ``labels``."""
    groups = set(tree.paths(labels).values()) - {FROZEN}
    return by_label({group: optimizers[group] for group in groups}, labels, clip_norm)


def frozen_paths(labels: tree.Tree) -> set[str]:
    return {path for path, group in tree.paths(labels).items() if group == FROZEN}


def gradients(seed: int) -> tree.Tree:
    """Random gradients of all leaves."""
    rng = np.random.default_rng(seed)

    def random(path: str, leaf: np.ndarray) -> jax.Array:
        return jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32)

    return tree.map_paths(random, PARAMS)


def train(
    tx: optax.GradientTransformation, params: tree.Tree, grads: list[tree.Tree]
) -> list[tree.Tree]:
    """The updates of all steps."""
    state = tx.init(params)
    steps = []
    for step_grads in grads:
        updates, state = tx.update(step_grads, state, params)
        params = optax.apply_updates(params, updates)
        steps.append(updates)
    return steps


@settings(max_examples=8)
@given(LABELS, st.sampled_from([None, 0.5]), st.sampled_from([ADAM, SGD]))
def test_the_whole_tree_and_what_trains_of_it_get_the_same_updates(labels, clip_norm, optimizers):
    """In the whole tree, FROZEN leaves get updates of exactly 0, even where gradients are nan."""
    tx = make_tx(optimizers, labels, clip_norm)
    frozen = frozen_paths(labels)

    def spoil(path: str, leaf: jax.Array) -> jax.Array:
        return leaf * np.nan if path in frozen else leaf

    grads = [gradients(0), gradients(1)]
    spoilt_grads = [tree.map_paths(spoil, step_grads) for step_grads in grads]
    trainable_grads = [optim.trainable(step_grads, labels) for step_grads in grads]
    of_whole = train(tx, PARAMS, spoilt_grads)
    of_trainable = train(tx, optim.trainable(PARAMS, labels), trainable_grads)
    for whole, trainable in zip(of_whole, of_trainable, strict=True):
        updates = tree.paths(trainable)
        assert updates.keys() == tree.paths(PARAMS).keys() - frozen
        for path, update in tree.paths(whole).items():
            if path in frozen:
                assert not np.any(update)
            else:
                np.testing.assert_array_equal(update, updates[path])


@settings(max_examples=15)
@given(LABELS)
def test_frozen_leaves_own_no_byte_of_optimizer_state(labels):
    tx = make_tx(ADAM, labels, 1.0)
    trainable = optim.trainable(PARAMS, labels)
    for params in (PARAMS, trainable):
        # Adam has two moments; the scalars are counters, and rates are no state of a leaf.
        state = optim.drop_settings(tx.init(params))
        arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
        assert tree.nbytes(arrays) == 2 * tree.nbytes(trainable)


@settings(max_examples=15)
@given(LABELS)
def test_trainable_and_frozen_split_the_tree(labels):
    trainable = optim.trainable(PARAMS, labels)
    frozen = optim.frozen(PARAMS, labels)
    assert tree.digest(tree.merge(trainable, frozen)) == tree.digest(PARAMS)
    groups = set(tree.paths(labels).values())
    assert set(tree.summary(trainable, labels)) == groups - {FROZEN}
    assert set(tree.summary(frozen, labels)) == groups & {FROZEN}


def test_empty_subtrees_go_with_what_is_frozen():
    params = {"encoder": PARAMS["encoder"], "head": {}}
    labels = tree.label(params, [("head/.*", "head"), ("encoder/.*", "encoder")])
    assert optim.frozen(params, labels) == {"head": {}}
    assert list(optim.trainable(params, labels)) == ["encoder"]


@settings(max_examples=20)
@given(LABELS, st.floats(0.1, 3))
def test_clipping_scales_by_the_norm_of_what_trains_alone(labels, limit):
    grads = gradients(0)
    (updates,) = train(make_tx(PLAIN, labels, limit), PARAMS, [grads])
    frozen = frozen_paths(labels)
    squares = 0.0
    for path, leaf in tree.paths(grads).items():
        if path not in frozen:
            squares += float((leaf**2).sum())
    factor = min(1, limit / max(np.sqrt(squares), 1e-9))
    for path, update in tree.paths(updates).items():
        expected = np.zeros(update.shape) if path in frozen else factor * tree.get(grads, path)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


def test_groups_and_optimizers_must_be_the_same():
    labels = tree.label(PARAMS, [("head/.*", FROZEN), (".*", "head")])
    message = "the labels name the groups ['head'], the optimizers are for ['encoder', 'head']"
    with pytest.raises(RuleError, match=re.escape(message)):
        by_label(ADAM, labels)
    with pytest.raises(RuleError):
        by_label({}, labels)


def test_labels_of_another_tree_are_refused():
    labels = tree.label(tree.drop(PARAMS, "head"), [(".*", "encoder")])
    tx = by_label({"encoder": adamw(0.1)}, labels)
    with pytest.raises(RuleError, match="'head/classifier/kernel' has no label"):
        tx.init(PARAMS)
    with pytest.raises(RuleError, match="has no label"):
        optim.trainable(PARAMS, labels)


@pytest.mark.parametrize("encoder_group", ["head", FROZEN])
def test_weight_decay_is_on_neither_biases_nor_norms(encoder_group):
    """With gradients of 0, AdamW moves by decay alone, so exactly the decayed leaves move."""
    labels = tree.label(PARAMS, [("head/.*", "head"), (".*", encoder_group)])
    tx = by_label({"head": adamw(0.1, 0.5)}, labels, 1.0)
    (updates,) = train(tx, PARAMS, [jax.tree.map(jnp.zeros_like, PARAMS)])
    frozen = frozen_paths(labels)
    for path, update in tree.paths(updates).items():
        is_decayed = path.endswith("kernel") and path not in frozen
        expected = -0.1 * 0.5 * tree.get(PARAMS, path) if is_decayed else np.zeros(update.shape)
        np.testing.assert_allclose(update, expected, rtol=1e-6)


def test_adamw_is_the_published_rule():
    """Two steps by hand (Loshchilov and Hutter 2019, algorithm 2), bias correction included."""
    rate = 0.1
    decay = 0.3
    weight = 0.5
    mean = 0.0
    square = 0.0
    params = {"kernel": jnp.float32(weight)}
    tx = adamw(rate, decay)
    state = tx.init(params)
    for step, grad in enumerate([0.2, -0.4], 1):
        updates, state = tx.update({"kernel": jnp.float32(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        mean = 0.9 * mean + 0.1 * grad
        square = 0.999 * square + 0.001 * grad**2
        unbiased_mean = mean / (1 - 0.9**step)
        unbiased_square = square / (1 - 0.999**step)
        weight -= rate * (unbiased_mean / (np.sqrt(unbiased_square) + 1e-8) + decay * weight)
        np.testing.assert_allclose(params["kernel"], weight, rtol=1e-5)


# Schedules

PEAK = 2.0
DECAYS = st.sampled_from(["linear", "cosine", "constant"])


def rates(steps: int, warmup: float, decay: str) -> np.ndarray:
    """The rate of every step."""
    rate = jax.jit(jax.vmap(schedule(PEAK, steps, warmup, decay)))
    return np.asarray(rate(jnp.arange(steps)))


@settings(max_examples=25)
@given(st.integers(1, 200), st.floats(0, 1), DECAYS)
def test_no_step_has_rate_0_and_none_exceeds_the_peak(steps, warmup, decay):
    values = rates(steps, warmup, decay)
    assert np.all(values > 0)
    assert np.all(values <= PEAK * (1 + 1e-6))
    assert np.isclose(values.max(), PEAK)


@settings(max_examples=25)
@given(st.integers(2, 200), st.floats(0, 0.9), DECAYS)
def test_rates_rise_in_equal_steps_then_fall_or_stay(steps, warmup, decay):
    values = rates(steps, warmup, decay)
    rising = min(round(warmup * steps), steps - 1)
    expected = PEAK * np.arange(1, rising + 1) / max(rising, 1)
    np.testing.assert_allclose(values[:rising], expected, rtol=1e-5)

    done = np.arange(steps - rising) / (steps - rising)  # the share of the decay
    shapes = {
        "linear": 1 - done,
        "cosine": (1 + np.cos(np.pi * done)) / 2,
        "constant": np.ones_like(done),
    }
    np.testing.assert_allclose(values[rising:], PEAK * shapes[decay], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decay_would_reach_0_one_step_after_the_last(decay):
    assert abs(float(schedule(PEAK, 50, 0.1, decay)(50))) < 1e-6


def test_an_unknown_decay_is_answered_with_the_known_ones():
    with pytest.raises(StrategyError, match="'square': give one of linear, cosine, constant"):
        schedule(1.0, 10, decay="square")


def test_an_accelerator_divides_and_sums_vectors_as_one_and_gets_the_same():
    grads = gradients(0)
    weight = jnp.float32(3.0)

    def divided_and_norm(grads):
        divided = optim.divide(grads, weight)
        return divided, optim.norm_of(divided)

    plain = jax.jit(divided_and_norm)
    assert "concatenate" not in plain.lower(grads).as_text()
    expected, norm = plain(grads)
    gpu = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    with set_contextvar(target_device, gpu), set_contextvar(packed_kernel, PackedKernel()):
        own = jax.jit(lambda grads: divided_and_norm(grads))
        assert own.lower(grads).as_text().count("concatenate") == 2
        divided, own_norm = own(grads)
    jax.tree.map(np.testing.assert_array_equal, divided, expected)
    np.testing.assert_allclose(own_norm, norm, rtol=1e-6)

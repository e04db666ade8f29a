"""Optimizers by group: what is FROZEN stays still, owns no state and has no part in a norm; rates and decay by rule."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapt import tree
from adapt.errors import RuleError, StrategyError
from adapt.training import optim
from adapt.training.optim import FROZEN, adamw, by_label, schedule

PARAMS = {
    "encoder": {
        "block_00": {
            "query": {
                "kernel": np.full((3, 2), 0.5, np.float32),
                "bias": np.full(2, -0.0, np.float32),
            }
        },
        "block_01": {
            "norm": {"scale": np.ones(4, np.float32), "bias": np.full(4, 0.25, np.float32)}
        },
    },
    "head": {
        "classifier": {"kernel": np.full((2, 3), -0.5, np.float32), "bias": np.zeros(3, np.float32)}
    },
}
SGD = {"head": optax.sgd(0.1, momentum=0.9), "encoder": optax.sgd(0.01, momentum=0.9)}
ADAM = {"head": adamw(0.1, 0.5), "encoder": adamw(0.01, 0.5)}


def labelled(groups) -> tree.Tree:
    """A label tree from one group a leaf, in path order."""
    return tree.unflatten(dict(zip(tree.paths(PARAMS), groups, strict=True)))


def gradients(seed: int) -> tree.Tree:
    rng = np.random.default_rng(seed)
    return tree.map_paths(
        lambda _, leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), PARAMS
    )


def updates(
    tx: optax.GradientTransformation, keep=lambda path: True, spoilt=(), steps: int = 2
) -> list[tree.Tree]:
    """The updates of a few steps on the leaves whose path is kept; the gradients of the spoilt ones are not finite."""
    params, found = tree.select(PARAMS, keep), []
    state = tx.init(params)
    for seed in range(steps):
        grads = tree.map_paths(
            lambda path, leaf: leaf * np.nan if path in spoilt else leaf, gradients(seed)
        )
        new, state = tx.update(tree.select(grads, keep), state, params)
        params = optax.apply_updates(params, new)
        found.append(new)
    return found


SOME_LABELS = st.lists(st.sampled_from([FROZEN, "head", "encoder"]), min_size=6, max_size=6)


@settings(max_examples=8)
@given(SOME_LABELS, st.sampled_from([None, 0.5]), st.sampled_from(["adamw", "sgd"]))
def test_the_whole_tree_and_what_trains_of_it_get_the_same_updates(groups, clip_norm, kind):
    """And on the whole tree, FROZEN leaves get updates of exactly 0, whatever their gradients are."""
    labels = labelled(groups)
    optimizers = {
        group: (ADAM if kind == "adamw" else SGD)[group] for group in {*groups} - {FROZEN}
    }
    tx = by_label(optimizers, labels, clip_norm)
    names = tree.paths(labels)
    whole = updates(tx, spoilt=[path for path, group in names.items() if group == FROZEN])
    part = updates(tx, lambda path: names[path] != FROZEN)
    for a, b in zip(whole, part, strict=True):
        for path, update in tree.paths(a).items():
            if names[path] == FROZEN:
                assert not np.any(update)
            else:
                np.testing.assert_array_equal(update, tree.paths(b)[path])
        assert tree.paths(b).keys() == {path for path in names if names[path] != FROZEN}


@settings(max_examples=15)
@given(SOME_LABELS)
def test_frozen_leaves_own_no_byte_of_optimizer_state(groups):
    labels = labelled(groups)
    tx = by_label({group: ADAM[group] for group in {*groups} - {FROZEN}}, labels, 1.0)
    trained = tree.nbytes(optim.trainable(PARAMS, labels))
    for params in (PARAMS, optim.trainable(PARAMS, labels)):
        arrays = [leaf for leaf in jax.tree.leaves(tx.init(params)) if leaf.ndim]
        assert tree.nbytes(arrays) == 2 * trained  # the two moments of Adam; scalars are counters


@settings(max_examples=15)
@given(SOME_LABELS)
def test_trainable_and_frozen_split_the_tree(groups):
    labels = labelled(groups)
    one, other = optim.trainable(PARAMS, labels), optim.frozen(PARAMS, labels)
    assert tree.digest(tree.merge(one, other)) == tree.digest(PARAMS)
    assert set(tree.summary(one, labels)) == {*groups} - {FROZEN} and set(
        tree.summary(other, labels)
    ) == {*groups} & {FROZEN}


def test_empty_subtrees_go_with_what_is_frozen():
    params = {"encoder": PARAMS["encoder"], "head": {}}
    labels = tree.label(params, [("head/.*", "head"), ("encoder/.*", "encoder")])
    assert optim.frozen(params, labels) == {"head": {}}
    assert list(optim.trainable(params, labels)) == ["encoder"]


@settings(max_examples=20)
@given(SOME_LABELS, st.floats(0.1, 3))
def test_clipping_scales_by_the_norm_of_what_trains_alone(groups, limit):
    labels = labelled(groups)
    names, grads = tree.paths(labels), tree.paths(gradients(0))
    plain = {group: optax.identity() for group in {*groups} - {FROZEN}}
    got = updates(by_label(plain, labels, limit), steps=1)[0]
    norm = np.sqrt(sum(float((grads[p] ** 2).sum()) for p in names if names[p] != FROZEN))
    for path, update in tree.paths(got).items():
        expected = grads[path] * min(1, limit / max(norm, 1e-9)) * (names[path] != FROZEN)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


def test_groups_and_optimizers_must_be_the_same():
    labels = labelled(["head"] * 3 + [FROZEN] * 3)
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


@pytest.mark.parametrize("trains", [lambda path: True, lambda path: path.startswith("head")])
def test_weight_decay_is_on_neither_biases_nor_norms(trains):
    """With gradients of 0, AdamW moves by decay alone, so exactly the decayed leaves move."""
    labels = tree.map_paths(lambda path, _: "head" if trains(path) else FROZEN, PARAMS)
    tx = by_label({"head": adamw(0.1, 0.5)}, labels, 1.0)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    moved, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    for path, update in tree.paths(moved).items():
        decayed = trains(path) and path.endswith("kernel")
        np.testing.assert_allclose(update, -0.1 * 0.5 * tree.get(PARAMS, path) * decayed, rtol=1e-6)


def test_adamw_is_the_published_rule():
    """Two steps by hand (Loshchilov and Hutter 2019, algorithm 2), bias correction included."""
    w, m, v, rate, decay = 0.5, 0.0, 0.0, 0.1, 0.3
    params = {"kernel": jnp.float32(w)}
    tx = adamw(rate, decay)
    state = tx.init(params)
    for step, g in enumerate([0.2, -0.4], 1):
        update, state = tx.update({"kernel": jnp.float32(g)}, state, params)
        params = optax.apply_updates(params, update)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= rate * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8) + decay * w)
        np.testing.assert_allclose(params["kernel"], w, rtol=1e-5)


# Schedules

DECAYS = st.sampled_from(["linear", "cosine", "constant"])


def rates(steps: int, warmup: float, decay: str) -> np.ndarray:
    function = jax.jit(jax.vmap(schedule(2.0, steps, warmup, decay)))
    return np.asarray(function(jnp.arange(steps)))


@settings(max_examples=25)
@given(st.integers(1, 200), st.floats(0, 1), DECAYS)
def test_no_step_has_rate_0_and_none_exceeds_the_peak(steps, warmup, decay):
    values = rates(steps, warmup, decay)
    assert np.all(values > 0) and np.all(values <= 2.0 * (1 + 1e-6))
    assert np.isclose(values.max(), 2.0)


@settings(max_examples=25)
@given(st.integers(2, 200), st.floats(0, 0.9), DECAYS)
def test_rates_rise_in_equal_steps_then_fall_or_stay(steps, warmup, decay):
    values, warm = rates(steps, warmup, decay), min(round(warmup * steps), steps - 1)
    np.testing.assert_allclose(
        values[:warm], 2.0 * np.arange(1, warm + 1) / max(warm, 1), rtol=1e-5
    )
    rest = np.arange(steps - warm) / (steps - warm)  # the share of the decay that is done
    shapes = {
        "linear": 1 - rest,
        "cosine": (1 + np.cos(np.pi * rest)) / 2,
        "constant": np.ones_like(rest),
    }
    np.testing.assert_allclose(values[warm:], 2.0 * shapes[decay], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decay_would_reach_0_one_step_after_the_last(decay):
    assert abs(float(schedule(2.0, 50, 0.1, decay)(50))) < 1e-6


def test_an_unknown_decay_is_answered_with_those_there_are():
    with pytest.raises(
        StrategyError, match="unknown decay 'square': give one of linear, cosine, constant"
    ):
        schedule(1.0, 10, decay="square")

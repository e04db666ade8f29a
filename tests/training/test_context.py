"""Losses with a context: the plain loss where they do the same, and the parts of the context as they are said to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt import tree
from adapt.errors import StrategyError
from adapt.training import frozen_prefix
from adapt.training.context import CONTEXT_STREAM, context_loss, name_of
from adapt.training.losses import cross_entropy
from adapt.training.step import init_state, make_step
from tests.helpers.small import CLASSES, batch, bits, classifier, params, setup

STRATEGIES = ["frozen", "top:1", "full"]


@context_loss
def plain(context):
    return cross_entropy(context.outputs, context.labels)


class Named:
    """A loss that is an object."""

    def __call__(self, outputs, labels):
        return cross_entropy(outputs, labels)


def first_step(loss, name="top:1", dropout=0.0, packed=None, **options):
    """(frozen, the state before, the one after a step, its metrics)."""
    model = classifier("small", dropout=dropout)
    labels, tx = setup(model, name)
    cut = frozen_prefix.cut(labels, model.encoder.config.layers)
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    step = make_step(model, loss, tx, cut, **options)
    after, metrics = step(frozen, state, batch() if packed is None else packed)
    return frozen, before, after, metrics


@functools.cache
def seen_in(name):
    """What a context held in a step with dropout, as numbers, by name."""
    seen = {}

    @context_loss
    def look(context):
        found = {
            "outputs": context.outputs,
            "hidden": context.hidden,
            "again": context.forward(context.key),
            "certain": context.forward(),
            "certain_again": context.forward(),
            "of_head": context.head(context.hidden),
            "of_zeros": context.head(jnp.zeros_like(context.hidden)),
            "labels": context.labels,
            "key": jax.random.key_data(context.key),
        }
        jax.debug.callback(lambda values: seen.update(jax.tree.map(np.array, values)), found)
        return cross_entropy(context.outputs, context.labels)

    first_step(look, name, dropout=0.3)
    jax.effects_barrier()
    return seen


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_context_loss_of_outputs_and_labels_is_the_plain_loss(name):
    with_context = first_step(plain, name)
    without = first_step(cross_entropy, name)
    for one, other in zip(with_context[2:], without[2:], strict=True):
        assert bits(one) == bits(other)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_context_has_what_it_says(name):
    seen = seen_in(name)
    packed = batch()
    model = classifier("small", dropout=0.3)
    certain = model.apply(params(model), packed)
    np.testing.assert_allclose(seen["certain"], certain, atol=1e-5)
    np.testing.assert_array_equal(seen["certain"], seen["certain_again"])
    np.testing.assert_array_equal(seen["labels"], packed["label"])
    for one, other in (("outputs", "certain"), ("outputs", "again"), ("again", "certain")):
        assert not np.allclose(seen[one], seen[other], atol=1e-3), (one, other)
    width = model.encoder.config.width
    pooled = (len(packed["label"]), width)
    assert seen["hidden"].shape == (pooled if name == "frozen" else (3, 32, width))
    bias = params(model)["head"]["classifier"]["bias"]
    np.testing.assert_allclose(seen["of_zeros"], np.tile(bias, (8, 1)), atol=1e-6)
    assert seen["of_head"].shape == (8, CLASSES)


def test_the_key_of_a_context_is_that_of_the_step_whatever_trains():
    np.testing.assert_array_equal(seen_in("top:1")["key"], seen_in("full")["key"])


def test_without_dropout_every_pass_is_the_same():
    model = classifier("small")
    labels, tx = setup(model, "full")
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))

    @context_loss
    def difference(context):
        again = context.forward()
        return ((context.outputs - again) ** 2).sum(-1)

    _, metrics = make_step(model, difference, tx, dropout=False)(frozen, state, batch())
    assert metrics["loss"] == 0


def test_the_second_pass_draws_other_bits_than_the_first():
    """R-Drop's loss by hand, with the keys that the step has."""
    model = classifier("small", dropout=0.3)

    @context_loss
    def both(context):
        again = context.forward(context.key)
        one = cross_entropy(context.outputs, context.labels)
        return one + 2 * cross_entropy(again, context.labels)

    *_, metrics = first_step(both, "full", dropout=0.3)
    key = jax.random.fold_in(jax.random.key(0), 0)
    passes = [key, jax.random.fold_in(key, CONTEXT_STREAM)]
    packed = batch()
    losses = [
        cross_entropy(model.apply(params(model), packed, one), packed["label"]) for one in passes
    ]
    assert metrics["loss"] == pytest.approx(float((losses[0] + 2 * losses[1]).mean()), rel=1e-5)


def test_a_penalty_on_the_gradient_by_the_states_trains():
    """A second derivative, which the cut at the frozen prefix does not forbid."""

    @context_loss
    def smooth(context):
        def summed(hidden):
            return cross_entropy(context.head(hidden), context.labels).sum()

        slopes = jax.grad(summed)(context.hidden)
        penalty = (slopes**2).sum(-1)
        if penalty.ndim == 2:
            segments = context.batch["segments"].reshape(-1)
            penalty = jax.ops.segment_sum(penalty.reshape(-1), segments, len(context.labels))
        return cross_entropy(context.outputs, context.labels) + penalty

    for name in ("frozen", "top:1"):
        _, before, after, metrics = first_step(smooth, name)
        *_, without = first_step(cross_entropy, name)
        assert metrics["loss"] > without["loss"]
        moved = jax.tree.map(lambda one, other: np.abs(one - other).max(), before, after.params)
        assert all(change > 0 for change in tree.paths(moved).values())


def test_micro_batches_have_keys_of_their_own():
    keys = []

    @context_loss
    def look(context):
        jax.debug.callback(lambda key: keys.append(key.tolist()), jax.random.key_data(context.key))
        return cross_entropy(context.outputs, context.labels)

    packed = {name: np.stack([array, array]) for name, array in batch().items()}
    first_step(look, packed=packed)
    jax.effects_barrier()
    assert len(keys) == 2 and keys[0] != keys[1]


def test_extras_of_a_batch_pass_the_frozen_prefix():
    packed = batch() | {"teacher": np.arange(8, dtype=np.float32)}

    @context_loss
    def of_teacher(context):
        return context.batch["teacher"] + 0 * context.outputs.sum(-1)

    for name in STRATEGIES:
        *_, metrics = first_step(of_teacher, name, packed=packed)
        assert metrics["loss"] == pytest.approx(3.5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, labels: cross_entropy(outputs, labels).mean(),
        lambda outputs, labels: outputs,
        context_loss(lambda context: context.outputs.mean()),
    ],
    ids=["a mean", "several an example", "a mean with a context"],
)
def test_a_loss_that_is_not_one_number_an_example_is_refused(loss):
    with pytest.raises(StrategyError, match="loss"):
        first_step(loss)


def test_a_loss_is_named_by_its_function():
    assert name_of(cross_entropy) == name_of(context_loss(cross_entropy))
    assert name_of(cross_entropy) == "adapt.training.losses.cross_entropy"
    partial = context_loss(functools.partial(cross_entropy, temperature=2))
    assert name_of(partial) == "adapt.training.losses.cross_entropy(temperature=2)"
    assert name_of(Named()) == f"{__name__}.Named"

"""The gradients of examples by themselves: their sum is the gradient of the batch."""

import jax
import numpy as np
import pytest

import adapt
from adapt import tree
from adapt.data import packing
from adapt.models import Classifier, Encoder, Model, Tagger
from adapt.ragged import Ragged
from adapt.training import losses
from tests.helpers.small import (
    CLASSES,
    CONFIGS,
    SHALLOW,
    SHAPE,
    SLOTS,
    batch,
    classifier,
    params,
    texts,
)


def summed_loss(model, loss, depth=0):
    def of_batch(parameters, packed):
        outputs = model.suffix(parameters, packed.get("hidden"), packed, depth)
        return (loss(outputs, packed["label"]) * packed["weight"]).sum()

    return of_batch


def check(model, loss, packed, depth=0):
    """Gradients [N, ...] of batches of one; their sum is that of the batch."""
    of_batch = summed_loss(model, loss, depth)
    parameters = params(model)
    ones = adapt.batches_of_one(packed)
    alone = jax.jit(jax.vmap(jax.grad(of_batch), (None, 0)))(parameters, ones)
    together = tree.paths(jax.jit(jax.grad(of_batch))(parameters, packed))
    for path, gradients in tree.paths(alone).items():
        scale = np.abs(together[path]).max() + 1e-3
        np.testing.assert_allclose(
            gradients.sum(0), together[path], atol=1e-5 * scale + 1e-6, err_msg=path
        )
    return alone


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_they_sum_to_the_gradient_of_the_batch(family):
    packed = batch(family, examples=5)
    packed["weight"][1] = 3.0
    model = Model(Encoder(SHALLOW[family]), classifier(family).head)
    alone = check(model, losses.cross_entropy, packed)
    of_head = alone["head"]["classifier"]["bias"]
    assert of_head.shape == (SLOTS, CLASSES)
    assert np.any(of_head[:5], axis=1).all() and not np.any(of_head[5:])


@pytest.mark.parametrize("depth", [2, 3])
def test_they_sum_where_a_frozen_prefix_is_cached(depth):
    model = classifier()
    packed = batch(examples=5)
    packed["hidden"] = np.asarray(model.prefix(params(model), packed, depth))
    if model.prefix_pools(depth):
        packed = {name: packed[name] for name in ("hidden", "label", "weight")}
    check(model, losses.cross_entropy, packed, depth)


def test_they_sum_where_words_have_labels():
    rng = np.random.default_rng(0)
    tokens = texts(5, longest=12)
    rows, starts, _ = packing.pack(tokens.lengths, SHAPE[1])
    inputs = packing.assemble(tokens, np.arange(5), rows, starts, SHAPE)
    counts = np.maximum(tokens.lengths // 2, 1)
    place = np.concatenate([np.arange(count) for count in counts])
    values = np.stack([place, rng.integers(0, CLASSES, len(place))], 1).astype(np.int32)
    labels = Ragged(values, np.cumsum(counts) - counts, counts)
    model = Model(Encoder(CONFIGS["small"]), Tagger(CLASSES))
    check(model, losses.cross_entropy, inputs | packing.make_targets(labels, inputs, SLOTS))


def test_they_sum_where_an_example_has_several_sequences():
    packed = batch(examples=8, classes=2)
    packed |= packing.pad_labels(np.array([0, 1, 1], np.int32), SLOTS // 2)
    model = Model(Encoder(CONFIGS["small"]), Classifier(1))
    check(model, losses.choice_cross_entropy, packed)

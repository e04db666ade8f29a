"""What attention adds for distances: buckets, tables that all blocks read, blocks of one weight."""

import dataclasses
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt import tree
from adapt.models import Classifier, Encoder, EncoderConfig, Model, attention, relative
from adapt.models.attention_pattern import AttentionPattern
from adapt.training import frozen_prefix, strategies
from adapt.training.optim import FROZEN

with np.load(Path(__file__).parents[1] / "references" / "relative_buckets.npz") as file:
    BUCKETS = dict(file)
PLAIN = EncoderConfig(
    "bert", 2, 8, 2, 12, 16, vocabulary=20, dropout=0.0, attention_dropout=0.0, init_range=0.5
)
BIAS = {"relative_buckets": 8, "relative_distance": 10}
STATES = {"relative_buckets": 4, "relative_distance": 9, "relative_terms": ("c2p", "p2c")}
KINDS = {
    "a bias of shared blocks": BIAS | {"shared_blocks": True},
    "disentangled": STATES | {"relative_norm": True},
}
RNG = np.random.default_rng(0)
BATCH = {
    "tokens": RNG.integers(0, 20, (2, 10)).astype(np.int32),
    "positions": np.array([[*range(5), *range(5)], [*range(7), 0, 0, 0]], np.int32),
    "types": np.zeros((2, 10), np.int32),
    "segments": np.array([[0] * 5 + [1] * 5, [2] * 7 + [3] * 3], np.int32),
    "first": np.array([0, 5, 10], np.int32),
    "length": np.array([5, 5, 7], np.int32),
}


def model_of(kind):
    config = dataclasses.replace(PLAIN, **KINDS[kind])
    return Model(Encoder(config), Classifier(2, "mean"))


@pytest.mark.parametrize("name", [name for name in BUCKETS if name != "differences"])
def test_buckets_are_those_of_the_original_library(name):
    library, buckets, distance = name.split("_")
    differences = BUCKETS["differences"].astype(np.int64)
    if library == "t5":
        ours = relative.distance_buckets(differences, int(buckets), int(distance))
        np.testing.assert_array_equal(ours, BUCKETS[name])
    else:
        ours = relative.difference_buckets(differences, int(buckets), int(distance))
        cut_off = np.clip(BUCKETS[name] + int(buckets), 0, 2 * int(buckets) - 1)
        np.testing.assert_array_equal(ours, cut_off)


def test_a_distance_of_zero_gives_every_difference_a_row_up_to_the_end_of_the_table():
    rows = relative.difference_buckets(np.array([-9, -3, 0, 2, 9]), 4, 0)
    assert rows.tolist() == [0, 1, 4, 6, 7]


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_differences_are_moved_to_the_places_of_keys(tokens):
    moved = relative.by_places(np.tile(relative.differences(tokens), (tokens, 1)))
    places = np.arange(tokens)
    np.testing.assert_array_equal(moved, places - places[:, None])


@pytest.mark.parametrize("kind", KINDS)
def test_cut_rematerialised_and_scanned_models_compute_the_same(kind):
    """A cut with the parameters of its two parts alone; and the gradient of the table."""
    model = model_of(kind)
    params = jax.jit(model.init)(jax.random.key(0))

    def outputs(params):
        below = frozen_prefix.prefix_params(params, model, 2)
        above = frozen_prefix.suffix_params(params, model, 2)
        hidden = model.prefix(below, BATCH, 2)
        return model.apply(params, BATCH), model.suffix(above, hidden, BATCH, 2)

    def gradients(params):
        found = []
        for change in ({}, {"remat": "block"}, {"scan": True}):
            other = dataclasses.replace(model, **change)
            gradient = jax.grad(lambda p, other=other: (other.apply(p, BATCH) ** 2).sum())(params)
            found.append(gradient["encoder"]["relative"]["table"])
        return found

    (whole, cut), (of_table, *others) = jax.jit(lambda p: (outputs(p), gradients(p)))(params)
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    assert np.abs(of_table).max() > 1e-3
    for gradient in others:
        np.testing.assert_allclose(gradient, of_table, rtol=1e-4, atol=1e-6)


def test_a_table_that_trains_leaves_no_frozen_prefix():
    """All blocks read it, so that it is of the first stage."""
    model = model_of("disentangled")
    rules = [("encoder/relative/.*", "table"), (".*", FROZEN)]
    assert frozen_prefix.cut(tree.label(model.shapes(), rules), layers=2) == 0
    top = strategies.strategy("top:1", 2).phases[0]
    labels = tree.label(model.shapes(), top.rules)
    assert labels["encoder"]["relative"]["table"] == FROZEN
    assert frozen_prefix.cut(labels, layers=2) == 2


def test_blocks_that_share_their_weights_are_one_to_a_strategy():
    model = model_of("a bias of shared blocks")
    config = dataclasses.replace(model.encoder.config, layers=12)
    (phase,) = strategies.strategy_for(config, "top:1", 1).phases
    labels = tree.label(model.shapes(), phase.rules)
    # The embedding is a frozen prefix, and all blocks train.
    assert frozen_prefix.cut(labels, layers=12) == 1
    with pytest.raises(strategies.StrategyError, match=r"top:2 .* 12 layers are one block"):
        strategies.strategy_for(config, "top:2", 1)


@pytest.mark.parametrize(("rows", "is_taken"), [((), True), ((2,), False)])
def test_a_bias_of_every_row_is_not_for_the_kernel(rows, is_taken):
    """Scores of DeBERTa depend on queries and keys: only the reference computes them."""
    device = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    q = jnp.zeros((2, 2, 4, 8))
    pattern = AttentionPattern(bias=jnp.zeros((*rows, 2, 4, 4)))
    taken = attention.allow_packed_kernel(attention.can_use_packed_kernel)(device, q, q, pattern)
    assert taken == is_taken

"""L2-SP and mixout hold what trains near its pre-trained values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt import tree
from adapt.training import optim
from adapt.training.losses import cross_entropy
from adapt.training.regularizers import Regularizer
from adapt.training.step import init_state, make_step
from adapt.training.strategies import strategy
from tests.helpers.small import batch, classifier, params

HOME = {"encoder": {"a": np.full((40, 50), 2.0, np.float32)}}
NOW = {"encoder": {"a": np.full((40, 50), 3.0, np.float32)}, "head": {"b": np.ones(3, np.float32)}}


def test_l2sp_is_the_gradient_of_half_the_squared_distance():
    penalty = lambda params: (
        0.3 / 2 * jnp.square(params["encoder"]["a"] - HOME["encoder"]["a"]).sum()
    )
    zero = jax.tree.map(np.zeros_like, NOW)
    jax.tree.map(
        np.testing.assert_allclose,
        Regularizer(l2sp=0.3).add_gradient(zero, NOW, HOME),
        jax.grad(penalty)(NOW),
    )


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_mixout_keeps_the_mean_and_puts_a_share_of_the_weights_home(rate):
    mixed = Regularizer(mixout=rate).mix(NOW, HOME, jax.random.key(0))
    values = np.asarray(mixed["encoder"]["a"])
    assert abs((values == 2.0).mean() - rate) < 0.03
    np.testing.assert_allclose(
        values[values != 2.0], 2.0 + 1.0 / (1 - rate), rtol=1e-6
    )  # eq. 3 of the paper
    np.testing.assert_array_equal(mixed["head"]["b"], NOW["head"]["b"])
    others = [
        Regularizer(mixout=rate).mix(NOW, HOME, jax.random.key(key))["encoder"]["a"]
        for key in range(200)
    ]
    assert abs(np.mean(others) - 3.0) < 0.02


def moved(regularizer: Regularizer | None) -> float:
    """How far the encoder is from home after some steps."""
    model = classifier("small")
    labels = tree.label(params(model), strategy("full", 1).phases[0].rules)
    tx = optim.by_label(
        {group: optim.adamw(1e-2, 0.0) for group in ("encoder", "head")}, labels, 1.0
    )
    frozen, state = init_state(params(model), labels, tx, jax.random.key(0))
    anchor = {"encoder": params(model)["encoder"]}
    step = make_step(model, cross_entropy, tx, regularizer=regularizer)
    for seed in range(8):
        state, metrics = step(
            frozen | ({"anchor": anchor} if regularizer else {}), state, batch(seed=seed)
        )
    assert np.isfinite(float(metrics["loss"]))
    pairs = zip(
        tree.paths(state.params["encoder"]).values(),
        tree.paths(anchor["encoder"]).values(),
        strict=True,
    )
    return float(sum(np.square(np.asarray(one) - other).sum() for one, other in pairs))


def test_a_strong_pull_keeps_the_encoder_nearer_home():
    assert moved(Regularizer(l2sp=10.0)) < 0.5 * moved(None)


def test_mixout_trains():
    assert moved(Regularizer(mixout=0.5)) > 0

"""Layers against formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.models import Classifier, Encoder, Model
from adapt.models.layers import Norm, RMSNorm, norm_of
from adapt.tree import map_paths, paths
from tests.helpers.small import BERT, GROUPED, batch, params


@pytest.mark.parametrize("offset", [False, True])
def test_rms_normalisation_divides_by_the_root_of_the_mean_square(offset):
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 8)).astype(np.float32)
    scale = random.standard_normal(8).astype(np.float32)
    norm = RMSNorm(1e-2, offset=offset)
    ours = norm.apply({"params": {"scale": scale}}, x)
    divisor = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(ours, x / divisor * (scale + offset), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [False, True])
def test_a_fresh_rms_norm_has_the_scale_1_and_computes_in_float32(offset):
    x = jnp.full((1, 4), 300.0, jnp.bfloat16)  # its square is no number of float16
    norm = RMSNorm(1e-6, jnp.float16, offset)
    made, variables = norm.init_with_output(jax.random.key(0), x)
    assert made.dtype == jnp.float16 and np.all(np.asarray(made) == 1)
    assert np.all(np.asarray(variables["params"]["scale"]) == (0 if offset else 1))


def test_the_kind_of_a_norm_is_the_configs():
    assert isinstance(norm_of(BERT, jnp.float32), Norm)
    assert norm_of(GROUPED, jnp.float32) == RMSNorm(GROUPED.norm_epsilon, jnp.float32, True)


def test_the_embedding_is_scaled_and_branches_are_normalised_before_they_are_added():
    model = Model(Encoder(GROUPED), Classifier(0, "last"))
    tree = map_paths(lambda path, leaf: leaf, params(model))  # a copy: parameters are shared
    leaves = paths(tree["encoder"])
    inputs = batch("grouped")
    states = jax.jit(model.hidden_states)(tree, inputs)
    embedded = 4 * leaves["embedding/token"][inputs["tokens"]]
    np.testing.assert_allclose(states[0], embedded, atol=1e-5)
    # Without the scale of the branches' norms nothing is added, and the block is the identity.
    for name in ("attention_branch_norm", "mlp_branch_norm"):
        tree["encoder"]["block_00"][name]["scale"] = np.full(16, -1.0, np.float32)
    x = Encoder(GROUPED).apply({"params": tree["encoder"]}, states[0], inputs, 0, 1, method="run")
    np.testing.assert_array_equal(x, states[0])

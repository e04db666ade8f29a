"""What accelerators compute in their own way differs from the plain way by rounding alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt.models import layers

X = jnp.linspace(-9, 9, 4001)


def value_and_gradient(function, dtype):
    """Both of the sum over :data:`X`, in float32 whatever they were computed in."""
    value, pull_back = jax.vjp(function, X.astype(dtype))
    (gradient,) = pull_back(jnp.ones_like(value))
    return np.asarray([value, gradient], np.float32)


@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS))
def test_an_activation_of_accelerators_is_nearer_to_float32_than_the_plain_one(name):
    plain = layers.ACTIVATIONS[name]
    own = functools.partial(layers.activate_from_input, name)
    in_float32 = value_and_gradient(plain, jnp.float32)
    np.testing.assert_allclose(value_and_gradient(own, jnp.float32), in_float32, atol=1e-6)

    def exact(x):
        return plain(x.astype(jnp.float32))

    rounded = value_and_gradient(exact, jnp.bfloat16)
    error = np.abs(value_and_gradient(own, jnp.bfloat16) - rounded).max(1)
    plain_error = np.abs(value_and_gradient(plain, jnp.bfloat16) - rounded).max(1)
    assert (error <= plain_error + 1e-6).all()
    # Half a unit in the last place, of values up to 9 and of gradients up to 1.13.
    assert (error <= [2**-6, 2**-9 + 2**-8]).all()


def test_an_activation_of_accelerators_keeps_its_input_alone():
    x = X.astype(jnp.bfloat16)
    _, pull_back = jax.vjp(functools.partial(layers.activate_from_input, "gelu"), x)
    (kept,) = jax.tree.leaves(pull_back)
    assert kept.dtype == jnp.bfloat16 and (kept == x).all()

"""What accelerators compute in their own way differs from the plain way by rounding alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adapt.models import layers, norm_kernels

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


KEY = jax.random.key(5)


def norm_arrays(tokens, width, dtype):
    """x, y, scale, bias and the upstream gradient; ``tokens`` are those of each of two rows."""
    states = (2, tokens, width)
    shapes = [states, states, (width,), (width,), states]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    x, y, scale, bias, upstream = (
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    )
    return (3 * x + 1).astype(dtype), y.astype(dtype), scale, bias, upstream.astype(dtype)


def plain_norm(rate, x, y, scale, bias):
    """norm(x + dropout(y)) by the layers of a model."""
    dropout = layers.Dropout(rate)
    y = dropout.apply({}, y, False, rngs={"dropout": KEY})
    return layers.Norm(1e-5, x.dtype).apply({"params": {"scale": scale, "bias": bias}}, x + y)


def norm_by_kernel(rate, x, y, scale, bias):
    """The same by the kernel, with the words of the same key."""
    words = None
    if rate:
        dropout = layers.Dropout(rate)
        words = dropout.apply({}, rngs={"dropout": KEY}, method="seed_words")
    return norm_kernels.normalised_sum(
        x, y, scale, bias, words, epsilon=1e-5, rate=rate, interpret=True
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def norm_and_gradients(norm, rate, x, y, scale, bias, upstream):
    value, pull_back = jax.vjp(functools.partial(norm, rate), x, y, scale, bias)
    return value, *pull_back(upstream)


@pytest.mark.parametrize(("tokens", "width", "rate"), [(32, 16, 0.3), (5, 24, 0.3), (6, 40, 0.0)])
def test_the_norm_of_a_sum_by_a_kernel_is_the_plain_one(tokens, width, rate):
    arrays = norm_arrays(tokens, width, jnp.float32)
    expected = norm_and_gradients(plain_norm, rate, *arrays)
    computed = norm_and_gradients(norm_by_kernel, rate, *arrays)
    for a, b in zip(computed, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5)
    if rate:
        of_y = np.asarray(computed[2])
        assert 0.6 < (of_y != 0).mean() < 0.8


def test_the_norm_of_a_sum_in_bfloat16_has_the_error_of_rounding_its_sum():
    rate = 0.3
    arrays = norm_arrays(32, 24, jnp.bfloat16)
    in_float32 = [array.astype(jnp.float32) for array in arrays]
    exact = norm_and_gradients(plain_norm, rate, *in_float32)
    computed = norm_and_gradients(norm_by_kernel, rate, *arrays)
    plain = norm_and_gradients(plain_norm, rate, *arrays)
    for is_exact, own, other in zip(exact, computed, plain, strict=True):
        error = np.abs(own.astype(jnp.float32) - is_exact).mean()
        plain_error = np.abs(other.astype(jnp.float32) - is_exact).mean()
        # The gradient of the scale is of the rounded sum, which the plain one may not be.
        assert error <= 2 * plain_error
        assert error <= 2**-8 * np.abs(is_exact).mean()


NORMS = {
    "layer": layers.Norm(1e-5),
    "no_bias": layers.Norm(1e-5, bias=False),
    "rms": layers.RMSNorm(1e-5),
    "offset": layers.RMSNorm(1e-5, offset=True),
}


class Pair(nn.Module):
    """A sum and its norm, as a pre-norm block asks for them."""

    norm: nn.Module
    rate: float

    @nn.compact
    def __call__(self, x, y):
        dropout = layers.Dropout(self.rate) if self.rate else None
        return self.norm.with_sum(x, y, dropout)


def pair_and_gradients(pair, x, y, params, upstreams):
    """The sum, the norm, and the gradients of x, y and the parameters for those of both."""

    def both(x, y, params):
        return pair.apply({"params": {"norm": params}}, x, y, rngs={"dropout": KEY})

    outputs, pull_back = jax.vjp(both, x, y, params)
    return outputs, pull_back(upstreams)


@pytest.mark.parametrize(
    ("name", "rate", "has_y", "dtype"),
    [
        ("layer", 0.3, True, "float32"),
        ("layer", 0.0, False, "bfloat16"),
        ("no_bias", 0.0, True, "float32"),
        ("rms", 0.3, True, "bfloat16"),
        ("offset", 0.0, False, "float32"),
    ],
)
def test_a_sum_and_its_norm_by_a_kernel_are_the_plain_ones(monkeypatch, name, rate, has_y, dtype):
    x, y, scale, bias, upstream = norm_arrays(6, 24, dtype)
    params = {"scale": scale} | ({"bias": bias} if name == "layer" else {})
    arrays = (x, y if has_y else None, params, (upstream[::-1], upstream))
    in_float32 = jax.tree.map(lambda array: array.astype(jnp.float32), arrays)
    plain = Pair(NORMS[name], rate)
    own = Pair(NORMS[name].clone(dtype=dtype), rate)
    expected = jax.jit(functools.partial(pair_and_gradients, plain))(*in_float32)

    interpreted = functools.partial(norm_kernels.sum_and_norm, interpret=True)
    monkeypatch.setattr(norm_kernels, "sum_and_norm", interpreted)
    monkeypatch.setattr(layers, "has_norm_kernel", lambda x: True)
    computed = jax.jit(functools.partial(pair_and_gradients, own))(*arrays)
    tolerance = 3e-5 if dtype == "float32" else 0.03

    def close(own, exact):
        assert own.shape == exact.shape
        error = np.abs(own.astype(jnp.float32) - exact)
        assert (error / (1 + np.abs(exact))).max() < tolerance

    jax.tree.map(close, computed, expected)


def test_the_norm_of_a_sum_is_mapped_over_fits():
    x, y, scale, bias, upstream = norm_arrays(8, 16, jnp.float32)
    scales = jnp.stack([scale, 2 * scale])

    def gradients(scale):
        return norm_and_gradients(norm_by_kernel, 0.3, x, y, scale, bias, upstream)

    together = jax.vmap(gradients)(scales)
    alone = gradients(scales[1])
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a[1], b, atol=1e-5, rtol=1e-5)

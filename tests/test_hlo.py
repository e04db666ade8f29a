"""The counter of matrix products counts what runs: plain, batched, in loops, in nested calls."""

import jax
import jax.numpy as jnp
import pytest
from hlo import dot_flops


def counted(function, *shapes) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return dot_flops(jax.jit(function).lower(*arguments).compile().as_text())


def test_one_product():
    assert counted(lambda a, b: jnp.tanh(a @ b), (32, 48), (48, 64)) == 2 * 32 * 48 * 64


def test_batched_and_transposed_products():
    assert counted(lambda a, b: jnp.einsum("nij,nkj->nik", a, b), (5, 16, 24), (5, 40, 24)) == 2 * 5 * 16 * 24 * 40


def test_a_loop_counts_as_often_as_it_runs():
    def function(a, b):
        return jax.lax.fori_loop(0, 7, lambda _, x: jnp.tanh(x @ b @ b), a)

    assert counted(function, (32, 48), (48, 48)) == 7 * 2 * 2 * 32 * 48 * 48


def test_a_gradient_costs_two_products_more():
    flops = counted(jax.grad(lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w).sum()), (48, 48), (32, 48))
    assert flops == (2 + 3) * 2 * 32 * 48 * 48  # x itself needs no gradient


def test_a_loop_of_unknown_length_is_refused():
    def function(a, b):
        return jax.lax.while_loop(lambda x: x.sum() < 5, lambda x: jnp.tanh(x @ b), a)

    with pytest.raises(AssertionError, match="unknown length"):
        counted(function, (32, 48), (48, 48))

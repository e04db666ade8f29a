"""norm(x + dropout(y)) and its gradient, each as one kernel for GPUs.

XLA makes six kernels of the two, which write the sum, its distance from the mean and that of the
upstream gradient in float32, and read them again. The two kernels here move no more than they must.
The forward one reads x and y, and writes the sum and its norm. The backward one reads the upstream
gradient and the sum, and writes the gradients of x and of y. Dropout's bits are those of
:class:`adapt.models.layers.Dropout`, made again in the backward pass.

Shapes in names: N tokens, D width, B tokens of a block.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from adapt.models.counter_dropout import bits_of

ROWS = 4  # tokens of a block, at most
ELEMENTS = 4096  # numbers of a block, at most: 32 in a thread, so that all stay in registers
STEPS = 8  # blocks that a program of the gradient takes one after the other, at most


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed when the kernels are compiled."""

    tokens: int
    width: int
    epsilon: float
    rate: float  # of dropout
    interpret: bool  # on a CPU, for tests

    @property
    def stored_width(self) -> int:
        """The width of a block, a power of two."""
        return pl.next_power_of_2(self.width)

    @property
    def rows(self) -> int:
        """The tokens of a block."""
        return math.gcd(self.tokens, min(ROWS, max(ELEMENTS // self.stored_width, 1)))

    @property
    def steps(self) -> int:
        """The blocks of a program of the gradient."""
        return math.gcd(self.tokens // self.rows, STEPS)


def normalised_sum(
    x: jax.Array,
    y: jax.Array,
    scale_D: jax.Array,
    bias_D: jax.Array,
    words: jax.Array | None,
    *,
    epsilon: float,
    rate: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """The layer norm (Ba et al. 2016) of x + dropout(y), [..., D], in the dtype of ``x``.

    It is computed in float32; the sum that the backward pass reads is rounded to the dtype of
    ``x``. ``words`` uint32 [2] seed dropout; None is no dropout. The function has a gradient and a
    rule for :func:`jax.vmap`, and none for forward differentiation.
    """
    width = x.shape[-1]
    plan = Plan(x.size // width, width, epsilon, rate if words is not None else 0.0, interpret)
    words = jnp.zeros(2, jnp.uint32) if words is None else words
    numbers = jax.lax.bitcast_convert_type(words, jnp.int32)
    x_ND = x.reshape(-1, width)
    y_ND = y.reshape(-1, width).astype(x.dtype)
    scale_D = scale_D.astype(jnp.float32)
    bias_D = bias_D.astype(jnp.float32)
    out_ND: Any = norm_of_sum(plan, x_ND, y_ND, scale_D, bias_D, numbers)
    return out_ND.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_of_sum(
    plan: Plan, x_ND: Any, y_ND: Any, scale_D: Any, bias_D: Any, numbers: Any
) -> jax.Array:
    """:func:`normalised_sum` on rows; ``numbers`` int32 [2] are the bits of the words."""
    out_ND, _ = forward(plan, x_ND, y_ND, scale_D, bias_D, numbers)
    return out_ND


def forward(
    plan: Plan, x_ND: Any, y_ND: Any, scale_D: Any, bias_D: Any, numbers: Any
) -> tuple[jax.Array, Any]:
    """The norm, and what the backward pass needs."""
    block = pl.BlockSpec((plan.rows, plan.stored_width), lambda program: (program, 0))
    vector = pl.BlockSpec((1, plan.stored_width), lambda program: (0, 0))
    like = jax.ShapeDtypeStruct(x_ND.shape, x_ND.dtype)
    sum_ND, out_ND = call(
        plan,
        forward_kernel,
        "norm_of_sum_forward",
        plan.tokens // plan.rows,
        [(x_ND, block), (y_ND, block), (scale_D[None], vector), (bias_D[None], vector)],
        numbers,
        [(like, block), (like, block)],
    )
    return out_ND, (sum_ND, scale_D, numbers)


def backward(plan: Plan, residuals: Any, upstream_ND: jax.Array) -> tuple[Any, ...]:
    """The gradients of x, y, scale and bias."""
    sum_ND, scale_D, numbers = residuals
    programs = plan.tokens // (plan.rows * plan.steps)
    block = pl.BlockSpec((plan.rows * plan.steps, plan.stored_width), lambda program: (program, 0))
    vector = pl.BlockSpec((1, plan.stored_width), lambda program: (0, 0))
    row = pl.BlockSpec((None, 1, plan.stored_width), lambda program: (program, 0, 0))
    like = jax.ShapeDtypeStruct(sum_ND.shape, sum_ND.dtype)
    partial = jax.ShapeDtypeStruct((programs, 1, plan.width), jnp.float32)
    outputs = [(like, block), (partial, row), (partial, row)]
    if plan.rate:
        outputs.append((like, block))
    gradients = call(
        plan,
        backward_kernel,
        "norm_of_sum_backward",
        programs,
        [(upstream_ND, block), (sum_ND, block), (scale_D[None], vector)],
        numbers,
        outputs,
    )
    sum_gradient_ND, scale_partials, bias_partials, *y_gradients = gradients
    y_gradient_ND = y_gradients[0] if y_gradients else sum_gradient_ND
    scale_gradient_D = scale_partials.sum((0, 1))
    bias_gradient_D = bias_partials.sum((0, 1))
    return sum_gradient_ND, y_gradient_ND, scale_gradient_D, bias_gradient_D, None


norm_of_sum.defvjp(forward, backward)


def call(
    plan: Plan,
    kernel: Any,
    name: str,
    programs: int,
    inputs: list[tuple[Any, pl.BlockSpec]],
    numbers: Any,
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
) -> Any:
    """Run a kernel: it gets the blocks of ``inputs``, ``numbers``, and those of ``outputs``."""
    params: Any = plgpu.CompilerParams(num_warps=4, num_stages=2)
    run = pl.pallas_call(
        functools.partial(kernel, plan),
        grid=(programs,),
        in_specs=[*(spec for _, spec in inputs), pl.BlockSpec((2,), lambda program: (0,))],
        out_specs=[spec for _, spec in outputs],
        out_shape=[shape for shape, _ in outputs],
        compiler_params=params,
        interpret=plan.interpret,
        name=name,
    )
    return run(*(array for array, _ in inputs), numbers)


def forward_kernel(
    plan: Plan,
    x_ref: Any,
    y_ref: Any,
    scale_ref: Any,
    bias_ref: Any,
    numbers_ref: Any,
    sum_ref: Any,
    out_ref: Any,
) -> None:
    """The sums of a block of tokens, and their norms."""
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, plan.stored_width), 1)
    is_inside = columns < plan.width
    first = pl.program_id(0) * np.int32(plan.rows)
    y_BD = load(y_ref, is_inside)
    y_BD = dropped(plan, y_BD, numbers_ref, first, columns)
    sum_BD = load(x_ref, is_inside) + y_BD
    plgpu.store(sum_ref, sum_BD.astype(sum_ref.dtype), mask=is_inside)

    normed_BD, _ = normalised(plan, sum_BD, is_inside)
    out_BD = normed_BD * load(scale_ref, is_inside) + load(bias_ref, is_inside)
    plgpu.store(out_ref, out_BD.astype(out_ref.dtype), mask=is_inside)


def backward_kernel(
    plan: Plan,
    upstream_ref: Any,
    sum_ref: Any,
    scale_ref: Any,
    numbers_ref: Any,
    sum_gradient_ref: Any,
    scale_gradient_ref: Any,
    bias_gradient_ref: Any,
    y_gradient_ref: Any = None,
) -> None:
    """The gradients of the sums of some blocks of tokens, and what these tokens add to the
    gradients of scale and bias. ``y_gradient_ref`` gets the gradient of y where dropout makes it
    another.
    """
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, plan.stored_width), 1)
    is_inside = columns < plan.width
    scale_D = load(scale_ref, is_inside)
    first = pl.program_id(0) * np.int32(plan.rows * plan.steps)

    def step(index: Any, carry: Any) -> Any:
        scale_gradient_D, bias_gradient_D = carry
        start = pl.multiple_of(index * np.int32(plan.rows), plan.rows)
        span = (pl.ds(start, plan.rows), slice(None))
        upstream_BD = load(upstream_ref.at[span], is_inside)
        sum_BD = load(sum_ref.at[span], is_inside)
        normed_BD, inverse_B1 = normalised(plan, sum_BD, is_inside)

        normed_gradient_BD = upstream_BD * scale_D
        mean_B1 = jnp.sum(normed_gradient_BD, 1, keepdims=True) / plan.width
        along_B1 = jnp.sum(normed_gradient_BD * normed_BD, 1, keepdims=True) / plan.width
        sum_gradient_BD = inverse_B1 * (normed_gradient_BD - mean_B1 - normed_BD * along_B1)
        plgpu.store(
            sum_gradient_ref.at[span],
            sum_gradient_BD.astype(sum_gradient_ref.dtype),
            mask=is_inside,
        )
        if y_gradient_ref is not None:
            y_gradient_BD = dropped(plan, sum_gradient_BD, numbers_ref, first + start, columns)
            plgpu.store(
                y_gradient_ref.at[span], y_gradient_BD.astype(y_gradient_ref.dtype), mask=is_inside
            )
        scale_gradient_D = scale_gradient_D + jnp.sum(upstream_BD * normed_BD, 0, keepdims=True)
        bias_gradient_D = bias_gradient_D + jnp.sum(upstream_BD, 0, keepdims=True)
        return scale_gradient_D, bias_gradient_D

    zeros = jnp.zeros((1, plan.stored_width), jnp.float32)
    scale_gradient_D, bias_gradient_D = jax.lax.fori_loop(0, plan.steps, step, (zeros, zeros))
    plgpu.store(scale_gradient_ref, scale_gradient_D, mask=is_inside)
    plgpu.store(bias_gradient_ref, bias_gradient_D, mask=is_inside)


def load(ref: Any, is_inside: Any) -> jax.Array:
    """A block in float32, zeros beyond the width."""
    return plgpu.load(ref, mask=is_inside, other=0.0).astype(jnp.float32)


def normalised(plan: Plan, sum_BD: jax.Array, is_inside: Any) -> tuple[jax.Array, jax.Array]:
    """(rows with mean 0 and deviation 1, [B, D]; one over the deviations they had, [B, 1])."""
    mean_B1 = jnp.sum(sum_BD, 1, keepdims=True) / plan.width
    centred_BD = jnp.where(is_inside, sum_BD - mean_B1, np.float32(0))
    variance_B1 = jnp.sum(centred_BD * centred_BD, 1, keepdims=True) / plan.width
    inverse_B1 = jax.lax.rsqrt(variance_B1 + np.float32(plan.epsilon))
    return centred_BD * inverse_B1, inverse_B1


def dropped(plan: Plan, x_BD: jax.Array, numbers_ref: Any, first: Any, columns: Any) -> jax.Array:
    """Dropout of a block whose first token is ``first``."""
    if not plan.rate:
        return x_BD
    row_B1 = first + jax.lax.broadcasted_iota(jnp.int32, (plan.rows, 1), 0)
    counter_BD = (row_B1 * np.int32(plan.width) + columns).astype(jnp.uint32)
    words = (numbers_ref[0].astype(jnp.uint32), numbers_ref[1].astype(jnp.uint32))
    keep_BD = bits_of(counter_BD, *words) >= np.uint32(round(plan.rate * 2**32))
    return jnp.where(keep_BD, x_BD * np.float32(1 / (1 - plan.rate)), np.float32(0))

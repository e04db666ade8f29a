"""norm(x + dropout(y)) and its gradient, each as one kernel for GPUs.

XLA makes six kernels of the two, which write the sum, its distance from the mean and that of the
upstream gradient in float32, and read them again. The two kernels here move no more than they must.
The forward one reads x and y, and writes the sum and its norm. The backward one reads the upstream
gradient and the sum, and writes the gradients of x and of y. A pre-norm block goes on with the sum
as well, whose gradient is then read, too, and added. Dropout's bits are those of
:class:`adapt.models.layers.Dropout`, made again in the backward pass.

Shapes in names: N tokens, D width, B tokens of a block.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
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
    is_centred: bool = True  # layer norm; else RMS norm
    has_y: bool = True  # else the sum is x
    is_pair: bool = False  # the sum is put out, too

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
    bias_D: jax.Array | None,
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
    (out,) = run(plan, x, y, scale_D, bias_D, words)
    return out


def sum_and_norm(
    x: jax.Array,
    y: jax.Array | None,
    scale_D: jax.Array,
    bias_D: jax.Array | None,
    words: jax.Array | None,
    *,
    epsilon: float,
    rate: float = 0.0,
    is_centred: bool = True,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """(x + dropout(y), its norm), [..., D] each: :func:`normalised_sum` for who needs both.

    Without ``y`` the sum is ``x``. Where it is not ``is_centred`` the norm is that of
    :class:`adapt.models.layers.RMSNorm`.
    """
    width = x.shape[-1]
    rate = rate if words is not None else 0.0
    has_y = y is not None
    plan = Plan(
        x.size // width, width, epsilon, rate, interpret, is_centred, has_y=has_y, is_pair=True
    )
    sum_, out = run(plan, x, y, scale_D, bias_D, words)
    return sum_, out


def run(
    plan: Plan, x: jax.Array, y: Any, scale_D: jax.Array, bias_D: Any, words: Any
) -> list[jax.Array]:
    """What :func:`norm_of_sum` puts out, in the shape of ``x``."""
    words = jnp.zeros(2, jnp.uint32) if words is None else words
    numbers = jax.lax.bitcast_convert_type(words, jnp.int32)
    x_ND = x.reshape(-1, plan.width)
    y_ND = y.reshape(-1, plan.width).astype(x.dtype) if plan.has_y else None
    scale_D = scale_D.astype(jnp.float32)
    bias_D = None if bias_D is None else bias_D.astype(jnp.float32)
    outputs: Any = norm_of_sum(plan, x_ND, y_ND, scale_D, bias_D, numbers)
    return [array_ND.reshape(x.shape) for array_ND in outputs]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm_of_sum(
    plan: Plan, x_ND: Any, y_ND: Any, scale_D: Any, bias_D: Any, numbers: Any
) -> tuple[jax.Array, ...]:
    """The norm, in a plan of a pair after the sum; ``numbers`` int32 [2] are the words' bits."""
    outputs, _ = forward(plan, x_ND, y_ND, scale_D, bias_D, numbers)
    return outputs


def forward(
    plan: Plan, x_ND: Any, y_ND: Any, scale_D: Any, bias_D: Any, numbers: Any
) -> tuple[tuple[jax.Array, ...], Any]:
    """What :func:`norm_of_sum` puts out, and what the backward pass needs."""
    block = pl.BlockSpec((plan.rows, plan.stored_width), lambda program: (program, 0))
    vector = pl.BlockSpec((1, plan.stored_width), lambda program: (0, 0))
    like = jax.ShapeDtypeStruct(x_ND.shape, x_ND.dtype)
    inputs = {"x": (x_ND, block), "scale": (scale_D[None], vector)}
    outputs = {"out": (like, block)}
    if plan.has_y:
        inputs["y"] = (y_ND, block)
        outputs["sum"] = (like, block)
    if bias_D is not None:
        inputs["bias"] = (bias_D[None], vector)
    programs = plan.tokens // plan.rows
    made = call(plan, forward_kernel, "norm_of_sum_forward", programs, inputs, numbers, outputs)
    sum_ND = made["sum"] if plan.has_y else x_ND
    results = (sum_ND, made["out"]) if plan.is_pair else (made["out"],)
    return results, (sum_ND, scale_D, bias_D is not None, numbers)


def backward(plan: Plan, residuals: Any, upstreams: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    """The gradients of x, y, scale and bias."""
    sum_ND, scale_D, has_bias, numbers = residuals
    *of_sum, upstream_ND = upstreams
    programs = plan.tokens // (plan.rows * plan.steps)
    block = pl.BlockSpec((plan.rows * plan.steps, plan.stored_width), lambda program: (program, 0))
    vector = pl.BlockSpec((1, plan.stored_width), lambda program: (0, 0))
    row = pl.BlockSpec((None, 1, plan.stored_width), lambda program: (program, 0, 0))
    like = jax.ShapeDtypeStruct(sum_ND.shape, sum_ND.dtype)
    partial = jax.ShapeDtypeStruct((programs, 1, plan.width), jnp.float32)
    inputs = {
        "upstream": (upstream_ND, block),
        "sum": (sum_ND, block),
        "scale": (scale_D[None], vector),
    }
    if of_sum:
        inputs["of_sum"] = (of_sum[0], block)
    outputs = {"sum_gradient": (like, block), "scale_gradient": (partial, row)}
    if has_bias:
        outputs["bias_gradient"] = (partial, row)
    if plan.rate:
        outputs["y_gradient"] = (like, block)
    made = call(plan, backward_kernel, "norm_of_sum_backward", programs, inputs, numbers, outputs)
    of_x = made["sum_gradient"]
    of_y = None
    if plan.has_y:
        of_y = made["y_gradient"] if plan.rate else of_x
    of_scale = made["scale_gradient"].sum((0, 1))
    of_bias = made["bias_gradient"].sum((0, 1)) if has_bias else None
    return of_x, of_y, of_scale, of_bias, None


norm_of_sum.defvjp(forward, backward)


Blocks = dict[str, tuple[Any, pl.BlockSpec]]
Refs = Mapping[str, Any]


def call(
    plan: Plan,
    kernel: Callable[..., None],
    name: str,
    programs: int,
    inputs: Blocks,
    numbers: Any,
    outputs: Blocks,
) -> dict[str, jax.Array]:
    """Run a kernel, which gets the blocks of ``inputs``, ``numbers`` and those of ``outputs`` by
    their names: the outputs by theirs.
    """
    params: Any = plgpu.CompilerParams(num_warps=4, num_stages=2)
    inputs = inputs | {"numbers": (numbers, pl.BlockSpec((2,), lambda program: (0,)))}
    names = [*inputs, *outputs]

    def body(*refs: Any) -> None:
        kernel(plan, dict(zip(names, refs, strict=True)))

    body.__name__ = name  # what the compiled program calls it
    run = pl.pallas_call(
        body,
        grid=(programs,),
        in_specs=[spec for _, spec in inputs.values()],
        out_specs=[spec for _, spec in outputs.values()],
        out_shape=[shape for shape, _ in outputs.values()],
        compiler_params=params,
        interpret=plan.interpret,
        name=name,
    )
    made = run(*(array for array, _ in inputs.values()))
    return dict(zip(outputs, made, strict=True))


def forward_kernel(plan: Plan, refs: Refs) -> None:
    """The sums of a block of tokens, and their norms."""
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, plan.stored_width), 1)
    is_inside = columns < plan.width
    first = pl.program_id(0) * np.int32(plan.rows)
    sum_BD = load(refs["x"], is_inside)
    if plan.has_y:
        y_BD = load(refs["y"], is_inside)
        sum_BD = sum_BD + dropped(plan, y_BD, refs["numbers"], first, columns)
        store(refs["sum"], sum_BD, is_inside)

    normed_BD, _ = normalised(plan, sum_BD, is_inside)
    out_BD = normed_BD * load(refs["scale"], is_inside)
    if "bias" in refs:
        out_BD = out_BD + load(refs["bias"], is_inside)
    store(refs["out"], out_BD, is_inside)


def backward_kernel(plan: Plan, refs: Refs) -> None:
    """The gradients of the sums of some blocks of tokens, and what these tokens add to the
    gradients of scale and bias. ``y_gradient`` is there where dropout makes it another.
    """
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, plan.stored_width), 1)
    is_inside = columns < plan.width
    scale_D = load(refs["scale"], is_inside)
    first = pl.program_id(0) * np.int32(plan.rows * plan.steps)

    def step(index: Any, carry: Any) -> Any:
        scale_gradient_D, bias_gradient_D = carry
        start = pl.multiple_of(index * np.int32(plan.rows), plan.rows)
        span = (pl.ds(start, plan.rows), slice(None))
        upstream_BD = load(refs["upstream"].at[span], is_inside)
        sum_BD = load(refs["sum"].at[span], is_inside)
        normed_BD, inverse_B1 = normalised(plan, sum_BD, is_inside)

        gradient_BD = upstream_BD * scale_D
        along_B1 = jnp.sum(gradient_BD * normed_BD, 1, keepdims=True) / plan.width
        if plan.is_centred:
            gradient_BD = gradient_BD - jnp.sum(gradient_BD, 1, keepdims=True) / plan.width
        gradient_BD = inverse_B1 * (gradient_BD - normed_BD * along_B1)
        if "of_sum" in refs:
            gradient_BD = gradient_BD + load(refs["of_sum"].at[span], is_inside)
        store(refs["sum_gradient"].at[span], gradient_BD, is_inside)
        if "y_gradient" in refs:
            of_y_BD = dropped(plan, gradient_BD, refs["numbers"], first + start, columns)
            store(refs["y_gradient"].at[span], of_y_BD, is_inside)
        scale_gradient_D = scale_gradient_D + jnp.sum(upstream_BD * normed_BD, 0, keepdims=True)
        if "bias_gradient" in refs:
            bias_gradient_D = bias_gradient_D + jnp.sum(upstream_BD, 0, keepdims=True)
        return scale_gradient_D, bias_gradient_D

    zeros = jnp.zeros((1, plan.stored_width), jnp.float32)
    scale_gradient_D, bias_gradient_D = jax.lax.fori_loop(0, plan.steps, step, (zeros, zeros))
    store(refs["scale_gradient"], scale_gradient_D, is_inside)
    if "bias_gradient" in refs:
        store(refs["bias_gradient"], bias_gradient_D, is_inside)


def store(ref: Any, block: jax.Array, is_inside: Any) -> None:
    """Write a block in the dtype of its array, nothing beyond the width."""
    plgpu.store(ref, block.astype(ref.dtype), mask=is_inside)


def load(ref: Any, is_inside: Any) -> jax.Array:
    """A block in float32, zeros beyond the width."""
    return plgpu.load(ref, mask=is_inside, other=0.0).astype(jnp.float32)


def normalised(plan: Plan, sum_BD: jax.Array, is_inside: Any) -> tuple[jax.Array, jax.Array]:
    """(rows over their deviations, of a centred norm from their means, [B, D]; one over the
    deviations, [B, 1]).
    """
    if plan.is_centred:
        mean_B1 = jnp.sum(sum_BD, 1, keepdims=True) / plan.width
        sum_BD = jnp.where(is_inside, sum_BD - mean_B1, np.float32(0))
    variance_B1 = jnp.sum(sum_BD * sum_BD, 1, keepdims=True) / plan.width
    inverse_B1 = jax.lax.rsqrt(variance_B1 + np.float32(plan.epsilon))
    return sum_BD * inverse_B1, inverse_B1


def dropped(plan: Plan, x_BD: jax.Array, numbers_ref: Any, first: Any, columns: Any) -> jax.Array:
    """Dropout of a block whose first token is ``first``."""
    if not plan.rate:
        return x_BD
    row_B1 = first + jax.lax.broadcasted_iota(jnp.int32, (plan.rows, 1), 0)
    counter_BD = (row_B1 * np.int32(plan.width) + columns).astype(jnp.uint32)
    words = (numbers_ref[0].astype(jnp.uint32), numbers_ref[1].astype(jnp.uint32))
    keep_BD = bits_of(counter_BD, *words) >= np.uint32(round(plan.rate * 2**32))
    return jnp.where(keep_BD, x_BD * np.float32(1 / (1 - plan.rate)), np.float32(0))

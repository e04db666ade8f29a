"""The layers of a transformer block, except attention, and what LoRA and adapters add to them.

Shapes in names: R rows, C tokens a row, D width.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adapt.models.accelerated import (
    device_of_program,
    has_own_gradients,
    nvidia_capability,
    packed_kernel,
)
from adapt.models.config import EncoderConfig
from adapt.models.counter_dropout import bits_of
from adapt.models.quantised import SCALE, Kernel, multiply

Batch = Mapping[str, Any]
WIDEST_NORM = 4096  # whose rows stay in the registers of a GPU's processor


def quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel 2016, 2)."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "quick_gelu": quick_gelu,
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


def gelu_by_erf(x: jax.Array) -> jax.Array:
    """GELU (Hendrycks and Gimpel 2016, 2) by erf in place of the erfc of :func:`flax.linen.gelu`.

    XLA makes 90 operations of erfc, more than its input and output take to move. The values differ
    by at most 1e-7 times ``x``.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ON_ACCELERATORS = ACTIVATIONS | {"gelu": gelu_by_erf}


def activate(name: str, x: jax.Array) -> jax.Array:
    """The activation of this name in :data:`ACTIVATIONS`, of every element.

    On an accelerator it is computed in float32 and rounded once, and so is its gradient, from ``x``
    alone: what XLA would keep of the forward pass for it is rounded, and more than ``x``, which is
    kept anyway.
    """
    return activate_from_input(name, x) if has_own_gradients() else ACTIVATIONS[name](x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activate_from_input(name: str, x: jax.Array) -> jax.Array:
    """:func:`activate` on an accelerator."""
    return ON_ACCELERATORS[name](x.astype(jnp.float32)).astype(x.dtype)


def activate_forward(name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The values, and what the backward pass needs."""
    return activate_from_input(name, x), x


def activate_backward(name: str, x: jax.Array, upstream: jax.Array) -> tuple[jax.Array]:
    """The gradient of ``x``."""
    # Without the barrier XLA finds what the forward pass computed, too, and keeps it.
    x, upstream = jax.lax.optimization_barrier((x, upstream))
    _, pull_back = jax.vjp(ON_ACCELERATORS[name], x.astype(jnp.float32))
    (gradient,) = pull_back(upstream.astype(jnp.float32))
    return (gradient.astype(x.dtype),)


activate_from_input.defvjp(activate_forward, activate_backward)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 bits of ``shape`` for dropout masks, those of :func:`bits_of` for each place.

    They are good enough for dropout, and neither for cryptography nor for sampling at large. An
    element costs two multiplications in the fusion that uses it, against some twenty rounds of
    threefry: on the CPU threefry took a fifth to a half of a training step.
    """
    words = jax.random.key_data(key).reshape(-1)
    counter = jax.lax.iota(jnp.uint32, math.prod(shape))
    return bits_of(counter, words[0], words[1]).reshape(shape)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014): zeros at ``rate``, else x / (1 - rate)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x
        threshold = jnp.uint32(round(self.rate * 2**32))
        keep = random_bits(self.make_rng("dropout"), x.shape) >= threshold
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))

    def seed_words(self) -> jax.Array:
        """Two words of this dropout's key, uint32 [2], for who makes bits of them in a kernel."""
        return jax.random.key_data(self.make_rng("dropout")).reshape(-1)[:2]


class Dense(nn.Module):
    """x [..., in] -> x @ kernel + bias [..., out], plus LoRA where it has this layer for a target.

    The kernel [in, out] and the bias [out] are stored in float32 and cast to ``dtype``. A frozen
    kernel may be stored in bfloat16 or int8: see :mod:`adapt.models.quantised`.
    """

    inputs: int
    outputs: int
    bias: bool = True
    init_range: float = 0.02
    dtype: Any = jnp.float32
    config: EncoderConfig | None = None  # None: LoRA can't target this layer

    @nn.compact
    def weights(self) -> tuple[Kernel, jax.Array | None]:
        """The kernel as it is stored, and the bias in compute dtype, for a caller that multiplies
        by several at once.
        """
        shape = (self.inputs, self.outputs)
        values = self.param("kernel", nn.initializers.normal(self.init_range), shape)
        kernel = Kernel(values, self.get_variable("params", SCALE))
        if not self.bias:
            return kernel, None
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
        return kernel, bias.astype(self.dtype)

    @nn.compact
    def low_rank(self, x: jax.Array, kernel: Kernel) -> jax.Array | None:
        """What LoRA adds to the output, or None where this layer is no target."""
        c = self.config
        if c is None or not c.lora_rank or not re.fullmatch(c.lora_targets, "/".join(self.path)):
            return None
        lora = LowRank(
            self.inputs,
            self.outputs,
            c.lora_rank,
            c.lora_scale,
            c.lora_magnitudes,
            self.dtype,
            name="lora",
        )
        return lora(x, kernel)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.weights()
        x = x.astype(self.dtype)
        update = self.low_rank(x, kernel)
        y = multiply(x, kernel)
        if bias is not None:
            y = y + bias
        if update is not None:
            y = y + update
        return y


# What DoRA divides by at least: a column of zeros, as pruning leaves it, stays one.
LEAST_LENGTH = 1e-12


class LowRank(nn.Module):
    """scale (x A) B (LoRA, Hu et al. 2021, eq. 3), [..., out]: zero at first, for B is.

    A [in, r] is drawn from N(0, 1 / in), B [r, out] is zeros. With ``magnitudes`` it is what makes
    the kernel m (W + scale A B) / |W + scale A B|, each column by its length, of W (DoRA, Liu et
    al. 2024, eq. 5). The magnitude m [out] has to be the length of W at first, which
    :func:`adapt.models.peft.init_peft` sees to.
    """

    inputs: int
    outputs: int
    rank: int
    scale: float
    magnitudes: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, kernel: Kernel) -> jax.Array:
        a = self.param("a", nn.initializers.normal(self.inputs**-0.5), (self.inputs, self.rank))
        b = self.param("b", nn.initializers.zeros, (self.rank, self.outputs))
        reduced = x @ a.astype(self.dtype)
        update = reduced @ b.astype(self.dtype) * self.scale
        if not self.magnitudes:
            return update
        magnitude = self.param("magnitude", nn.initializers.ones, (self.outputs,))
        updated_kernel = kernel.in_dtype(jnp.float32) + self.scale * (a @ b)
        length = jnp.linalg.norm(updated_kernel, axis=0)
        length = jnp.maximum(length, LEAST_LENGTH)
        # The length is a constant to the gradient (4.3 there), which takes less memory.
        factor = magnitude / jax.lax.stop_gradient(length)
        # The layer adds this to x W, and the sum is to be factor * (x W + update).
        of_kernel = multiply(x, kernel) * (factor - 1).astype(self.dtype)
        of_update = factor.astype(self.dtype) * update
        return of_kernel + of_update


def has_norm_kernel(x: jax.Array) -> bool:
    """Whether :mod:`adapt.models.norm_kernels` may be used here and take rows such as those of x.

    On a mesh XLA divides what is computed, for which a kernel has no rule.
    """
    allowed = packed_kernel.get()
    if allowed is None or allowed.mesh or x.shape[-1] > WIDEST_NORM:
        return False
    return nvidia_capability(device_of_program()) >= 8


class Norm(nn.Module):
    """Layer normalisation (Ba et al. 2016), computed in float32 whatever the compute dtype."""

    epsilon: float
    dtype: Any = jnp.float32
    bias: bool = True

    def of_sum(self, x: jax.Array, y: jax.Array, dropout: Dropout | None) -> jax.Array:
        """The norm of x + dropout(y), which a GPU computes by a kernel where a program allows it.

        None is no dropout. The bits are those of :class:`Dropout`.
        """
        if not (self.bias and has_norm_kernel(x)):
            y = y if dropout is None else dropout(y, deterministic=False)
            return self(x + y)
        from adapt.models import norm_kernels

        scale, bias = self.parameters(x.shape[-1])
        return norm_kernels.normalised_sum(
            x.astype(self.dtype),
            y,
            scale,
            bias,
            dropout.seed_words() if dropout else None,
            epsilon=self.epsilon,
            rate=dropout.rate if dropout else 0.0,
        )

    def with_sum(
        self, x: jax.Array, y: jax.Array | None, dropout: Dropout | None
    ) -> tuple[jax.Array, jax.Array]:
        """(x + dropout(y), its norm), for a pre-norm block: see :func:`sum_and_norm`."""
        return sum_and_norm(self, x, y, dropout)

    @nn.compact
    def parameters(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        """Scale and bias, [width] each; None without a bias."""
        scale = self.param("scale", nn.initializers.ones, (width,))
        if not self.bias:
            return scale, None
        return scale, self.param("bias", nn.initializers.zeros, (width,))

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        x = x * scale
        if self.bias:
            x = x + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return x.astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale (Zhang and Sennrich 2019, eq. 4), over the last axis.

    It is computed in float32 whatever the compute dtype. With ``offset`` the parameter is the
    scale's distance from 1, as Gemma stores it: weight decay then draws the scale to 1.
    """

    epsilon: float
    dtype: Any = jnp.float32
    offset: bool = False

    def with_sum(
        self, x: jax.Array, y: jax.Array | None, dropout: Dropout | None
    ) -> tuple[jax.Array, jax.Array]:
        """(x + dropout(y), its norm), for a pre-norm block: see :func:`sum_and_norm`."""
        return sum_and_norm(self, x, y, dropout)

    @nn.compact
    def parameters(self, width: int) -> tuple[jax.Array, None]:
        """By what a normalised row is multiplied, float32 [width], and no bias."""
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", init, (width,)).astype(jnp.float32)
        return (1.0 + scale if self.offset else scale), None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        x = x * (1.0 + scale) if self.offset else x * scale
        return x.astype(self.dtype)


def sum_and_norm(
    norm: Norm | RMSNorm, x: jax.Array, y: jax.Array | None, dropout: Dropout | None
) -> tuple[jax.Array, jax.Array]:
    """(x + dropout(y), its norm), which a GPU computes by a kernel where a program allows it.

    The gradients of both meet in the kernel of the backward pass. Without ``y`` the sum is ``x``;
    None is no dropout. The bits are those of :class:`Dropout`.
    """
    if not has_norm_kernel(x):
        if y is not None:
            x = x + (y if dropout is None else dropout(y, deterministic=False))
        return x, norm(x)
    from adapt.models import norm_kernels

    scale, bias = norm.parameters(x.shape[-1])
    return norm_kernels.sum_and_norm(
        x.astype(norm.dtype),
        y,
        scale,
        bias,
        dropout.seed_words() if dropout else None,
        epsilon=norm.epsilon,
        rate=dropout.rate if dropout else 0.0,
        is_centred=isinstance(norm, Norm),
    )


def norm_of(config: EncoderConfig, dtype: Any, name: str | None = None) -> Norm | RMSNorm:
    """A norm of the config's kind."""
    if config.norm_kind == "rms":
        return RMSNorm(config.norm_epsilon, dtype, config.norm_offset, name=name)
    return Norm(config.norm_epsilon, dtype, config.norm_bias, name=name)


class MLP(nn.Module):
    """Two dense layers with an activation between them (Vaswani et al. 2017, 3.3).

    A gated one has a third layer: down(activation(gate(x)) * up(x)) (Shazeer 2020, eq. 6).
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        options = (c.init_range, self.dtype, c)
        has_down_bias = c.mlp_bias or c.down_bias
        up = Dense(c.width, c.mlp_width, c.mlp_bias, *options, name="up")
        down = Dense(c.mlp_width, c.width, has_down_bias, *options, name="down")
        activation = functools.partial(activate, c.activation)
        if not c.gated_mlp:
            return down(activation(up(x)))
        gate = Dense(c.width, c.mlp_width, c.mlp_bias, *options, name="gate")
        return down(activation(gate(x)) * up(x))


class Convolution(nn.Module):
    """norm(x + activation(convolution)) [R, C, D], where x is a block's output and the convolution
    reads each token of the block's input beside its neighbours (DeBERTa-v2; He et al. 2021).

    It is a dense layer of the neighbours' states, from the first to the last, side by side. Where
    there is none, or it is of another example, zeros stand for it.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs_RCD: jax.Array, x_RCD: jax.Array, segments_RC: jax.Array, deterministic: bool
    ) -> jax.Array:
        c = self.config
        reach = c.convolution // 2
        tokens = inputs_RCD.shape[1]
        around_RCD = jnp.pad(inputs_RCD, ((0, 0), (reach, reach), (0, 0)))
        segments_around_RC = jnp.pad(segments_RC, ((0, 0), (reach, reach)), constant_values=-1)
        neighbours = []
        for start in range(c.convolution):
            is_own_RC = segments_around_RC[:, start : start + tokens] == segments_RC
            states_RCD = around_RCD[:, start : start + tokens]
            neighbours.append(jnp.where(is_own_RC[..., None], states_RCD, 0))
        dense = Dense(
            c.convolution * c.width, c.width, True, c.init_range, self.dtype, c, name="dense"
        )
        y_RCD = dense(jnp.concatenate(neighbours, -1))
        y_RCD = Dropout(c.dropout)(y_RCD, deterministic)
        y_RCD = ACTIVATIONS[c.convolution_activation](y_RCD)
        return norm_of(c, self.dtype, name="norm")(x_RCD + y_RCD)


class Adapter(nn.Module):
    """A bottleneck with a residual (Houlsby et al. 2019, 2.1).

    It is the identity at first, for ``up`` starts at zero.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        down = Dense(c.width, c.adapter_width, dtype=self.dtype, name="down")
        up = Dense(c.adapter_width, c.width, init_range=0.0, dtype=self.dtype, name="up")
        return x + up(ACTIVATIONS[c.activation](down(x)))

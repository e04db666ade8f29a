"""The layers of a transformer block, and what adaptation may add to them: LoRA, bottleneck adapters, prefixes.

Shapes in names: R rows, C tokens a row, T tokens looked at, D width, H heads, K width of a head.
"""

import contextlib
import contextvars
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adapt.models.config import EncoderConfig

Batch = Mapping[str, Any]

# The device that programs are compiled for, where it is none of this process's.
target_device: contextvars.ContextVar[Any] = contextvars.ContextVar("target_device", default=None)
# Whether attention may be a library's kernel, which can be neither mapped nor differentiated twice: None: no; 0: yes; from 1
# on: yes, in groups of a mesh that divides the heads into so many parts.
flash_groups: contextvars.ContextVar[int | None] = contextvars.ContextVar(
    "flash_groups", default=None
)


@contextlib.contextmanager
def set_contextvar(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """Inside ``with``: the variable has this value."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": nn.gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "silu": nn.silu,
    "tanh": nn.tanh,
}


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """uint32 bits for dropout masks: the murmur3 finaliser (Appleby) over a counter, keyed between its rounds.

    Not for cryptography nor for sampling at large, but each element costs two multiplications in the fusion that uses
    it, against some twenty rounds of threefry: on the CPU that was a fifth to a half of a training step.
    """
    words = jax.random.key_data(key).reshape(-1)
    x = jax.lax.iota(jnp.uint32, math.prod(shape)) ^ words[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B) + words[1]
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return (x ^ (x >> 16)).reshape(shape)


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014)."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x
        keep = random_bits(self.make_rng("dropout"), x.shape) >= jnp.uint32(
            round(self.rate * 2**32)
        )
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros((), x.dtype))


class Weights(nn.Module):
    """The kernel [in, out] and bias [out] of a dense layer, in compute dtype, for the caller to multiply."""

    inputs: int
    outputs: int
    bias: bool = True
    init_range: float = 0.02
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param(
            "kernel", nn.initializers.normal(self.init_range), (self.inputs, self.outputs)
        )
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,)) if self.bias else None
        return kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)

    @nn.compact
    def low_rank(self, x: jax.Array, c: EncoderConfig) -> jax.Array | None:
        """LoRA (Hu et al. 2021, eq. 3): alpha / r (x A) B, [..., out], 0 at first; None where this layer is no target."""
        if not c.lora_rank or not re.fullmatch(c.lora_targets, "/".join(self.path)):
            return None
        return LowRank(
            self.inputs, self.outputs, c.lora_rank, c.lora_alpha, self.dtype, name="lora"
        )(x)


class Dense(Weights):
    """x [..., in] -> x kernel + bias [..., out]; with a config, plus LoRA where it makes this layer a target."""

    config: EncoderConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override] - Weights takes no x
        kernel, bias = super().__call__()
        x = x.astype(self.dtype)
        added = self.low_rank(x, self.config) if self.config else None
        x = x @ kernel
        x = x if bias is None else x + bias
        return x if added is None else x + added


class LowRank(nn.Module):
    """alpha / r (x A) B with A [in, r] from N(0, 1 / in) and B [r, out] of zeros."""

    inputs: int
    outputs: int
    rank: int
    alpha: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a = self.param("a", nn.initializers.normal(self.inputs**-0.5), (self.inputs, self.rank))
        b = self.param("b", nn.initializers.zeros, (self.rank, self.outputs))
        return x @ a.astype(self.dtype) @ b.astype(self.dtype) * (self.alpha / self.rank)


class Norm(nn.Module):
    """Layer normalisation (Ba et al. 2016); statistics in float32 whatever the compute dtype."""

    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale + bias).astype(self.dtype)


def project(
    x_RCD: jax.Array,
    kernels: Sequence[jax.Array],
    biases: Sequence[Any],
    added: Sequence[Any],
    heads: int,
) -> jax.Array:
    """Query, key and value [3, R, H, C, K] in one matrix product, though their parameters are separate leaves.

    ``added`` is what LoRA adds to each of them, or None.
    """
    rows, tokens, width = x_RCD.shape
    x = x_RCD @ jnp.concatenate(kernels, 1)
    x = x if biases[0] is None else x + jnp.concatenate(biases)
    x = x.reshape(rows, tokens, 3, width)
    for part, more in enumerate(added):
        x = x if more is None else x.at[:, :, part].add(more)
    return x.reshape(rows, tokens, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)


def attend(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    mask: jax.Array | None,
    drop: Callable[[jax.Array], jax.Array] | None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v by head (Vaswani et al. 2017, eq. 1): [R, H, C, K]; ``drop`` is dropout on the weights.

    Without dropout: on a GPU the kernel of its library where it may be (see :meth:`adapt.models.Model.allow_fused_attention`) and takes it,
    else there and on a TPU JAX's own. On the CPU heads come before tokens, the layout that XLA multiplies fastest there, and
    the weights are divided by their sum after the product with v, which is smaller than they are.
    """
    device = target_device.get() or jax.local_devices()[0]
    if drop is None and device.platform in ("gpu", "tpu"):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_RHCK, k_RHTK, v_RHTK))
        kernel = flash if has_flash(device, q, k) else jax.nn.dot_product_attention
        return kernel(q, k, v, mask=mask).transpose(0, 2, 1, 3)
    scores_RHCT = jnp.einsum("RHCK,RHTK->RHCT", q_RHCK * q_RHCK.shape[-1] ** -0.5, k_RHTK).astype(
        jnp.float32
    )
    if mask is not None:
        scores_RHCT = scores_RHCT + jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    weights_RHCT = jnp.exp(scores_RHCT - jax.lax.stop_gradient(scores_RHCT.max(-1, keepdims=True)))
    total_RHC1 = weights_RHCT.sum(-1, keepdims=True)
    weights_RHCT = (weights_RHCT if drop is None else drop(weights_RHCT)).astype(v_RHTK.dtype)
    return (jnp.einsum("RHCT,RHTK->RHCK", weights_RHCT, v_RHTK) / total_RHC1).astype(v_RHTK.dtype)


def has_flash(device: Any, q_RCHK: jax.Array, k_RTHK: jax.Array) -> bool:
    """Whether cuDNN's flash attention may be and takes it: an NVIDIA GPU from Ampere on, bfloat16, K in eights up to 128."""
    capability = re.match(
        r"(\d+)\.\d", str(getattr(device, "compute_capability", ""))
    )  # of an AMD GPU it is a name
    parts = flash_groups.get()
    if (
        parts is None
        or capability is None
        or int(capability[1]) < 8
        or q_RCHK.dtype != jnp.bfloat16
    ):
        return False
    (*_, heads, width), odd = q_RCHK.shape, q_RCHK.shape[1] % 2 or k_RTHK.shape[1] % 2
    return (
        width <= 128 and width % 8 == 0 and (parts == 0 or (heads % parts == 0 and not odd))
    )  # see flash


def flash(
    q_RCHK: jax.Array, k_RTHK: jax.Array, v_RTHK: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """cuDNN's attention, which never writes the weights to memory (Dao et al. 2022): [R, C, H, K].

    It has no gradient for odd numbers of tokens: they get one more that nothing looks at. JAX's rule for groups of it wants
    a mask for every head, and takes no lengths that are the same in all of them; for meshes, whole heads.
    """
    (rows, tokens, heads, _), keys = q_RCHK.shape, k_RTHK.shape[1]
    lengths = jnp.full(rows, keys, jnp.int32) if keys % 2 and mask is None else None
    if mask is not None:
        mask = jnp.pad(mask, [(0, 0), (0, 0), (0, tokens % 2), (0, keys % 2)])
        mask = (
            jnp.broadcast_to(mask, (rows, heads, *mask.shape[2:])) if flash_groups.get() else mask
        )
    q, k, v = (
        jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)]) for x in (q_RCHK, k_RTHK, v_RTHK)
    )
    mixed = jax.nn.dot_product_attention(
        q, k, v, mask=mask, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return mixed[:, :tokens]


class Prefix(nn.Module):
    """Keys and values that every token of a layer looks at before all others (Li and Liang 2021, eq. 3): [P, D] each."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, k_RHCK: jax.Array, v_RHCK: jax.Array, mask: jax.Array | None
    ) -> tuple[Any, Any, Any]:
        """(keys, values [R, H, P + C, K], the mask of both)."""
        c, (rows, heads, _, width) = self.config, k_RHCK.shape
        extended = []
        for name, x in (("key", k_RHCK), ("value", v_RHCK)):
            first_PD = self.param(
                name, nn.initializers.normal(c.init_range), (c.prefix_tokens, c.width)
            )
            first = first_PD.astype(self.dtype).reshape(-1, heads, width).transpose(1, 0, 2)
            extended.append(jnp.concatenate([jnp.broadcast_to(first, (rows, *first.shape)), x], 2))
        if mask is not None:
            mask = jnp.concatenate([jnp.ones((*mask.shape[:-1], c.prefix_tokens), bool), mask], -1)
        return *extended, mask


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, 3.2), block-diagonal over segments, causal where the family is."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, mask_R1CC: jax.Array | None, deterministic: bool
    ) -> jax.Array:
        c = self.config
        width = x_RCD.shape[-1]
        x_RCD = x_RCD.astype(self.dtype)
        parts = [
            Weights(width, width, c.qkv_bias, c.init_range, self.dtype, name=n)
            for n in ("query", "key", "value")
        ]
        kernels, biases = zip(*(part() for part in parts), strict=True)
        added = [part.low_rank(x_RCD, c) for part in parts]
        q, k, v = project(x_RCD, kernels, biases, added, c.heads)
        if c.prefix_tokens:
            k, v, mask_R1CC = Prefix(c, self.dtype, name="prefix")(k, v, mask_R1CC)
        dropout = Dropout(c.attention_dropout)
        dry = deterministic or not c.attention_dropout
        mixed_RHCK = attend(
            q, k, v, mask_R1CC, None if dry else lambda weights: dropout(weights, False)
        )
        mixed_RCD = mixed_RHCK.transpose(0, 2, 1, 3).reshape(x_RCD.shape)
        return Dense(width, width, True, c.init_range, self.dtype, c, name="output")(mixed_RCD)


class MLP(nn.Module):
    """Two dense layers with an activation between."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = Dense(c.width, c.mlp_width, True, c.init_range, self.dtype, c, name="up")(x)
        return Dense(c.mlp_width, c.width, True, c.init_range, self.dtype, c, name="down")(
            ACTIVATIONS[c.activation](x)
        )


class Adapter(nn.Module):
    """A bottleneck with a residual (Houlsby et al. 2019, 2.1), the identity at first."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        low = ACTIVATIONS[c.activation](
            Dense(c.width, c.adapter_width, dtype=self.dtype, name="down")(x)
        )
        return x + Dense(c.adapter_width, c.width, init_range=0.0, dtype=self.dtype, name="up")(low)


class Block(nn.Module):
    """Attention and MLP with residuals; the norm after each sum (BERT) or before each branch (GPT-2, ViT)."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, deterministic: bool) -> jax.Array:
        c = self.config
        branches = (
            (
                "attention",
                lambda x: Attention(c, self.dtype, name="attention")(x, mask, deterministic),
            ),
            ("mlp", lambda x: MLP(c, self.dtype, name="mlp")(x)),
        )
        for name, branch in branches:
            norm = Norm(c.norm_epsilon, self.dtype, name=f"{name}_norm")
            drop = Dropout(c.dropout)
            y = branch(norm(x) if c.pre_norm else x)
            y = Adapter(c, self.dtype, name=f"{name}_adapter")(y) if c.adapter_width else y
            x = x + drop(y, deterministic)
            x = x if c.pre_norm else norm(x)
        return x

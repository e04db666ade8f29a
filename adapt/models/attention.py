"""Self-attention on packed rows: a reference in JAX, and kernels behind one function.

Shapes in names: R rows, C tokens a row (queries), T tokens attended to (keys), D width, H heads, G
heads of keys and values, K width of a head.
"""

import contextvars
import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from adapt.models.accelerated import (
    PackedKernel,
    device_of_program,
    nvidia_capability,
    packed_kernel,
    set_contextvar,
)
from adapt.models.attention_pattern import AttentionPattern
from adapt.models.config import EncoderConfig
from adapt.models.counter_dropout import drop_weights
from adapt.models.layers import Dense, Dropout, RMSNorm
from adapt.models.long_attention import attend_in_parts, is_long
from adapt.models.patch_places import PatchBias
from adapt.models.quantised import Kernel, multiply
from adapt.models.relative import RelativeBias, disentangled_bias
from adapt.models.rotary import Rotation

# How many parts tensor parallelism cuts the heads into; 0 without a mesh. None: cuDNN's attention
# must not be used, for it has no rule for vmap, jvp or a second derivative.
flash_groups: contextvars.ContextVar[int | None] = contextvars.ContextVar(
    "flash_groups", default=None
)


HEAD_AXIS = "tensor"  # of a mesh: the one that divides heads
BYTES_ON_A_TPU = 8 << 20  # of its fast memory, for keys and values of a head


def allow_packed_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, in whose trace attention may be this project's kernel, also under
    :func:`jax.vmap`. It must not differentiate twice.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any) -> Any:
        with set_contextvar(packed_kernel, PackedKernel()):
            return function(*arguments)

    return wrapped


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, 3.2): x [R, C, D] -> [R, C, D].

    Where there are fewer heads of keys and values than of queries, each serves a group of them
    (Ainslie et al. 2023, 2.2).
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_RCD: jax.Array,
        pattern: AttentionPattern,
        deterministic: bool,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        c = self.config
        width = x_RCD.shape[-1]
        x_RCD = x_RCD.astype(self.dtype)

        layers = self.projections(width)
        projected, joint_RC3HK = self.project(x_RCD, layers)
        q, k, v = projected
        if c.qk_norm:
            q = RMSNorm(c.norm_epsilon, self.dtype, c.norm_offset, name="query_norm")(q)
            k = RMSNorm(c.norm_epsilon, self.dtype, c.norm_offset, name="key_norm")(k)
        if rotation is not None:
            q = rotation.rotate(q)
            k = rotation.rotate(k)
        pattern = self.with_own_bias(pattern, q, k, layers, deterministic)
        if c.prefix_tokens:
            # A prefix has no places, so that its keys are not rotated.
            k, v = Prefix(c, self.dtype, name="prefix")(k, v)
            pattern = pattern.with_prefix(c.prefix_tokens)
        # From here on all heads have keys and values, and scores the scale that kernels know.
        k, v = (repeat_heads(states, c.heads) for states in (k, v))
        q = prescale(q, c.attention_scale)
        if not all(map(operator.is_, (q, k, v), projected)):
            joint_RC3HK = None  # what it holds is not what attends

        dropout = None
        if not deterministic and c.attention_dropout:
            dropout = Dropout(c.attention_dropout)
        if self.is_mutable_collection("intermediates"):  # asked for: Model.attention_maps
            self.sow("intermediates", "weights", attention_weights(q, k, pattern))
        mixed_RHCK = attend(q, k, v, pattern, dropout, joint_RC3HK)
        mixed = mixed_RHCK.transpose(0, 2, 1, 3).reshape(*x_RCD.shape[:2], c.query_width)
        output = Dense(
            c.query_width, width, c.output_bias, c.init_range, self.dtype, c, name="output"
        )
        return output(mixed)

    @nn.nowrap
    def projections(self, width: int) -> list[Dense]:
        """The dense layers of query, key and value."""
        c = self.config
        options = (c.init_range, self.dtype, c)
        return [
            Dense(width, c.query_width, c.qkv_bias and c.query_bias, *options, name="query"),
            Dense(width, c.key_width, c.qkv_bias and c.key_bias, *options, name="key"),
            Dense(width, c.key_width, c.qkv_bias and c.value_bias, *options, name="value"),
        ]

    @nn.nowrap
    def project(
        self, x_RCD: jax.Array, layers: Sequence[Dense]
    ) -> tuple[tuple[jax.Array, ...], jax.Array | None]:
        """(queries, keys and values [R, H, C, K], the same in one array [R, C, 3, H, K], where they
        are as wide as each other).
        """
        c = self.config
        if c.query_width != c.key_width:
            return tuple(split_heads(layer(x_RCD), c.width_of_head) for layer in layers), None
        kernels, biases = zip(*(layer.weights() for layer in layers), strict=True)
        pairs = zip(layers, kernels, strict=True)
        lora_updates = [layer.low_rank(x_RCD, kernel) for layer, kernel in pairs]
        joint_RC3HK = project(x_RCD, kernels, biases, lora_updates, c.heads)
        # Each by itself: XLA transposes all three again for each that is cut out of them later.
        q, k, v = (joint_RC3HK[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
        return (q, k, v), joint_RC3HK

    @nn.nowrap
    def with_own_bias(
        self,
        pattern: AttentionPattern,
        q_RHCK: jax.Array,
        k_RHCK: jax.Array,
        layers: Sequence[Dense],
        deterministic: bool,
    ) -> AttentionPattern:
        """The pattern with what this block itself adds to the scores by how far tokens lie apart."""
        c = self.config
        if c.relative_per_block:
            bias = RelativeBias(c, name="relative")(q_RHCK.shape[2])
            pattern = dataclasses.replace(pattern, bias=bias)
        if pattern.relative is not None:
            bias = self.relative_bias(q_RHCK, k_RHCK, pattern.relative, layers, deterministic)
            pattern = dataclasses.replace(pattern, bias=bias, relative=None)
        if c.relative_patches == "layer":
            bias_HTT = PatchBias(c, name="relative")()
            pattern = dataclasses.replace(pattern, bias=bias_HTT)
        return pattern

    @nn.nowrap
    def relative_bias(
        self,
        q_RHCK: jax.Array,
        k_RHCK: jax.Array,
        states_UD: jax.Array,
        layers: Sequence[Dense],
        deterministic: bool,
    ) -> jax.Array:
        """What DeBERTa adds to the scores, float32 [R, H, C, C], from its states of differences.

        They go through the layers of the tokens' queries and keys, or through their own.
        """
        c = self.config
        states_UD = Dropout(c.dropout)(states_UD, deterministic)

        def of_heads(layer: Dense, name: str) -> jax.Array:
            if c.relative_kernels:
                layer = Dense(c.width, c.query_width, True, c.init_range, self.dtype, c, name=name)
            return split_heads(layer(states_UD)[None], c.width_of_head)[0]

        keys = of_heads(layers[1], "position_key") if "c2p" in c.relative_terms else None
        queries = of_heads(layers[0], "position_query") if "p2c" in c.relative_terms else None
        scale = c.attention_scale or q_RHCK.shape[-1] ** -0.5
        return disentangled_bias(c, q_RHCK, k_RHCK, keys, queries, scale)


def split_heads(x: jax.Array, head_width: int) -> jax.Array:
    """[R, C, H * K] -> [R, H, C, K]."""
    rows, tokens, _ = x.shape
    return x.reshape(rows, tokens, -1, head_width).transpose(0, 2, 1, 3)


def repeat_heads(x_RGTK: jax.Array, heads: int) -> jax.Array:
    """Keys or values [R, H, T, K] of all heads, those of each group side by side."""
    groups = x_RGTK.shape[1]
    return x_RGTK if groups == heads else jnp.repeat(x_RGTK, heads // groups, axis=1)


def prescale(q_RHCK: jax.Array, scale: float) -> jax.Array:
    """Queries whose scores have this scale after :func:`attend` divides them by sqrt(K). A scale of
    0 is that division alone.
    """
    width = q_RHCK.shape[-1]
    return q_RHCK if scale in (0, width**-0.5) else q_RHCK * (scale * width**0.5)


def project(
    x_RCD: jax.Array,
    kernels: Sequence[Kernel],
    biases: Sequence[jax.Array | None],
    lora_updates: Sequence[jax.Array | None],
    heads: int,
) -> jax.Array:
    """Query, key and value, [R, C, 3, H, K], by one matrix product of their three kernels [D, H *
    K].

    ``lora_updates`` [R, C, H * K] are added to each of them; None adds nothing.
    """
    rows, tokens, _ = x_RCD.shape
    width = kernels[0].values.shape[1]
    x = multiply(x_RCD, *kernels)
    if any(bias is not None for bias in biases):
        x = x + jnp.concatenate([zeros_for_none(bias, width, x.dtype) for bias in biases])
    x = x.reshape(rows, tokens, 3, width)
    for index, update in enumerate(lora_updates):
        if update is not None:
            x = x.at[:, :, index].add(update)
    return x.reshape(rows, tokens, 3, heads, width // heads)


def zeros_for_none(bias_D: jax.Array | None, width: int, dtype: Any) -> jax.Array:
    """The bias of a layer, zeros where it has none."""
    return jnp.zeros(width, dtype) if bias_D is None else bias_D


class Prefix(nn.Module):
    """Puts trainable keys and values before those of the tokens (Li and Liang 2021, eq. 3).

    Every token attends to them: k, v [R, G, C, K] -> k, v [R, G, P + C, K]. The parameters ``key``
    and ``value`` are [P, G * K].
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, k_RHCK: jax.Array, v_RHCK: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.prepend("key", k_RHCK), self.prepend("value", v_RHCK)

    @nn.nowrap
    def prepend(self, name: str, x_RHCK: jax.Array) -> jax.Array:
        """The parameter ``name`` before the tokens of ``x``: [R, H, P + C, K]."""
        c = self.config
        rows, heads, _, width = x_RHCK.shape
        shape = (c.prefix_tokens, c.key_width)
        prefix_PD = self.param(name, nn.initializers.normal(c.init_range), shape)
        prefix_PHK = prefix_PD.astype(self.dtype).reshape(-1, heads, width)
        prefix_HPK = prefix_PHK.transpose(1, 0, 2)
        prefix_RHPK = jnp.broadcast_to(prefix_HPK, (rows, *prefix_HPK.shape))
        return jnp.concatenate([prefix_RHPK, x_RHCK], 2)


def attend(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    pattern: AttentionPattern,
    dropout: Dropout | None,
    joint_RC3HK: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v of each head (Vaswani et al. 2017, eq. 1): [R, H, C, K].

    ``pattern`` says who attends to whom. ``dropout`` is that of the weights, or None.
    ``joint_RC3HK`` are q, k and v once more, as they lie in memory where one product wrote them.

    A GPU or TPU computes by a kernel where a program allows it (see
    :meth:`adapt.models.Model.allow_fused_attention`): cuDNN's where there is no dropout and it
    takes the arrays, otherwise :func:`adapt.models.packed_attention.packed_attention`. Where
    neither may be used it is XLA's, and dropout has the bits of the kernel.
    """
    device = device_of_program()
    queries, keys = q_RHCK.shape[2], k_RHTK.shape[2]
    if device.platform not in ("gpu", "tpu"):
        if dropout is None and is_long(q_RHCK, pattern):
            return attend_in_parts(plain_attention, q_RHCK, k_RHTK, v_RHTK, pattern)
        drop = functools.partial(dropout, deterministic=False) if dropout else None
        mask = pattern.mask(queries, keys)
        return reference_attention(q_RHCK, k_RHTK, v_RHTK, mask, drop, pattern.bias)

    q_RCHK, k_RTHK, v_RTHK = (x.transpose(0, 2, 1, 3) for x in (q_RHCK, k_RHTK, v_RHTK))
    is_plain = dropout is None and pattern.bias is None
    if is_plain and can_use_flash(device, q_RCHK, k_RTHK):
        mixed_RCHK = flash_attention(q_RCHK, k_RTHK, v_RTHK, pattern.mask(queries, keys))
        return mixed_RCHK.transpose(0, 2, 1, 3)

    rate = dropout.rate if dropout else 0.0
    words = dropout.seed_words() if dropout else jnp.zeros(2, jnp.uint32)
    if can_use_packed_kernel(device, q_RHCK, k_RHTK, pattern):
        if joint_RC3HK is not None and can_use_joint_kernel(device):
            return by_joint_kernel(joint_RC3HK, pattern, rate, words)
        return by_packed_kernel(q_RHCK, k_RHTK, v_RHTK, pattern, rate, words, device.platform)
    mask = pattern.mask(queries, keys)
    if dropout:
        drop = drop_weights(words, rate)
        return reference_attention(q_RHCK, k_RHTK, v_RHTK, mask, drop, pattern.bias)
    bias = pattern.bias
    if bias is not None and bias.ndim == 3:
        bias = bias[None]
    mixed_RCHK = jax.nn.dot_product_attention(q_RCHK, k_RTHK, v_RTHK, bias=bias, mask=mask)
    return mixed_RCHK.transpose(0, 2, 1, 3)


def plain_attention(
    q_RHCK: jax.Array, k_RHTK: jax.Array, v_RHTK: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """:func:`reference_attention` without dropout and bias."""
    return reference_attention(q_RHCK, k_RHTK, v_RHTK, mask, None)


def reference_attention(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    mask: jax.Array | None,
    drop: Callable[[jax.Array], jax.Array] | None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """What :func:`attend` computes, in plain JAX and laid out for CPUs.

    ``mask`` bool [R or 1, 1 or H, C, T] is True where a query attends to a key; None: everywhere.

    Heads come before tokens, the layout that XLA multiplies fastest on a CPU. The division by the
    sum of the weights comes after the product with v, which is smaller than they are.
    """
    scores_RHCT = attention_scores(q_RHCK, k_RHTK, mask, bias)
    highest_RHC1 = scores_RHCT.max(-1, keepdims=True)
    highest_RHC1 = jax.lax.stop_gradient(highest_RHC1)
    weights_RHCT = jnp.exp(scores_RHCT - highest_RHC1)
    total_RHC1 = weights_RHCT.sum(-1, keepdims=True)
    if drop is not None:
        weights_RHCT = drop(weights_RHCT)
    weights_RHCT = weights_RHCT.astype(v_RHTK.dtype)
    mixed_RHCK = jnp.einsum("RHCT,RHTK->RHCK", weights_RHCT, v_RHTK) / total_RHC1
    return mixed_RHCK.astype(v_RHTK.dtype)


def attention_scores(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """q k^T / sqrt(K) + bias, float32 [R, H, C, T]; the lowest float32 where ``mask`` is False."""
    scale = q_RHCK.shape[-1] ** -0.5
    scores_RHCT = jnp.einsum("RHCK,RHTK->RHCT", q_RHCK * scale, k_RHTK)
    scores_RHCT = scores_RHCT.astype(jnp.float32)
    if bias is not None:
        scores_RHCT = scores_RHCT + bias
    if mask is None:
        return scores_RHCT
    lowest = jnp.finfo(jnp.float32).min
    return scores_RHCT + jnp.where(mask, 0.0, lowest)


def attention_weights(q_RHCK: jax.Array, k_RHTK: jax.Array, pattern: AttentionPattern) -> jax.Array:
    """The weights that :func:`attend` gives v, float32 [R, H, C, T]: rows sum to 1, and are exactly
    0 where the pattern lets a query not attend.
    """
    mask = pattern.mask(q_RHCK.shape[2], k_RHTK.shape[2])
    return nn.softmax(attention_scores(q_RHCK, k_RHTK, mask, pattern.bias))


def can_use_packed_kernel(
    device: Any, q_RHCK: jax.Array, k_RHTK: jax.Array, pattern: AttentionPattern
) -> bool:
    """Whether :func:`adapt.models.packed_attention.packed_attention` is allowed and takes these.

    It wants an NVIDIA GPU from Ampere on, or a TPU whose fast memory holds the keys and values of a
    head, on a mesh whole heads, and a bias that is the same for all rows.
    """
    if pattern.bias is not None and pattern.bias.ndim == 4:
        return False
    allowed = packed_kernel.get()
    if allowed is None or (allowed.mesh and q_RHCK.shape[1] % allowed.mesh.shape[HEAD_AXIS]):
        return False
    if device.platform == "gpu":
        return nvidia_capability(device) >= 8
    tokens = max(q_RHCK.shape[2], k_RHTK.shape[2])
    # Both arrays, each twice: one is read while the other is used; and 128 numbers side by side.
    width = -(-q_RHCK.shape[3] // 128) * 128
    return 4 * tokens * width * q_RHCK.dtype.itemsize <= BYTES_ON_A_TPU


def can_use_joint_kernel(device: Any) -> bool:
    """Whether :func:`adapt.models.packed_attention.joint_attention` may be used where the packed
    kernel may: on a GPU, off a mesh.
    """
    allowed = packed_kernel.get()
    return device.platform == "gpu" and allowed is not None and allowed.mesh is None


def by_joint_kernel(
    joint_RC3HK: jax.Array, pattern: AttentionPattern, rate: float, words: jax.Array
) -> jax.Array:
    """What :func:`attend` computes, by the kernel that reads q, k and v from one array."""
    from adapt.models import packed_attention

    mixed_RCHK = packed_attention.joint_attention(joint_RC3HK, pattern, rate, words)
    return mixed_RCHK.transpose(0, 2, 1, 3)


def by_packed_kernel(
    q_RHCK: jax.Array,
    k_RHTK: jax.Array,
    v_RHTK: jax.Array,
    pattern: AttentionPattern,
    rate: float,
    words: jax.Array,
    platform: str,
) -> jax.Array:
    """What :func:`attend` computes, by this project's kernel; on a mesh each device its own heads.

    ``rate`` and ``words`` uint32 [2] are those of dropout.
    """
    # Pallas takes a third of a second to import, and nothing on a CPU needs it.
    from adapt.models import packed_attention

    allowed = packed_kernel.get()
    attend_heads = functools.partial(
        packed_attention.packed_attention, rate=rate, platform=platform
    )
    if allowed is None or allowed.mesh is None:
        return attend_heads(q_RHCK, k_RHTK, v_RHTK, pattern, words=words)

    def of_device(
        q: jax.Array, k: jax.Array, v: jax.Array, pattern: AttentionPattern, words: jax.Array
    ) -> jax.Array:
        first_head = jax.lax.axis_index(HEAD_AXIS) * q.shape[1]
        return attend_heads(q, k, v, pattern, words=words, first_head=first_head)

    by_heads = PartitionSpec(None, HEAD_AXIS)
    of_pattern: Any = dataclasses.replace(
        pattern,
        segments=None if pattern.segments is None else PartitionSpec(),
        bias=None if pattern.bias is None else PartitionSpec(HEAD_AXIS),
    )
    # The axes of the mesh that divide a batch are those of the vmap around this.
    sharded = jax.shard_map(
        of_device,
        mesh=allowed.mesh,
        in_specs=(by_heads, by_heads, by_heads, of_pattern, PartitionSpec()),
        out_specs=by_heads,
        check_vma=False,
    )
    return sharded(q_RHCK, k_RHTK, v_RHTK, pattern, words)


def can_use_flash(device: Any, q_RCHK: jax.Array, k_RTHK: jax.Array) -> bool:
    """Whether cuDNN's flash attention is allowed here and takes these arrays.

    It wants an NVIDIA GPU from Ampere on (compute capability 8), bfloat16, and a K of at most 128
    that 8 divides. On a mesh it also wants whole heads and even numbers of tokens: see
    :func:`flash_attention`.
    """
    groups = flash_groups.get()
    if groups is None or q_RCHK.dtype != jnp.bfloat16:
        return False

    if nvidia_capability(device) < 8:
        return False

    _, queries, heads, width = q_RCHK.shape
    if width > 128 or width % 8:
        return False
    has_even_tokens = queries % 2 == 0 and k_RTHK.shape[1] % 2 == 0
    return groups == 0 or (heads % groups == 0 and has_even_tokens)


def flash_attention(
    q_RCHK: jax.Array, k_RTHK: jax.Array, v_RTHK: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """What :func:`attend` computes, by cuDNN's kernel: [R, C, H, K], in bfloat16.

    It never writes the weights to memory (Dao et al. 2022). It has no gradient for odd numbers of
    tokens: they get one more, to which nothing attends. On a mesh JAX's partitioning of it wants a
    mask for every head and takes no lengths.
    """
    rows, queries, heads, _ = q_RCHK.shape
    keys = k_RTHK.shape[1]
    lengths = None
    if mask is None and keys % 2:
        lengths = jnp.full(rows, keys, jnp.int32)
    if mask is not None:
        mask = jnp.pad(mask, [(0, 0), (0, 0), (0, queries % 2), (0, keys % 2)])
        if flash_groups.get():
            mask = jnp.broadcast_to(mask, (rows, heads, *mask.shape[2:]))
    mixed_RCHK = jax.nn.dot_product_attention(
        pad_to_even(q_RCHK),
        pad_to_even(k_RTHK),
        pad_to_even(v_RTHK),
        mask=mask,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return mixed_RCHK[:, :queries]


def pad_to_even(x_RCHK: jax.Array) -> jax.Array:
    """One more token, of zeros, where their number is odd."""
    return jnp.pad(x_RCHK, [(0, 0), (0, x_RCHK.shape[1] % 2), (0, 0), (0, 0)])

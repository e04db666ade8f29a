"""One transformer encoder for text and patches: post-norm (BERT) and pre-norm (GPT-2, ViT), packed rows throughout.

Shapes in names: R rows, C tokens a row, D width, H heads, K width of a head, V vocabulary, N examples.
The stages are the embedding (stage 0) and the blocks (stages 1 to L); a final norm belongs to the last block's stage.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Everything that fixes an encoder's shapes and arithmetic; plain numbers, so it is saved as JSON."""

    family: str
    layers: int
    width: int
    heads: int
    mlp_width: int
    positions: int
    vocabulary: int = 0  # text
    types: int = 0  # segment types of text pairs; 0: the family has none
    image_size: int = 0  # images: pixels a side
    patch_size: int = 0
    channels: int = 0
    causal: bool = False
    pre_norm: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    qkv_bias: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_range: float = 0.02
    pad_token: int = 0
    end_token: int = 0  # decoders: the end of a text

    @property
    def is_image(self) -> bool:
        return self.image_size > 0


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
        keep = random_bits(self.make_rng("dropout"), x.shape) >= jnp.uint32(round(self.rate * 2**32))
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
        kernel = self.param("kernel", nn.initializers.normal(self.init_range), (self.inputs, self.outputs))
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,)) if self.bias else None
        return kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)


class Dense(Weights):
    """x [..., in] -> x kernel + bias [..., out]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        kernel, bias = super().__call__()
        x = x.astype(self.dtype) @ kernel
        return x if bias is None else x + bias


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


def project(x_RCD: jax.Array, kernels: Sequence[jax.Array], biases: Sequence[Any], heads: int) -> jax.Array:
    """Query, key and value [3, R, H, C, K] in one matrix product, though their parameters are separate leaves."""
    rows, tokens, width = x_RCD.shape
    x = x_RCD @ jnp.concatenate(kernels, 1)
    x = x if biases[0] is None else x + jnp.concatenate(biases)
    return x.reshape(rows, tokens, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)


def attend(qkv_3RHCK: jax.Array, mask: jax.Array | None, drop: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v by head (Vaswani et al. 2017, eq. 1): [R, H, C, K]; ``drop`` is dropout on the weights.

    On GPU and TPU without dropout, JAX's own kernel. On the CPU heads come before tokens, the layout that XLA multiplies
    fastest there.
    """
    q, k, v = qkv_3RHCK
    if drop is None and accelerated():
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v, mask=mask).transpose(0, 2, 1, 3)
    scores_RHCC = jnp.einsum("RHCK,RHTK->RHCT", q * q.shape[-1] ** -0.5, k).astype(jnp.float32)
    if mask is not None:
        scores_RHCC = jnp.where(mask, scores_RHCC, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(scores_RHCC).astype(v.dtype)
    return jnp.einsum("RHCT,RHTK->RHCK", weights if drop is None else drop(weights), v)


def accelerated() -> bool:
    """Whether programs run on a GPU or a TPU."""
    return jax.default_backend() in ("gpu", "tpu")


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, 3.2), block-diagonal over segments, causal where the family is."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_RCD: jax.Array, mask_R1CC: jax.Array | None, deterministic: bool) -> jax.Array:
        c, width = self.config, x_RCD.shape[-1]
        parts = [
            Weights(width, width, c.qkv_bias, c.init_range, self.dtype, name=n)() for n in ("query", "key", "value")
        ]
        qkv = project(x_RCD, [kernel for kernel, _ in parts], [bias for _, bias in parts], c.heads)
        dropout = Dropout(c.attention_dropout)
        dry = deterministic or not c.attention_dropout
        mixed_RHCK = attend(qkv, mask_R1CC, None if dry else lambda weights: dropout(weights, False))
        mixed_RCD = mixed_RHCK.transpose(0, 2, 1, 3).reshape(x_RCD.shape)
        return Dense(width, width, True, c.init_range, self.dtype, name="output")(mixed_RCD)


class MLP(nn.Module):
    """Two dense layers with an activation between."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = Dense(c.width, c.mlp_width, True, c.init_range, self.dtype, name="up")(x)
        return Dense(c.mlp_width, c.width, True, c.init_range, self.dtype, name="down")(ACTIVATIONS[c.activation](x))


class Block(nn.Module):
    """Attention and MLP with residuals; the norm after each sum (BERT) or before each branch (GPT-2, ViT)."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, deterministic: bool) -> jax.Array:
        c = self.config
        branches = (
            ("attention", lambda x: Attention(c, self.dtype, name="attention")(x, mask, deterministic)),
            ("mlp", lambda x: MLP(c, self.dtype, name="mlp")(x)),
        )
        for name, branch in branches:
            norm, drop = Norm(c.norm_epsilon, self.dtype, name=f"{name}_norm"), Dropout(c.dropout)
            if c.pre_norm:
                x = x + drop(branch(norm(x)), deterministic)
            else:
                x = norm(x + drop(branch(x), deterministic))
        return x


class TextEmbedding(nn.Module):
    """Token, position and type embeddings, summed; BERT normalises the sum."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c, normal = self.config, nn.initializers.normal(self.config.init_range)
        self.token = self.param("token", normal, (c.vocabulary, c.width))
        self.position = self.param("position", normal, (c.positions, c.width))
        if c.types:
            self.type = self.param("type", normal, (c.types, c.width))
        if not c.pre_norm:
            self.norm = Norm(c.norm_epsilon, self.dtype)
        self.dropout = Dropout(c.dropout)

    def __call__(self, batch: Batch, deterministic: bool) -> jax.Array:
        # Parameters may be numpy (as loaded), which traced indices can't index.
        x_RCD = jnp.asarray(self.token)[batch["tokens"]] + jnp.asarray(self.position)[batch["positions"]]
        if self.config.types:
            x_RCD = x_RCD + (jnp.asarray(self.type)[batch["types"]] if "types" in batch else self.type[0])
        x_RCD = x_RCD.astype(self.dtype) if self.config.pre_norm else self.norm(x_RCD)
        return self.dropout(x_RCD, deterministic)


class PatchEmbedding(nn.Module):
    """Square patches of pixels [N, S, S, channels] through one dense layer, after a class token (ViT, eq. 1)."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool) -> jax.Array:
        c, p, side = self.config, self.config.patch_size, self.config.image_size // self.config.patch_size
        normal = nn.initializers.normal(c.init_range)
        x = batch["pixels"].reshape(-1, side, p, side, p, c.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, side * side, p * p * c.channels)
        x = Dense(p * p * c.channels, c.width, True, c.init_range, self.dtype, name="patch")(x)
        first = self.param("class_token", normal, (c.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, c.width)), x], 1)
        x = x + self.param("position", normal, (c.positions, c.width)).astype(self.dtype)
        return Dropout(c.dropout)(x, deterministic)


class Encoder(nn.Module):
    """``embed``, then ``run`` any band of blocks, then ``finish``: the stages that freezing and caching cut between."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.embedding = (PatchEmbedding if c.is_image else TextEmbedding)(c, self.dtype)
        self.blocks = [Block(c, self.dtype, name=f"block_{index:02d}") for index in range(c.layers)]
        if c.pre_norm:
            self.final_norm = Norm(c.norm_epsilon, self.dtype)

    def embed(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """The embedding stage: batch -> x [R, C, D]."""
        return self.embedding(batch, deterministic)

    def run(self, x_RCD: jax.Array, batch: Batch, first: int, last: int, deterministic: bool = True) -> jax.Array:
        """Blocks ``first`` to ``last - 1`` on x [R, C, D]."""
        mask = None if self.config.is_image else attention_mask(batch, self.config.causal)
        for block in self.blocks[first:last]:
            x_RCD = block(x_RCD, mask, deterministic)
        return x_RCD

    def finish(self, x_RCD: jax.Array) -> jax.Array:
        """The final norm, where the family has one."""
        return self.final_norm(x_RCD) if self.config.pre_norm else x_RCD

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        x = self.embed(batch, deterministic)
        return self.finish(self.run(x, batch, 0, self.config.layers, deterministic))


def attention_mask(batch: Batch, causal: bool) -> jax.Array:
    """True where a token may look: within its own segment, not ahead if causal."""
    segments = batch["segments"]
    mask_R1CC = segments[:, None, :, None] == segments[:, None, None, :]
    return mask_R1CC & jnp.tril(jnp.ones(mask_R1CC.shape[-2:], bool)) if causal else mask_R1CC

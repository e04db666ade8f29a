"""One transformer encoder for text and patches: post-norm (BERT) and pre-norm (GPT-2, ViT), packed rows throughout.

Shapes in names: R rows, C tokens a row, D width, H heads, K width of a head, V vocabulary, N examples.
The stages are the embedding (stage 0) and the blocks (stages 1 to L); a final norm belongs to the last block's stage.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adapt.models.config import EncoderConfig
from adapt.models.layers import Batch, Block, Dense, Dropout, Norm


class TextEmbedding(nn.Module):
    """Token, position and type embeddings, summed; BERT normalises the sum."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        normal = nn.initializers.normal(self.config.init_range)
        self.token = self.param("token", normal, (c.vocabulary, c.width))
        self.position = self.param("position", normal, (c.positions, c.width))
        if c.types:
            self.type = self.param("type", normal, (c.types, c.width))
        if not c.pre_norm:
            self.norm = Norm(c.norm_epsilon, self.dtype)
        self.dropout = Dropout(c.dropout)

    def __call__(self, batch: Batch, deterministic: bool) -> jax.Array:
        # Parameters may be numpy (as loaded), which traced indices can't index; their sum is in float32 whatever they are.
        row = lambda table, index: jnp.asarray(table)[index].astype(jnp.float32)
        x_RCD = row(self.token, batch["tokens"]) + row(self.position, batch["positions"])
        if self.config.types:
            x_RCD = x_RCD + row(self.type, batch.get("types", 0))
        x_RCD = x_RCD.astype(self.dtype) if self.config.pre_norm else self.norm(x_RCD)
        return self.dropout(x_RCD, deterministic)


class PatchEmbedding(nn.Module):
    """Square patches of pixels [N, S, S, channels] through one dense layer, after a class token (ViT, eq. 1)."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool) -> jax.Array:
        c = self.config
        p = self.config.patch_size
        side = self.config.image_size // self.config.patch_size
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

    def run(
        self, x_RCD: jax.Array, batch: Batch, first: int, last: int, deterministic: bool = True
    ) -> jax.Array:
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

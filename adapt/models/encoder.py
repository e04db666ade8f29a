"""One encoder for text and images, post-norm (BERT) and pre-norm (GPT-2, ViT), on packed rows.

Shapes in names: R rows, C tokens a row, D width, N images, S pixels a side. The stages are the
embedding (stage 0) and the blocks (stages 1 to L). A final norm belongs to the last block's stage,
a table of distances, which all blocks read, to the embedding's.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adapt.models.attention import Attention
from adapt.models.attention_pattern import AttentionPattern
from adapt.models.config import EncoderConfig
from adapt.models.layers import MLP, Adapter, Batch, Convolution, Dense, Dropout, Norm, norm_of
from adapt.models.patch_places import PatchBias, rotation_of_patches
from adapt.models.relative import RelativeBias, RelativeStates
from adapt.models.rotary import NO_STRETCH, Rotation, Stretch, rotation_at

# 15% of the tokens that ESM was trained on were chosen, and 80% of these masked.
KEPT_IN_TRAINING = 1 - 0.15 * 0.8


class TextEmbedding(nn.Module):
    """The sum of token, position and type embeddings, [R, C, D]; BERT normalises it. ELECTRA's and
    ALBERT's tables are narrower, and a dense layer follows.

    Only positions of the kind "learned" are added here; blocks compute the other kinds.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        normal = nn.initializers.normal(c.init_range)
        width = c.embedding_width or c.width
        self.token = self.param("token", normal, (c.vocabulary, width))
        if c.position_kind == "learned":
            rows = c.position_offset + c.positions
            self.position = self.param("position", normal, (rows, width))
        if c.types:
            self.type = self.param("type", normal, (c.types, width))
        if self.has_norm:
            self.norm = norm_of(c, self.dtype)
        if c.embedding_width:
            self.projection = Dense(width, c.width, True, c.init_range, self.dtype)
        self.dropout = Dropout(c.dropout)

    @property
    def has_norm(self) -> bool:
        """Whether the sum is normalised."""
        return self.config.embedding_norm or not self.config.pre_norm

    def __call__(self, batch: Batch, deterministic: bool) -> jax.Array:
        x_RCD = rows_of(self.token, batch["tokens"])
        if self.config.embedding_scale != 1:
            x_RCD = x_RCD * self.config.embedding_scale
        if self.config.token_dropout:
            x_RCD = x_RCD * mask_factors(batch, self.config.mask_token)[..., None]
        if self.config.position_kind == "learned":
            x_RCD = x_RCD + rows_of(self.position, self.config.position_offset + batch["positions"])
        if self.config.types:
            # With one type both texts of a pair are of it.
            types_RC = batch.get("types", 0) if self.config.types > 1 else 0
            x_RCD = x_RCD + rows_of(self.type, types_RC)
        x_RCD = self.norm(x_RCD) if self.has_norm else x_RCD.astype(self.dtype)
        x_RCD = self.dropout(x_RCD, deterministic)
        return self.projection(x_RCD) if self.config.embedding_width else x_RCD


def mask_factors(batch: Batch, mask_token: int) -> jax.Array:
    """By what ESM multiplies the embedding of each token, float32 [R, C].

    Masked tokens are 0. The others are scaled as dropout does, by what is kept in training over
    what is kept in their example: without any masked token by 0.88.
    """
    is_mask_RC = batch["tokens"] == mask_token
    segments_RC = batch["segments"]
    length_N = jnp.maximum(batch["length"], 1)
    masks_N = jax.ops.segment_sum(
        is_mask_RC.reshape(-1).astype(jnp.float32), segments_RC.reshape(-1), len(length_N)
    )
    kept_N = 1 - masks_N / length_N
    # An example of masked tokens alone is all zeros, as it would be with any factor.
    factor_N = KEPT_IN_TRAINING / jnp.where(kept_N > 0, kept_N, 1.0)
    factor_RC = jnp.append(factor_N, 0.0)[segments_RC]  # padding is the last segment
    return jnp.where(is_mask_RC, 0.0, factor_RC)


def rows_of(table: jax.Array, index: Any) -> jax.Array:
    """The rows of a table at ``index``, in float32 whatever the table is, for they are summed."""
    # A table may be a numpy array, as loaded, which a traced index can't index.
    return jnp.asarray(table)[index].astype(jnp.float32)


class PatchEmbedding(nn.Module):
    """The square patches of an image through a dense layer, after the tokens of the family (ViT,
    Dosovitskiy et al. 2021, eq. 1): [N, T, D].

    These are a class token, a distillation token (DeiT, Touvron et al. 2021, 4), and registers,
    which have no position (Darcet et al. 2024). Where a batch has ``masked_patches`` bool [N,
    patches], its ``mask_token`` [D] stands in for these.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, deterministic: bool) -> jax.Array:
        c = self.config
        normal = nn.initializers.normal(c.init_range)
        patch = c.patch_size
        side = c.image_size // patch
        inputs = patch * patch * c.channels

        x = batch["pixels"].reshape(-1, side, patch, side, patch, c.channels)
        x = x.transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, side * side, inputs)
        x = Dense(inputs, c.width, c.patch_bias, c.init_range, self.dtype, name="patch")(x)
        if "masked_patches" in batch:
            mask_token_D = batch["mask_token"].astype(self.dtype)
            x = jnp.where(batch["masked_patches"][..., None], mask_token_D, x)

        first = []
        if c.class_token:
            first.append(self.param("class_token", normal, (c.width,)))
        if c.distillation_token:
            first.append(self.param("distillation_token", normal, (c.width,)))
        rows = [token_D.astype(self.dtype)[None] for token_D in first]
        x = with_first_tokens(x, rows)
        if c.position_kind == "learned":
            position = self.param("position", normal, (c.positions - c.registers, c.width))
            x = x + position.astype(self.dtype)
        if c.registers:
            registers_TD = self.param("registers", normal, (c.registers, c.width))
            patches = x[:, len(first) :]
            patches = with_first_tokens(patches, [registers_TD.astype(self.dtype)])
            x = jnp.concatenate([x[:, : len(first)], patches], 1)
        if c.embedding_norm:
            x = norm_of(c, self.dtype, name="norm")(x)
        return Dropout(c.dropout)(x, deterministic)


def with_first_tokens(x_NTD: jax.Array, tokens_TD: Sequence[jax.Array]) -> jax.Array:
    """The same tokens before those of every image."""
    tokens_NTD = [jnp.broadcast_to(x, (len(x_NTD), *x.shape)) for x in tokens_TD]
    return jnp.concatenate([*tokens_NTD, x_NTD], 1)


Branch = Callable[[jax.Array], jax.Array]  # of a block: attention or the MLP


class Block(nn.Module):
    """Attention and MLP, each with a residual: x [R, C, D] -> [R, C, D].

    ``attention_norm`` is False for a pre-norm block whose attention reads its input as it is.
    ``convolution`` is True for a post-norm one that has a convolution beside it.
    """

    config: EncoderConfig
    dtype: Any = jnp.float32
    attention_norm: bool = True
    convolution: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        pattern: AttentionPattern,
        deterministic: bool,
        rotation: Rotation | None = None,
    ) -> jax.Array:
        attention = Attention(self.config, self.dtype, name="attention")
        attend = functools.partial(
            attention, pattern=pattern, deterministic=deterministic, rotation=rotation
        )
        mlp = MLP(self.config, self.dtype, name="mlp")
        if self.config.pre_norm:
            return self.pre_norm(x, attend, mlp, deterministic)
        y = self.post_norm(x, "attention", attend, deterministic)
        y = self.post_norm(y, "mlp", mlp, deterministic)
        if not self.convolution:
            return y
        assert pattern.segments is not None
        convolution = Convolution(self.config, self.dtype, name="convolution")
        return convolution(x, y, pattern.segments, deterministic)

    @nn.nowrap
    def pre_norm(self, x: jax.Array, attend: Branch, mlp: Branch, deterministic: bool) -> jax.Array:
        """x + branch(norm(x)) for each branch."""
        c = self.config
        normed = x
        if self.attention_norm:
            x, normed = norm_of(c, self.dtype, name="attention_norm").with_sum(x, None, None)
        y = self.branch("attention", attend, normed)
        dropout = Dropout(c.dropout)
        norm = norm_of(c, self.dtype, name="mlp_norm")
        x, normed = norm.with_sum(x, y, None if deterministic or not c.dropout else dropout)
        y = self.branch("mlp", mlp, normed)
        return x + Dropout(c.dropout)(y, deterministic)

    @nn.nowrap
    def post_norm(self, x: jax.Array, name: str, branch: Branch, deterministic: bool) -> jax.Array:
        """norm(x + branch(x))."""
        c = self.config
        norm = norm_of(c, self.dtype, name=f"{name}_norm")
        y = self.branch(name, branch, x)
        dropout = Dropout(c.dropout)
        if isinstance(norm, Norm):
            return norm.of_sum(x, y, None if deterministic or not c.dropout else dropout)
        return norm(x + dropout(y, deterministic))

    @nn.nowrap
    def branch(self, name: str, branch: Branch, x: jax.Array) -> jax.Array:
        """What a branch puts out, before it is added: scaled, through an adapter, and normalised
        where the encoder has ``branch_norms``.
        """
        c = self.config
        y = branch(x)
        if c.layer_scale:
            scale_D = self.param(f"{name}_scale", nn.initializers.ones, (c.width,))
            y = y * scale_D.astype(y.dtype)
        if c.adapter_width:
            y = Adapter(c, self.dtype, name=f"{name}_adapter")(y)
        if c.branch_norms:
            y = norm_of(c, self.dtype, name=f"{name}_branch_norm")(y)
        return y


class Encoder(nn.Module):
    """A transformer encoder in stages: :meth:`embed`, :meth:`run` over any blocks, :meth:`finish`.

    Freezing and caching cut between stages. ``dtype`` is the compute dtype; parameters stay
    float32. A batch is a dict of arrays: of text ``tokens``, ``positions`` and ``types``
    (optional), int32 [R, C]; of images ``pixels``, float32 [N, S, S, channels], where R = N.
    ``segments``, int32 [R, C], is the example of each token; a token attends within its example
    alone. ``first`` and ``length``, int32 [N], say where in R * C each example begins and how many
    tokens it has.

        >>> config = EncoderConfig("vit", 2, 16, 2, 32, 17, image_size=16, patch_size=4, channels=3)
        >>> encoder = Encoder(config)
        >>> batch = {"pixels": jnp.zeros((1, 16, 16, 3))}
        >>> variables = encoder.init(jax.random.key(0), batch)
        >>> encoder.apply(variables, batch).shape
        (1, 17, 16)
    """

    config: EncoderConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        embedding = PatchEmbedding if c.is_image else TextEmbedding
        self.embedding = embedding(c, self.dtype)
        blocks = []
        for index, name in enumerate(dict.fromkeys(c.block_names)):
            is_first = index == 0
            has_norm = c.first_norm or not is_first
            has_convolution = is_first and c.convolution > 0
            blocks.append(Block(c, self.dtype, has_norm, has_convolution, name=name))
        self.blocks = blocks
        if c.relative_terms:
            self.relative = RelativeStates(c, self.dtype)
        elif c.relative_buckets and not c.relative_per_block:
            self.relative = RelativeBias(c)
        elif c.relative_patches == "shared":
            self.relative = PatchBias(c)
        if c.pre_norm and c.final_norm:
            self.final_norm = norm_of(c, self.dtype)

    def embed(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        """The embedding stage: batch -> x [R, C, D]."""
        return self.embedding(batch, deterministic)

    def relations(self, batch: Batch) -> dict[str, jax.Array]:
        """What the attention of all blocks reads of distances: fields of their patterns.

        It is computed once a pass. {} for an encoder without a table that all blocks share.
        """
        c = self.config
        table: Any = getattr(self, "relative", None)
        if c.relative_patches == "shared":
            return {"bias": table()}
        if not c.relative_buckets or c.relative_per_block:
            return {}
        relative = table(batch["segments"].shape[-1])
        return {"relative" if c.relative_terms else "bias": relative}

    def run(
        self,
        x_RCD: jax.Array,
        batch: Batch,
        first: int,
        last: int,
        deterministic: bool = True,
        relations: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Blocks ``first`` to ``last - 1``, counted from 0: x [R, C, D] -> [R, C, D].

        ``relations`` are those of :meth:`relations`, which are computed where they are None.
        """
        if relations is None:
            relations = self.relations(batch)
        for index in range(first, last):
            pattern = attention_pattern(batch, self.config, index)
            pattern = dataclasses.replace(pattern, **relations)
            rotation = rotation_of(batch, self.config, index)
            block = self.blocks[0 if self.config.shared_blocks else index]
            x_RCD = block(x_RCD, pattern, deterministic, rotation)
        return x_RCD

    def finish(self, x_RCD: jax.Array) -> jax.Array:
        """The final norm, where the family has one: x [R, C, D] -> [R, C, D]."""
        has_norm = self.config.pre_norm and self.config.final_norm
        return self.final_norm(x_RCD) if has_norm else x_RCD

    def __call__(self, batch: Batch, deterministic: bool = True) -> jax.Array:
        x_RCD = self.embed(batch, deterministic)
        x_RCD = self.run(x_RCD, batch, 0, self.config.layers, deterministic)
        return self.finish(x_RCD)


def attention_pattern(batch: Batch, config: EncoderConfig, block: int = 0) -> AttentionPattern:
    """Who attends to whom in a block: in an image all to all, in texts within a segment, if causal
    not ahead, in a local layer within the window.
    """
    if config.is_image:
        return AttentionPattern()
    return AttentionPattern(batch["segments"], causal=config.causal, window=config.window_of(block))


def rotation_of(batch: Batch, config: EncoderConfig, block: int) -> Rotation | None:
    """How a block rotates queries and keys; None where positions are not rotary."""
    if not config.is_rotated(block):
        return None
    if config.is_image:
        return rotation_of_patches(config)
    stretch = Stretch(
        config.rotary_factor,
        config.rotary_length,
        config.rotary_slow,
        config.rotary_fast,
        config.rotary_by_index,
        config.rotary_scale,
    )
    if block in config.local_layers and config.local_rotary_base:
        stretch = NO_STRETCH
    base = config.rotary_base_of(block)
    width = config.width_of_head
    return rotation_at(positions_of(batch), width, base, config.rotary_dtype, stretch)


def positions_of(batch: Batch) -> jax.Array:
    """The place of each token in its example, int32 [R, C]; any number for padding.

    A batch of states, which a cached prefix put out, has no ``positions``.
    """
    if "positions" in batch:
        return batch["positions"]
    segments_RC = batch["segments"]
    places_RC = jnp.arange(segments_RC.size, dtype=jnp.int32).reshape(segments_RC.shape)
    first_RC = jnp.append(batch["first"], 0)[segments_RC]  # padding is the last segment
    return places_RC - first_RC

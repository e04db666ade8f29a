"""Heads: what pre-training put on the encoder, and what downstream tasks put in its place.

A head is a Linen module. It is called with the encoder's output x [R, C, D], the batch, the token
embedding table [V, D] for decoders that are tied to it, and whether dropout is off. Pooling belongs
to the head: it works by segment, however the examples are packed.

Shapes in names: R rows, C tokens a row, T = R * C tokens, D width, N examples, M targets,
V vocabulary, S tokens of the longest example.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from adapt.models.layers import ACTIVATIONS, Batch, Dense, Dropout, Norm


def cls(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The first token of each example, [N, D]."""
    return zeros_where_empty(x_TD[batch["first"]], batch)


def last(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The last token of each example, [N, D]."""
    last_N = batch["first"] + jnp.maximum(batch["length"], 1) - 1
    return zeros_where_empty(x_TD[last_N], batch)


def mean(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The mean over each example's own tokens, [N, D], summed in float32."""
    x = x_TD.astype(jnp.float32)
    segments_T = batch["segments"].reshape(-1)
    total_ND = jax.ops.segment_sum(x, segments_T, batch["length"].shape[0])
    return (total_ND / jnp.maximum(batch["length"], 1)[:, None]).astype(x_TD.dtype)


def maximum(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The maximum over each example's own tokens, feature by feature, [N, D]."""
    segments_T = batch["segments"].reshape(-1)
    highest_ND = jax.ops.segment_max(x_TD, segments_T, batch["length"].shape[0])
    return zeros_where_empty(highest_ND, batch)


def zeros_where_empty(x_ND: jax.Array, batch: Batch) -> jax.Array:
    """Zeros for an example without tokens, as its mean is: never a token of its neighbours."""
    return jnp.where(batch["length"][:, None] > 0, x_ND, jnp.zeros((), x_ND.dtype))


def attention_pooling(x_TD: jax.Array, batch: Batch, query_D: jax.Array) -> jax.Array:
    """The mean of each example's own tokens, weighted by softmax(x . query / sqrt(D)): [N, D].

    It is computed in float32. A query of zeros gives the plain mean.
    """
    x = x_TD.astype(jnp.float32)
    pooled_ND = attend_by_example(x, x, query_D.astype(jnp.float32), batch)
    return pooled_ND.astype(x_TD.dtype)


def attend_by_example(
    keys_TK: jax.Array, values_TK: jax.Array, query_K: jax.Array, batch: Batch
) -> jax.Array:
    """The mean of each example's values, weighted by softmax(keys . query / sqrt(K)): [N, K]."""
    # Padding is an example of its own, so that no gradient overflows there.
    examples = batch["length"].shape[0] + 1
    segments_T = batch["segments"].reshape(-1)
    scale = keys_TK.shape[-1] ** -0.5
    scores_T = keys_TK @ query_K * scale
    highest_N = jax.ops.segment_max(scores_T, segments_T, examples)
    highest_N = jax.lax.stop_gradient(highest_N)
    weights_T = jnp.exp(scores_T - highest_N[segments_T])
    # The sum of an example's weights is at least 1, where it has a token.
    total_N = jax.ops.segment_sum(weights_T, segments_T, examples)
    total_N = jnp.maximum(total_N, 1.0)
    weighted_TK = weights_T[:, None] * values_TK
    summed_NK = jax.ops.segment_sum(weighted_TK, segments_T, examples)
    pooled_NK = summed_NK / total_N[:, None]
    return pooled_NK[:-1]


def patches(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The mean over the patches of each image, [N, D]: without the first tokens of each, as many
    as the batch's ``leading``.
    """
    leading = batch["leading"]
    examples = batch["length"].shape[0]
    segments_T = batch["segments"].reshape(-1)
    first_T = batch["first"][jnp.minimum(segments_T, examples - 1)]
    is_patch_T = jnp.arange(len(segments_T)) >= first_T + leading
    of_patches = {
        "segments": jnp.where(is_patch_T, segments_T, examples),
        "length": jnp.maximum(batch["length"] - leading, 0),
    }
    return mean(x_TD, of_patches)


def cls_and_patches(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The class token beside the mean over the patches of each image, [N, 2 D] (DINOv2)."""
    return jnp.concatenate([cls(x_TD, batch), patches(x_TD, batch)], -1)


POOLINGS: dict[str, Callable[[jax.Array, Batch], jax.Array]] = {
    "mean": mean,
    "cls": cls,
    "max": maximum,
    "last": last,
    # BERT's pooler goes on with dense and tanh, trained by next-sentence prediction.
    "pooler": cls,
}

# Poolings whose vector is one of an example's tokens or an average of them: logits of a language
# model are then computed of that vector alone, since they are an affine function, and not of every
# token. A function that is registered as a pooling of this kind may be added before.
AVERAGES: set[Callable[..., jax.Array]] = {mean, cls, last}

# What a head pools by that knows its encoder. A batch then says how many tokens of each example are
# ``leading``.
OWN_POOLINGS: dict[str, Callable[[jax.Array, Batch], jax.Array]] = {
    "patches": patches,
    "cls+patches": cls_and_patches,
    "patch_norm": patches,  # BEiT goes on with a norm
    "projection": cls,  # or another; CLIP goes on with a dense layer without bias
}
# By weights, under "head/" and this name, that come with a checkpoint.
POOLINGS_OF_CHECKPOINTS = ("pooler", "patch_norm", "projection", "map")
WITHOUT_POOL = ("attention", "map")  # they begin with weights


def pooling_names() -> tuple[str, ...]:
    """All that a :class:`Classifier` can pool by."""
    return (*POOLINGS, *OWN_POOLINGS, *WITHOUT_POOL)


def cached_program(make: Callable[..., Any]) -> Any:
    """``make(*arguments)``, which jits a function, once for equal arguments: what that function has
    compiled serves the next call.

    A model knows its pooling by name. A pooling that has been registered anew, as in a notebook's
    cell, gets a program of its own.
    """

    @functools.lru_cache(maxsize=32)
    def cached(poolings: tuple[Any, ...], *arguments: Any) -> Any:
        return make(*arguments)

    @functools.wraps(make)
    def cached_now(*arguments: Any) -> Any:
        return cached(tuple(POOLINGS.items()), *arguments)

    cached_now.cache_clear = cached.cache_clear  # pyright: ignore[reportAttributeAccessIssue]
    return cached_now


def mean_of_windows(x_SD: jax.Array, batch: Batch) -> jax.Array:
    """The mean of the windows of each text, [S, D] -> [N, D], summed in float32.

    Where a batch does not say of which text its segments are, each is an example of its own.
    """
    if "window_of" not in batch:
        return x_SD
    count_N = jnp.maximum(batch["windows"], 1)
    x = x_SD.astype(jnp.float32)
    total_ND = jax.ops.segment_sum(x, batch["window_of"], len(count_N))
    return (total_ND / count_N[:, None]).astype(x_SD.dtype)


class Classifier(nn.Module):
    """Pools each example and projects it: float32 logits [N, classes], or features [N, D].

    * ``classes``: outputs an example; 1 for regression, 0 for features without a projection.
    * ``pooling``: a name of ``POOLINGS``, or ``"attention"``; ``"patches"``, ``"cls+patches"`` and
      ``"patch_norm"``, the mean of an image's patches, as it is, beside the class token, or
      normalised; ``"projection"``, the class token, or what ``projected`` pools, through a dense
      layer; ``"map"``, an :class:`AttentionPooler`. ``"pooler"``, ``"attention"``,
      ``"patch_norm"``, ``"projection"`` and ``"map"`` have weights, which are the head's own.
    * ``layers``: the layers that the head reads, 0 the embedding, k the k-th block; empty: the
      last. Several come side by side, [R, C, layers * D].
    * ``mix``: ``"concat"`` leaves them so (BERT's feature-based approach, Devlin et al. 2019, 5.3),
      ``"learned"`` mixes them to [N, D] (ELMo's scalar mix, Peters et al. 2018, eq. 1).
    * ``hidden``: the activation of a dense layer between what is pooled and the projection; "" for
      no such layer. ``hidden_norm`` puts a norm after it (ModernBERT).
    * ``columns``: the classes of each label column, where there are several. Logits are then
      [N, columns, most classes], -inf where a column has fewer.

    It also takes what :meth:`pool` gives, [N, D], in place of the encoder's output. Where a batch
    has texts in several windows, what is projected is the mean of their vectors.

        head = Classifier(classes=2, pooling="mean", dropout=0.1)
    """

    classes: int
    pooling: str = "mean"
    bias: bool = True
    dropout: float = 0.0
    layers: tuple[int, ...] = ()
    mix: str = "concat"
    columns: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    leading: int = 0  # tokens of each example before its patches, for the mean of these
    projection: int = 0  # the width that "projection" projects to
    projected: str = "cls"  # what it projects: a name of POOLINGS
    # of "map", and the last one of "patch_norm"
    heads: int = 1
    mlp_width: int = 0
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    hidden: str = ""
    hidden_bias: bool = True
    hidden_norm: bool = False
    hidden_norm_bias: bool = True

    @property
    def pools(self) -> bool:
        """Whether the head begins with a part that has no weights: :meth:`pool`."""
        return self.pooling not in WITHOUT_POOL

    @nn.nowrap
    def pool(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """The part of the head that has no weights: [R, C, D] -> [N, D]."""
        x_TD = x_RCD.reshape(-1, x_RCD.shape[-1])
        if self.pooling == "projection":
            return POOLINGS[self.projected](x_TD, batch)
        if self.pooling in OWN_POOLINGS:
            return OWN_POOLINGS[self.pooling](x_TD, {**batch, "leading": self.leading})
        return POOLINGS[self.pooling](x_TD, batch)

    @nn.nowrap
    def pool_by_weights(self, x: jax.Array, batch: Batch) -> jax.Array:
        """[R, C, D] -> [N, D] by weights of the head."""
        x_TD = x.reshape(-1, x.shape[-1])
        if self.pooling == "map":
            pooler = AttentionPooler(
                self.heads,
                self.mlp_width,
                self.activation,
                self.norm_epsilon,
                self.dtype,
                name="map",
            )
            return pooler(x_TD, batch)
        query = self.param("attention", nn.initializers.zeros, (x.shape[-1],))
        return attention_pooling(x_TD, batch, query)

    @nn.nowrap
    def after_pooling(self, x: jax.Array) -> jax.Array:
        """What the pooling does to each vector by weights: [N, D] -> [N, D], or another width."""
        if self.pooling == "pooler":
            return jnp.tanh(Dense(x.shape[-1], x.shape[-1], dtype=self.dtype, name="pooler")(x))
        if self.pooling == "patch_norm":
            return Norm(self.norm_epsilon, self.dtype, name="patch_norm")(x)
        if self.pooling == "projection":
            width = self.projection
            return Dense(x.shape[-1], width, False, dtype=self.dtype, name="projection")(x)
        return x

    @nn.compact
    def __call__(
        self, x: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        x = self.transformed(x, batch)
        if not self.classes:
            return x.astype(jnp.float32)

        x = Dropout(self.dropout)(x, deterministic)
        classifier = Dense(
            x.shape[-1], self.classes, self.bias, dtype=self.dtype, name="classifier"
        )
        logits = classifier(x).astype(jnp.float32)
        return split_columns(logits, self.columns) if self.columns else logits

    @nn.compact
    def transformed(self, x: jax.Array, batch: Batch) -> jax.Array:
        """What is projected, [N, D]: pooled, and through the hidden layer where there is one."""
        if not self.pools:
            x = self.pool_by_weights(x, batch)
        elif x.ndim == 3:
            x = self.pool(x, batch)
        if self.mix == "learned":
            x = self.mixed(x)
        x = self.after_pooling(x)
        x = mean_of_windows(x, batch)
        return hidden_layer(self, x) if self.classes and self.hidden else x

    @nn.nowrap
    def mixed(self, x: jax.Array) -> jax.Array:
        """One vector of several layers': [N, layers * D] -> [N, D]."""
        logits = self.param("mix", nn.initializers.zeros, (len(self.layers),))
        shares = nn.softmax(logits)
        scale = self.param("scale", nn.initializers.ones, ())
        weights = (scale * shares).astype(x.dtype)
        return jnp.einsum("NLD,L->ND", x.reshape(len(x), len(self.layers), -1), weights)


def hidden_layer(head: Any, x: jax.Array) -> jax.Array:
    """The output of a head's hidden layer, [..., D]: dense, activation and, if it has one, a norm.

    The layers become submodules of ``head``, so that only its compact call may call this.
    """
    width = x.shape[-1]
    x = Dense(width, width, head.hidden_bias, dtype=head.dtype, name="hidden")(x)
    x = ACTIVATIONS[head.hidden](x)
    if not head.hidden_norm:
        return x
    return Norm(head.norm_epsilon, head.dtype, head.hidden_norm_bias, name="hidden_norm")(x)


class AttentionPooler(nn.Module):
    """Multi-head attention of one trained query, then an MLP with a residual (SigLIP; Zhai et al.
    2022, MAP): x [T, D] -> [N, D], each example by its own tokens.
    """

    heads: int
    mlp_width: int
    activation: str
    norm_epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_TD: jax.Array, batch: Batch) -> jax.Array:
        width = x_TD.shape[-1]
        dense = functools.partial(Dense, dtype=self.dtype)
        query_D = self.param("query_token", nn.initializers.normal(0.02), (width,))
        query_D = dense(width, width, name="query")(query_D)
        keys_TD = dense(width, width, name="key")(x_TD)
        values_TD = dense(width, width, name="value")(x_TD)

        query_HK = query_D.astype(jnp.float32).reshape(self.heads, -1)
        keys_THK = keys_TD.astype(jnp.float32).reshape(len(x_TD), *query_HK.shape)
        values_THK = values_TD.astype(jnp.float32).reshape(len(x_TD), *query_HK.shape)
        attend = functools.partial(attend_by_example, batch=batch)
        pooled_NHK = jax.vmap(attend, (1, 1, 0), 1)(keys_THK, values_THK, query_HK)
        pooled_ND = pooled_NHK.reshape(-1, width)

        x = dense(width, width, name="output")(pooled_ND)
        y = Norm(self.norm_epsilon, self.dtype, name="norm")(x)
        y = dense(width, self.mlp_width, name="up")(y)
        y = dense(self.mlp_width, width, name="down")(ACTIVATIONS[self.activation](y))
        return x + y


def split_columns(logits: jax.Array, columns: Sequence[int]) -> jax.Array:
    """Logits [N, sum of classes] -> [N, columns, most classes], filled up by -inf."""
    most = max(columns)
    padded = []
    for column in jnp.split(logits, np.cumsum(columns)[:-1], axis=1):
        missing = most - column.shape[1]
        padded.append(jnp.pad(column, ((0, 0), (0, missing)), constant_values=-jnp.inf))
    return jnp.stack(padded, 1)


class Distilled(nn.Module):
    """The mean of two classifiers, one on the class token and one on the distillation token after
    it: float32 logits [N, classes] (DeiT, Touvron et al. 2021, 4).
    """

    classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        x_TD = x_RCD.reshape(-1, width)
        logits = jnp.zeros((), jnp.float32)
        for place, name in enumerate(("cls_classifier", "distillation_classifier")):
            x_ND = x_TD[batch["first"] + place]
            logits += Dense(width, self.classes, dtype=self.dtype, name=name)(x_ND) / 2
        return logits.astype(jnp.float32)


class Tagger(nn.Module):
    """Projects tokens: float32 logits [M, classes] of those at the batch's ``targets``.

    ``targets`` int32 [M] are flat positions in R * C: the first token of each word. Without them
    all tokens are projected, [R * C, classes]. ``hidden`` and what follows are as in
    :class:`Classifier`.
    """

    classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    norm_epsilon: float = 1e-12  # of the norm after the hidden layer
    hidden: str = ""
    hidden_bias: bool = True
    hidden_norm: bool = False
    hidden_norm_bias: bool = True

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        x = x_RCD.reshape(-1, width)
        if "targets" in batch:
            x = x[batch["targets"]]
        if self.hidden:
            x = hidden_layer(self, x)
        x = Dropout(self.dropout)(x, deterministic)
        logits = Dense(width, self.classes, dtype=self.dtype, name="classifier")(x)
        return logits.astype(jnp.float32)


class Span(nn.Module):
    """Where a span starts and ends: float32 logits [N, 2, tokens].

    They are -inf beyond an example's own tokens. A start and an end vector (Devlin et al. 2019,
    4.2), without biases, which a softmax over positions would not see. ``tokens`` is the most that
    an example may have. ``null_threshold`` is by how much no answer, which the first token stands
    for, has to be better than the best span to be given (4.3); None: it never is. ``hidden`` and
    what follows are as in :class:`Classifier`.
    """

    tokens: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    null_threshold: float | None = None
    norm_epsilon: float = 1e-12  # of the norm after the hidden layer
    hidden: str = ""
    hidden_bias: bool = True
    hidden_norm: bool = False
    hidden_norm_bias: bool = True

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        position_S = jnp.arange(self.tokens)
        x_TD = x_RCD.reshape(-1, width)
        if self.hidden:
            x_TD = hidden_layer(self, x_TD)
        x_TD = Dropout(self.dropout)(x_TD, deterministic)
        span = Dense(width, 2, False, dtype=self.dtype, name="span")
        logits_T2 = span(x_TD).astype(jnp.float32)
        # An empty slot has one position, so that its loss is 0.
        length_N = jnp.maximum(batch["length"], 1)
        is_own_NS = position_S < length_N[:, None]
        position_NS = batch["first"][:, None] + position_S
        token_NS = jnp.where(is_own_NS, position_NS, 0)
        logits_NS2 = logits_T2[token_NS]
        return jnp.where(is_own_NS[:, None], logits_NS2.transpose(0, 2, 1), -jnp.inf)


class LanguageModel(nn.Module, kw_only=True):
    """What the heads of pre-training share that put out logits over the vocabulary.

    A head that is kept says classes by words (Schick and Schütze 2021; Gao et al. 2021): with
    ``word_tokens``, the ids of each class's ``words``, logits are [M, classes], each the mean over
    the words of a class, and nothing else of the vocabulary is computed. ``template`` is the prompt
    whose mask the words fill. Both are of :mod:`adapt.tasks.cloze`; without them they are empty.
    """

    template: str = ""
    words: tuple[tuple[str, ...], ...] = ()
    word_tokens: tuple[tuple[int, ...], ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether a run goes on with the head of pre-training, and says classes by words."""
        return bool(self.word_tokens)

    @nn.nowrap
    def whole(self) -> "LanguageModel":
        """The head that puts out logits over the whole vocabulary."""
        return self.clone(template="", words=(), word_tokens=())

    @nn.nowrap
    def decode(self, x: jax.Array, table: Any, bias: bool) -> jax.Array:
        """x [..., D] -> float32 logits over the vocabulary [..., V], or by words [..., classes]."""
        tokens = tuple(itertools.chain.from_iterable(self.word_tokens))
        own: Any = self
        decoder = Decoder(own.vocabulary, own.tied, bias, own.dtype, tokens, name="decoder")
        logits = decoder(x, table)
        if not self.is_kept:
            return logits
        counts = [len(ids) for ids in self.word_tokens]
        by_class = jnp.split(logits, np.cumsum(counts)[:-1], -1)
        return jnp.stack([of_words.mean(-1) for of_words in by_class], -1)


def is_kept(head: Any) -> bool:
    """Whether a head is that of pre-training, kept: see :class:`LanguageModel`."""
    return isinstance(head, LanguageModel) and head.is_kept


class MaskedLM(LanguageModel):
    """BERT's masked-LM head (Devlin et al. 2019, 3.1): float32 logits over the vocabulary.

    If the batch has ``targets`` (int32 [M], flat positions in R * C), only those tokens go through
    the vocabulary product: logits [M, V]. Otherwise all do: [R, C, V]. A tied decoder multiplies by
    the token embedding table, which belongs to the encoder: dropping the head can't take it along.
    With ``next_sentence`` the head also holds the weights of next-sentence prediction, for export;
    with ``pooler`` those of BERT's pooler alone, which another head may go on with. ``width`` is
    what the transform makes, that of a narrow embedding; 0: the encoder's.
    """

    vocabulary: int
    tied: bool = True
    next_sentence: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    dtype: Any = jnp.float32
    pooler: bool = False
    transform_bias: bool = True
    norm_bias: bool = True
    decoder_bias: bool = True
    width: int = 0

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        x = self.transformed(x_RCD, batch)
        width = x_RCD.shape[-1]
        if self.next_sentence and self.is_initializing():
            self.next_sentence_logits(x_RCD, batch)
        elif self.pooler and self.is_initializing():
            Dense(width, width, dtype=self.dtype, name="pooler")(
                cls(x_RCD.reshape(-1, width), batch)
            )
        return self.decoded(x, table)

    @nn.compact
    def decoded(self, x: jax.Array, table: Any) -> jax.Array:
        """Float32 logits of what :meth:`transformed` gives, or of means of it."""
        return self.decode(x, table, self.decoder_bias)

    @nn.compact
    def transformed(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """What the decoder reads, [..., D]: a dense layer, the activation and a norm."""
        width = x_RCD.shape[-1]
        x = at_targets(x_RCD, batch)
        x = Dense(
            width, self.width or width, self.transform_bias, dtype=self.dtype, name="transform"
        )(x)
        x = ACTIVATIONS[self.activation](x)
        return Norm(self.norm_epsilon, self.dtype, self.norm_bias, name="norm")(x)

    @nn.compact
    def next_sentence_logits(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """float32 logits [N, 2]: sentence B follows A (0) or is random (1)."""
        width = x_RCD.shape[-1]
        x = cls(x_RCD.reshape(-1, width), batch)
        x = jnp.tanh(Dense(width, width, dtype=self.dtype, name="pooler")(x))
        return Dense(width, 2, dtype=self.dtype, name="next_sentence")(x).astype(jnp.float32)


class ReplacedTokens(nn.Module):
    """ELECTRA's discriminator (Clark et al. 2020, 3): a float32 logit a token, [R * C, 1], or [M,
    1] at the batch's ``targets``. It is positive where the token was replaced by a generator.
    """

    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        x = self.transformed(x_RCD, batch)
        return Dense(x.shape[-1], 1, dtype=self.dtype, name="classifier")(x).astype(jnp.float32)

    @nn.compact
    def transformed(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """What the classifier reads, [R * C, D]: a dense layer and the activation."""
        width = x_RCD.shape[-1]
        x = at_targets(x_RCD, batch).reshape(-1, width)
        x = Dense(width, width, dtype=self.dtype, name="hidden")(x)
        return ACTIVATIONS[self.activation](x)


class MaskedPixels(nn.Module):
    """The pixels of a patch by a dense layer on one token (SimMIM, Xie et al. 2022, 3.3): float32
    [M, pixels] at the batch's ``targets``, or [R, C, pixels].

    ``pixels`` are channels * P * P, in the order of :func:`adapt.objectives.masked_image.
    pixels_of_patches`. The head has the token that stands in for a masked patch, ``mask_token``
    [D], which the embedding reads from its batch.
    """

    pixels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        self.param("mask_token", nn.initializers.zeros, (width,))
        x = at_targets(x_RCD, batch)
        decoder = Dense(width, self.pixels, dtype=self.dtype, name="decoder")
        return decoder(x).astype(jnp.float32)


class CausalLM(LanguageModel):
    """Next-token logits in float32: [R, C, V], or [M, V] at the batch's ``targets``.

    Tied to the token embedding table, as in GPT-2, it has no weights of its own: ``{}``.
    """

    vocabulary: int
    tied: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        return self.decoded(self.transformed(x_RCD, batch), table)

    @nn.compact
    def decoded(self, x: jax.Array, table: Any) -> jax.Array:
        """Float32 logits of what :meth:`transformed` gives, or of means of it."""
        return self.decode(x, table, False)

    @nn.nowrap
    def transformed(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """What the decoder reads: the encoder's output as it is."""
        return at_targets(x_RCD, batch)


class OnHead(nn.Module):
    """A new head on that of pre-training, which is kept below it: float32 logits [N, classes].

    It stands for what this project advises against, so that both can be compared. It reads the
    logits of the head below, or what its last layer reads, and pools them where they are of tokens.

    * ``classes``: outputs an example; 0 for the pooled features.
    * ``below``: the kind and the fields of the head below, as pairs; see :meth:`on`. Its weights
      are ``head/below`` of the parameters.
    * ``stage``: a name of ``STAGES``.
    * ``pooling``: a name of ``POOLINGS`` for a head of tokens; "" for one that pools by itself.

        head = OnHead.on(pretrained.head, "transform", "mean", classes=2)
    """

    classes: int
    below: tuple[tuple[Any, ...], ...]
    stage: str = "logits"
    pooling: str = "mean"
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @classmethod
    def on(
        cls, below: Any, stage: str, pooling: str = "mean", classes: int = 0, dropout: float = 0.0
    ) -> "OnHead":
        """The head on ``below``, a head of this module."""
        fields = [("kind", type(below).__name__)]
        for field in dataclasses.fields(below):
            if field.name not in ("dtype", "parent", "name"):
                fields.append((field.name, getattr(below, field.name)))
        if isinstance(below, Classifier):
            pooling = ""
        return cls(classes, tuple(fields), stage, pooling, dropout)

    @nn.nowrap
    def make_below(self, **fields: Any) -> Any:
        """The head below, as a module."""
        settings = dict(self.below) | fields
        return HEADS[settings.pop("kind")](**settings)

    @nn.nowrap
    def pooled(self, x: jax.Array, batch: Batch) -> jax.Array:
        """What the head below makes of tokens, [..., D], as a vector an example, [N, D]; what it has
        pooled by itself as it is.
        """
        if not self.pooling:
            return x
        return POOLINGS[self.pooling](x.reshape(-1, x.shape[-1]), batch)

    @property
    def tied(self) -> bool:
        """Whether the head below multiplies by the token embedding table."""
        return self.stage == "logits" and bool(dict(self.below).get("tied", False))

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        below = self.make_below(dtype=self.dtype, name="below")
        # A decoder is affine: the mean of logits is the logits of the mean, which are far fewer.
        is_average_of_logits = (
            isinstance(below, LanguageModel) and POOLINGS.get(self.pooling) in AVERAGES
        )
        if self.stage == "transform":
            x = self.pooled(below.transformed(x_RCD, batch), batch)
        elif is_average_of_logits:
            x = below.decoded(self.pooled(below.transformed(x_RCD, batch), batch), table)
        else:
            x = self.pooled(below(x_RCD, batch, table), batch)
        if not self.classes:
            return x.astype(jnp.float32)
        x = Dropout(self.dropout)(x.astype(self.dtype), deterministic)
        return Dense(x.shape[-1], self.classes, dtype=self.dtype, name="classifier")(x).astype(
            jnp.float32
        )


def stages_of(head: Any) -> tuple[str, ...]:
    """The stages of a checkpoint's head that another one can be put on, in their order: those of
    ``STAGES`` that it has; () for one that puts out nothing of its own, or no vectors.
    """
    if isinstance(head, Classifier):
        if not head.classes or head.columns or head.layers:
            return ()
        return ("transform", "logits") if head.hidden else ("logits",)
    if isinstance(head, MaskedLM | ReplacedTokens):
        return ("transform", "logits")
    return ("logits",) if isinstance(head, CausalLM | MaskedPixels) else ()


def at_targets(x_RCD: jax.Array, batch: Batch) -> jax.Array:
    """The tokens at the batch's ``targets``, [M, D]; all of them, [R, C, D], where it has none."""
    if "targets" not in batch:
        return x_RCD
    return x_RCD.reshape(-1, x_RCD.shape[-1])[batch["targets"]]


class Decoder(nn.Module):
    """x [..., D] -> float32 logits [..., V], by the tied table [V, D] or its own kernel [D, V].

    With ``tokens`` they are the logits of these ids alone, [..., len(tokens)].
    """

    vocabulary: int
    tied: bool
    bias: bool
    dtype: Any = jnp.float32
    tokens: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, table: Any) -> jax.Array:
        chosen = np.array(self.tokens) if self.tokens else slice(None)
        if self.tied:
            logits = x @ table[chosen].astype(self.dtype).T
        else:
            shape = (x.shape[-1], self.vocabulary)
            kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
            logits = x @ kernel[:, chosen].astype(self.dtype)
        logits = logits.astype(jnp.float32)
        if not self.bias:
            return logits
        bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        return logits + bias[chosen]


# How far a head that is kept is computed: to what its last layer reads, or to the end.
STAGES = ("transform", "logits")

# The heads of pre-training, which predict nothing that a task asks for.
PRETRAINING_HEADS = (MaskedLM, CausalLM, ReplacedTokens, MaskedPixels)

HEADS: dict[str, type[nn.Module]] = {
    head.__name__: head
    for head in (Classifier, Distilled, OnHead, Tagger, Span, *PRETRAINING_HEADS)
}

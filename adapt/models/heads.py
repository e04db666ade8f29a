"""Heads: what pre-training put on the encoder, and what downstream tasks put in its place.

A head is a Linen module called with the encoder's output x [R, C, D], the batch, and the token embedding table
[V, D] for decoders tied to it. Pooling is the head's own: it works by segment, whatever the packing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from adapt.models.layers import ACTIVATIONS, Batch, Dense, Dropout, Norm


def cls(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The first token of each example."""
    return owned(x_TD[batch["first"]], batch)


def last(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The last token of each example."""
    return owned(x_TD[batch["first"] + jnp.maximum(batch["length"], 1) - 1], batch)


def mean(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The mean over each example's own tokens, summed in float32."""
    examples = batch["length"].shape[0]
    total = jax.ops.segment_sum(x_TD.astype(jnp.float32), batch["segments"].reshape(-1), examples)
    return (total / jnp.maximum(batch["length"], 1)[:, None]).astype(x_TD.dtype)


def maximum(x_TD: jax.Array, batch: Batch) -> jax.Array:
    """The maximum over each example's own tokens, by feature."""
    examples = batch["length"].shape[0]
    top = jax.ops.segment_max(x_TD, batch["segments"].reshape(-1), examples)
    return owned(top, batch)


def attention_pooling(x_TD: jax.Array, batch: Batch, query_D: jax.Array) -> jax.Array:
    """Each example's own tokens weighted by softmax(x . query / sqrt(D)), in float32; a query of zeros gives their mean."""
    examples = (
        batch["length"].shape[0] + 1
    )  # nobody's tokens are one more, so that no gradient overflows there
    owner_T = batch["segments"].reshape(-1)
    x = x_TD.astype(jnp.float32)
    scores_T = x @ query_D.astype(jnp.float32) * x.shape[-1] ** -0.5
    top_N = jax.lax.stop_gradient(jax.ops.segment_max(scores_T, owner_T, examples))
    weights_T = jnp.exp(scores_T - top_N[owner_T])
    total_N = jnp.maximum(
        jax.ops.segment_sum(weights_T, owner_T, examples), 1.0
    )  # 1 or more where there is a token
    pooled_ND = jax.ops.segment_sum(weights_T[:, None] * x, owner_T, examples) / total_N[:, None]
    return pooled_ND[:-1].astype(x_TD.dtype)


def owned(x_ND: jax.Array, batch: Batch) -> jax.Array:
    """Zeros for an example without tokens, as its mean is: never a token of its neighbours."""
    return jnp.where(batch["length"][:, None] > 0, x_ND, jnp.zeros((), x_ND.dtype))


POOLINGS: dict[str, Callable[[jax.Array, Batch], jax.Array]] = {
    "mean": mean,
    "cls": cls,
    "max": maximum,
    "last": last,
    "pooler": cls,  # then dense and tanh, with weights of its own: BERT's pooler, trained by next-sentence prediction
}


class Classifier(nn.Module):
    """Pool each example and, if ``classes``, project: [N, classes] logits in float32; with 0 classes, features [N, D].

    Regression has one class. With ``pooling="pooler"`` or ``"attention"`` those weights are the head's own. Of several
    ``layers`` the input is side by side, [R, C, layers * D], and stays so (BERT's feature-based approach, Devlin et al.
    2019, 5.3), or is mixed to [N, D] by ``mix="learned"`` (ELMo's scalar mix, Peters et al. 2018, eq. 1). With label
    ``columns`` of so many classes each, logits are [N, columns, most classes], -inf where a column has fewer. Also takes
    what :meth:`pool` gives in place of the encoder's output.
    """

    classes: int
    pooling: str = "mean"
    bias: bool = True
    dropout: float = 0.0
    layers: tuple[
        int, ...
    ] = ()  # that are read: 0 the embedding, k the k-th block; none given: the last
    mix: str = "concat"
    columns: tuple[int, ...] = ()
    dtype: Any = jnp.float32

    @property
    def pools(self) -> bool:
        """Whether the head begins with a part that has no weights: :meth:`pool`."""
        return self.pooling != "attention"

    @nn.nowrap
    def pool(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """The part of the head that has no weights: [R, C, D] -> [N, D]."""
        return POOLINGS[self.pooling](x_RCD.reshape(-1, x_RCD.shape[-1]), batch)

    @nn.compact
    def __call__(
        self, x: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x.shape[-1]
        if not self.pools:
            query = self.param("attention", nn.initializers.zeros, (width,))
            x = attention_pooling(x.reshape(-1, width), batch, query)
        elif x.ndim == 3:
            x = self.pool(x, batch)
        if self.mix == "learned":
            shares = nn.softmax(self.param("mix", nn.initializers.zeros, (len(self.layers),)))
            weights = (self.param("scale", nn.initializers.ones, ()) * shares).astype(x.dtype)
            x = jnp.einsum("NLD,L->ND", x.reshape(len(x), len(self.layers), -1), weights)
        if self.pooling == "pooler":
            x = jnp.tanh(Dense(width, width, dtype=self.dtype, name="pooler")(x))
        if not self.classes:
            return x.astype(jnp.float32)
        x = Dropout(self.dropout)(x, deterministic)
        logits = Dense(x.shape[-1], self.classes, self.bias, dtype=self.dtype, name="classifier")(
            x
        ).astype(jnp.float32)
        if not self.columns:
            return logits
        parts = jnp.split(logits, np.cumsum(self.columns)[:-1], axis=1)
        most = max(self.columns)
        missing = [((0, 0), (0, most - part.shape[1])) for part in parts]
        return jnp.stack(
            [jnp.pad(*each, constant_values=-jnp.inf) for each in zip(parts, missing, strict=True)],
            1,
        )


class Tagger(nn.Module):
    """Logits [M, classes] of the tokens at the batch's ``targets`` (int32 [M], flat positions in R*C): words' first ones."""

    classes: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        x = x_RCD.reshape(-1, width)
        x = Dropout(self.dropout)(x[batch["targets"]] if "targets" in batch else x, deterministic)
        return Dense(width, self.classes, dtype=self.dtype, name="classifier")(x).astype(
            jnp.float32
        )


class Span(nn.Module):
    """Logits [N, 2, tokens] of where a span starts and where it ends, -inf beyond an example's own tokens.

    A start and an end vector (Devlin et al. 2019, 4.2), without biases, which a softmax over places would not see;
    ``tokens`` is the most that an example may have.
    """

    tokens: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        place_L = jnp.arange(self.tokens)
        x = Dropout(self.dropout)(x_RCD.reshape(-1, width), deterministic)
        logits_T2 = Dense(width, 2, False, dtype=self.dtype, name="span")(x).astype(jnp.float32)
        own_NL = (
            place_L < jnp.maximum(batch["length"], 1)[:, None]
        )  # an empty slot has one place, so its loss is 0
        logits_NL2 = logits_T2[jnp.where(own_NL, batch["first"][:, None] + place_L, 0)]
        return jnp.where(own_NL[:, None], logits_NL2.transpose(0, 2, 1), -jnp.inf)


class MaskedLM(nn.Module):
    """BERT's masked-LM head (Devlin et al. 2019, 3.1) and, where the checkpoint has it, next-sentence prediction.

    If the batch has ``targets`` (int32 [M], flat positions in R*C), only those go through the vocabulary product:
    logits [M, V]; else all tokens do: [R, C, V]. A tied decoder multiplies by the embedding table, which belongs to
    the encoder: dropping the head can never take it along.
    """

    vocabulary: int
    tied: bool = True
    next_sentence: bool = False
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        width = x_RCD.shape[-1]
        x = x_RCD.reshape(-1, width)[batch["targets"]] if "targets" in batch else x_RCD
        x = ACTIVATIONS[self.activation](Dense(width, width, dtype=self.dtype, name="transform")(x))
        x = Norm(self.norm_epsilon, self.dtype, name="norm")(x)
        if self.next_sentence and self.is_initializing():
            self.next_sentence_logits(x_RCD, batch)
        return Decoder(self.vocabulary, self.tied, True, self.dtype, name="decoder")(x, table)

    @nn.compact
    def next_sentence_logits(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """[N, 2] logits: sentence B follows A (0) or is random (1)."""
        width = x_RCD.shape[-1]
        x = cls(x_RCD.reshape(-1, width), batch)
        x = jnp.tanh(Dense(width, width, dtype=self.dtype, name="pooler")(x))
        return Dense(width, 2, dtype=self.dtype, name="next_sentence")(x).astype(jnp.float32)


class CausalLM(nn.Module):
    """Next-token logits [R, C, V], or [M, V] at ``targets``. Tied, as in GPT-2, it has no weights of its own: ``{}``."""

    vocabulary: int
    tied: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True
    ) -> jax.Array:
        x = x_RCD.reshape(-1, x_RCD.shape[-1])[batch["targets"]] if "targets" in batch else x_RCD
        return Decoder(self.vocabulary, self.tied, False, self.dtype, name="decoder")(x, table)


class Decoder(nn.Module):
    """x [..., D] -> float32 logits [..., V], by the tied table [V, D] or a stored kernel [D, V]."""

    vocabulary: int
    tied: bool
    bias: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, table: Any) -> jax.Array:
        if self.tied:
            logits = x @ table.astype(self.dtype).T
        else:
            shape = (x.shape[-1], self.vocabulary)
            logits = x @ self.param("kernel", nn.initializers.normal(0.02), shape).astype(
                self.dtype
            )
        logits = logits.astype(jnp.float32)
        return (
            logits + self.param("bias", nn.initializers.zeros, (self.vocabulary,))
            if self.bias
            else logits
        )


HEADS: dict[str, type[nn.Module]] = {
    head.__name__: head for head in (Classifier, Tagger, Span, MaskedLM, CausalLM)
}

"""Heads: what pre-training put on the encoder, and what downstream tasks put in its place.

A head is a Linen module called with the encoder's output x [R, C, D], the batch, and the token embedding table
[V, D] for decoders tied to it. Pooling is the head's own: it works by segment, whatever the packing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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

    Regression has one class. With ``pooling="pooler"`` the pooler's weights are the head's own. Also takes what
    :meth:`pool` gives, [N, D], in place of the encoder's output.
    """

    classes: int
    pooling: str = "mean"
    bias: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.nowrap
    def pool(self, x_RCD: jax.Array, batch: Batch) -> jax.Array:
        """The part of the head that has no weights: [R, C, D] -> [N, D]."""
        return POOLINGS[self.pooling](x_RCD.reshape(-1, x_RCD.shape[-1]), batch)

    @nn.compact
    def __call__(self, x: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True) -> jax.Array:
        width = x.shape[-1]
        x = self.pool(x, batch) if x.ndim == 3 else x
        if self.pooling == "pooler":
            x = jnp.tanh(Dense(width, width, dtype=self.dtype, name="pooler")(x))
        if not self.classes:
            return x.astype(jnp.float32)
        x = Dropout(self.dropout)(x, deterministic)
        return Dense(width, self.classes, self.bias, dtype=self.dtype, name="classifier")(x).astype(jnp.float32)


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
    def __call__(self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True) -> jax.Array:
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
    def __call__(self, x_RCD: jax.Array, batch: Batch, table: Any = None, deterministic: bool = True) -> jax.Array:
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
            logits = x @ self.param("kernel", nn.initializers.normal(0.02), shape).astype(self.dtype)
        logits = logits.astype(jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (self.vocabulary,)) if self.bias else logits


HEADS: dict[str, type[nn.Module]] = {"Classifier": Classifier, "MaskedLM": MaskedLM, "CausalLM": CausalLM}

"""Losses are per example, float32, and pure; a step takes sums of them and of weights, never means of means."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats. logits [..., C], label int32 [...] -> [...]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label)


def binary_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean over classes of the sigmoid cross-entropy, in nats. logits [N, C], label [N, C] of 0 and 1 -> [N]."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), label).mean(-1)


def squared_error(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Squared error. logits [N, 1], label float32 [N] -> [N]."""
    return (logits[:, 0].astype(jnp.float32) - label) ** 2


def columns_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Sum over label columns of the cross-entropy. logits [N, K, C], -inf where a column has fewer, label [N, K] -> [N]."""
    return cross_entropy(logits, label).sum(-1)


def choice_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy between the K sequences of an example. logits [N * K, 1], label int32 [N] -> [N]."""
    return cross_entropy(logits.reshape(len(label), -1), label)


def span_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean of the cross-entropies of start and end (Devlin et al. 2019, 4.2). logits [N, 2, L], label int32 [N, 2] -> [N].

    An example whose label is -1 counts nothing: its span was cut off.
    """
    return jnp.where(label[:, 0] < 0, 0.0, cross_entropy(logits, jnp.maximum(label, 0)).mean(-1))


def contrastive(embeddings: jax.Array, label: jax.Array, temperature: float = 0.05) -> jax.Array:
    """InfoNCE (van den Oord et al. 2018, eq. 4) with the batch's other positives as negatives (Henderson et al. 2017).

    The cross-entropy of cosines over the temperature. embeddings [2 N, D], anchors and positives in turn -> [N]; label
    [N] is 1, and 0 for an empty slot, which is nobody's negative.
    """
    anchors, positives = unit_pairs(embeddings, label)
    logits = jnp.where(label > 0, anchors @ positives.T / temperature, -1e9)
    return cross_entropy(logits, jnp.arange(len(label)))


def cosine_error(embeddings: jax.Array, label: jax.Array) -> jax.Array:
    """Squared error of a pair's cosine, to be 1 for the same class and 0 for others (Tunstall et al. 2022, 3).

    embeddings [2 N, D], a pair in turn, label [N] of 0 and 1 -> [N].
    """
    one, other = unit_pairs(embeddings, label)
    return ((one * other).sum(-1) - label) ** 2


def unit_pairs(embeddings: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """embeddings [2 N, D] -> two of [N, D] of length 1 in float32; zeros stay zeros, and their gradient finite."""
    x = embeddings.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
    x = x.reshape(len(label), 2, -1)
    return x[:, 0], x[:, 1]

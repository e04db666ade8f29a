"""Losses: one float32 number an example, pure, of (outputs of the head, label).

A step takes sums of them and of weights, never means of means. N is the number of examples, C that
of classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Softmax cross-entropy in nats. logits [..., C], label int32 [...] -> float32 [...].

    cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))   # [1.386, 1.386]: log 4
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label)


def binary_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean over classes of the sigmoid cross-entropy, in nats: each class is a decision of its own.

    logits [N, C], label [N, C] of 0 and 1 -> float32 [N].

        binary_cross_entropy(jnp.zeros((1, 3)), jnp.array([[1.0, 0.0, 1.0]]))   # [0.693]: log 2
    """
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), label).mean(-1)


def squared_error(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Squared error of one number. logits [N, 1], label float32 [N] -> float32 [N].

    squared_error(jnp.array([[2.0]]), jnp.array([0.5]))   # [2.25]
    """
    return (logits[:, 0].astype(jnp.float32) - label) ** 2


def columns_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Sum over K label columns of the cross-entropy.

    logits [N, K, C], label int32 [N, K] -> float32 [N]. A column with fewer than C classes has
    logits of -inf in place of the others.
    """
    return cross_entropy(logits, label).sum(-1)


def choice_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross-entropy between the K sequences of an example.

    logits [N * K, 1], label int32 [N] -> float32 [N].
    """
    return cross_entropy(logits.reshape(len(label), -1), label)


def span_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Mean of the cross-entropies of start and end (Devlin et al. 2019, 4.2).

    logits [N, 2, L], label int32 [N, 2], the positions of both, or [N, A, 2] with several answers,
    of which the first counts -> float32 [N]. The loss is 0 for a label of -1: the span was
    truncated away.
    """
    label = label.reshape(len(label), -1, 2)[:, 0]
    ends = cross_entropy(logits, jnp.maximum(label, 0)).mean(-1)
    return jnp.where(label[:, 0] < 0, 0.0, ends)


def contrastive(embeddings: jax.Array, label: jax.Array, temperature: float = 0.05) -> jax.Array:
    """InfoNCE (van den Oord et al. 2018, eq. 4) with the batch's other positives as negatives.

    It is the cross-entropy of cosines over the temperature (Henderson et al. 2017). embeddings
    [2 N, D], anchors and positives in turn; label [N], 1, or 0 for an empty slot -> float32 [N]. An
    empty slot is no example's negative.
    """
    anchors, positives = unit_pairs(embeddings, label)
    logits = jnp.where(label > 0, anchors @ positives.T / temperature, -1e9)
    return cross_entropy(logits, jnp.arange(len(label)))


def cosine_error(embeddings: jax.Array, label: jax.Array) -> jax.Array:
    """Squared error of a pair's cosine, which should be the label (Tunstall et al. 2022, 3).

    embeddings [2 N, D], the two of a pair in turn; label [N], 1 for the same class and 0 for
    others -> float32 [N].
    """
    first, second = unit_pairs(embeddings, label)
    cosine = (first * second).sum(-1)
    return (cosine - label) ** 2


def unit_pairs(embeddings: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two embeddings of each pair, scaled to length 1. [2 N, D] -> twice float32 [N, D].

    Zeros stay zeros, and their gradient finite.
    """
    x = embeddings.astype(jnp.float32)
    squared_norm = jnp.square(x).sum(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(squared_norm, 1e-12))
    x = x.reshape(len(label), 2, -1)
    return x[:, 0], x[:, 1]

"""Linear probes: standardised features, and heads fitted for many training sets at once.

    features = layer_features(pretrained, batches, count, ("mean", "cls"))
    scaled   = standardize(features[layer, pooling], train)
    heads    = logistic(scaled, labels, train, strengths, classes)
    answers  = predict(heads, scaled.x, held_out, classes)

S training sets (folds, seeds) are rows of a matrix, bool [S, N]; K are strengths, C classes, H the
most rows held out. ``strength`` is the weight of the L2 penalty: 1 / C in scikit-learn's
LogisticRegression, alpha in its Ridge.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Scaled(NamedTuple):
    """Features in units of all training rows together, and the moments of each set's own rows in
    these units.

    The units are a change of coordinates for the numbers' sake; what a head of set s sees is ``(x -
    mean[s]) / std[s]``.
    """

    x: np.ndarray  # float64 [N, D]
    mean: np.ndarray  # float64 [S, D]
    std: np.ndarray  # float64 [S, D], inf where a feature is constant in a set: it counts nothing


def standardize(features: np.ndarray, train: np.ndarray) -> Scaled:
    """Features [N, D] scaled for the training sets bool [S, N].

    A row that no set trains on decides nothing but its own ``x``.
    """
    raw = features.astype(np.float64)
    used = train.any(0)
    center = raw[used].mean(0)
    scale = raw[used].std(0)
    floor = min_std(center, scale)
    unit = np.where(scale > floor, scale, np.inf)
    x = (raw - center) / unit
    share = train / train.sum(1, keepdims=True)
    mean = share @ x
    variance = share @ x**2 - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return Scaled(x, mean, np.where(std * scale > floor, std, np.inf))


def unscaled(features: np.ndarray, train: np.ndarray) -> Scaled:
    """Features [N, D] as they are, for the training sets bool [S, N]: then a penalty is of their
    own units, as in scikit-learn without a StandardScaler.
    """
    shape = (len(train), features.shape[1])
    return Scaled(features.astype(np.float64), np.zeros(shape), np.ones(shape))


def min_std(center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The standard deviation [D] up to which a feature counts as constant.

    It is a millionth of the feature's size, since float32 leaves noise there, or 1e-12 of the
    largest feature's. (Two of MiniLM's 384 features deviate by 1e-32: dividing by that would blow
    up what is nothing.)
    """
    size = np.hypot(center, scale)
    return np.maximum(1e-6 * size, 1e-12 * size.max())


class Linear(NamedTuple):
    """Heads of S sets and K strengths: ``scaled.x @ kernel + bias`` scores C columns."""

    kernel: np.ndarray  # float64 [S, K, C, D]
    bias: np.ndarray  # float64 [S, K, C]
    # The largest entry of a fit's gradient of the mean objective, standardised: scikit-learn's
    # ``tol`` bounds it.
    gradient: np.ndarray | None = None  # [S, K]
    converged: np.ndarray | None = None  # bool [S, K]


def ridge(
    scaled: Scaled, labels: np.ndarray, train: np.ndarray, strengths: Sequence[float], classes: int
) -> Linear:
    """Ridge regressions, ``strength ||w||^2 + sum of squares``, of values or (``classes`` > 0) of
    one-hot classes, float64.

    One eigendecomposition X'X = V L V' a set serves all strengths: w = V (L + strength)^-1 V'X'y.
    """
    if classes:
        targets = np.eye(classes)[labels]
    else:
        targets = np.asarray(labels, np.float64)[:, None]
    penalties = np.array(strengths)[:, None, None]
    kernels = []
    biases = []
    for rows, mean, std in zip(train, scaled.mean, scaled.std, strict=True):
        x = (scaled.x[rows] - mean) / std
        y = targets[rows]
        y_mean = y.mean(0)
        values, vectors = np.linalg.eigh(x.T @ x)
        inverse = 1 / (np.maximum(values, 0) + penalties)  # [K, 1, D]
        products = (y - y_mean).T @ x @ vectors
        kernel = (products * inverse) @ vectors.T / std
        kernels.append(kernel)
        biases.append(y_mean - kernel @ mean)
    return Linear(np.array(kernels), np.array(biases))


def centroid(scaled: Scaled, labels: np.ndarray, train: np.ndarray, classes: int) -> Linear:
    """The nearest class mean of standardised features, K = 1. It is linear: ``m'x - ||m||^2 / 2``.

    A class without a training row scores -inf.
    """
    one_hot = np.eye(classes)[labels]
    kernels = []
    biases = []
    for rows, mean, std in zip(train, scaled.mean, scaled.std, strict=True):
        is_class = one_hot[rows]
        count = is_class.sum(0)
        total = is_class.T @ scaled.x[rows]
        class_mean = total / np.maximum(count, 1)[:, None]
        class_mean = (class_mean - mean) / std
        kernel = class_mean / std
        squared_norm = (class_mean**2).sum(1)
        bias = -squared_norm / 2 - kernel @ mean
        bias = np.where(count, bias, -np.inf)
        kernels.append(kernel[None])
        biases.append(bias[None])
    return Linear(np.array(kernels), np.array(biases))


@functools.partial(jax.jit, static_argnames="classes")
def predict(heads: Linear, x: jax.Array, held_out: jax.Array, classes: int) -> jax.Array:
    """The answers of every head to the rows that its set holds out: ``scaled.x`` [N, D], int [S, H]
    -> [S, K, H].

    They are classes int32, or values float32 where ``classes`` is 0.
    """

    def predict_set(arrays: Any) -> jax.Array:
        kernel, bias, rows = arrays
        scores = jnp.einsum("kcd,hd->kch", kernel, x[rows], precision="highest")
        scores = scores + bias[..., None]
        if not classes:
            return scores[:, 0]
        if scores.shape[1] > 1:
            return jnp.argmax(scores, 1).astype(jnp.int32)
        return (scores[:, 0] > 0).astype(jnp.int32)

    return jax.lax.map(predict_set, (heads.kernel, heads.bias, held_out))


@functools.partial(jax.jit, static_argnames=("neighbours", "classes"))
def nearest(
    scaled: Scaled,
    labels: jax.Array,
    train: jax.Array,
    held_out: jax.Array,
    neighbours: tuple[int, ...],
    classes: int,
) -> jax.Array:
    """As :func:`predict`, by the ``neighbours`` nearest training rows: their vote, or the mean of
    their values.

    Distances are Euclidean between standardised features; a tie goes to the first class. K is the
    number of ``neighbours``.
    """
    numbers = np.array(neighbours)

    def predict_set(arrays: Any) -> jax.Array:
        rows, mean, std, in_train = arrays
        x = (scaled.x - mean) / std
        products = jnp.matmul(x[rows], x.T, precision="highest")
        closeness = 2 * products - (x**2).sum(1)
        closeness = jnp.where(in_train, closeness, -jnp.inf)
        _, indices = jax.lax.top_k(closeness, max(neighbours))
        near = labels[indices]  # [H, most neighbours]
        if not classes:
            sums = jnp.cumsum(near, 1)[:, numbers - 1]
            return (sums / numbers).T
        one_hot = jax.nn.one_hot(near, classes)
        votes = jnp.cumsum(one_hot, 1)[:, numbers - 1]
        return votes.argmax(-1).astype(jnp.int32).T

    return jax.lax.map(predict_set, (held_out, scaled.mean, scaled.std, train))

"""Logistic regressions for many training sets and penalties at once, in JAX.

Where the sets are large, all fits share one matrix of features. It is whitened once; in the
whitened basis every fit's Hessian is nearly diagonal, so that conjugate gradients need few steps,
and a step costs two matrix products for all fits together.

Where the sets are small against their union, most of these products would be with rows that a fit
does not train on. Each set then has a matrix of its own rows, in the basis of its own principal
axes, where the penalty stays as simple as it is, and its fits share that.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from adapt.probing.descent import Losses, State, descend, dot, matmul, per_fit
from adapt.probing.linear import Linear, Scaled

TINY = 1e-7  # directions with less of the mean eigenvalue, 1, are not whitened any further
BLOCK = 1 << 20  # logits that are computed together: they stay in the processor's cache
SMALL = 0.25  # sets whose rows are a lesser share of their union, on average, stand alone
REFRESH = 50  # steps by the first estimate of the curvature; a later one is kept longer

# The kernel, bias, gradient and converged of Linear.
Fitted = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def logistic(
    scaled: Scaled,
    labels: np.ndarray,
    train: np.ndarray,
    strengths: Sequence[float],
    classes: int,
    tolerance: float = 2e-6,
    steps: int = 500,
) -> Linear:
    """Logistic regressions, ``strength / 2 ||w||^2 + sum of losses``: one column for two classes,
    else one a class.

    ``labels`` int [N] are below ``classes``; ``train`` bool [S, N] has a training set a row. A fit
    has converged when its gradient, in the norm of the preconditioner, is ``tolerance`` of what it
    was at zero. See :func:`sets_are_small` for how fits are computed.
    """
    fit = fit_each_set if sets_are_small(train) else fit_sets_together
    fitted = fit(scaled, labels, train, strengths, classes, tolerance, steps)
    kernel, bias, gradient, converged = fitted
    # With nothing but an intercept the gradient is round-off from the start.
    only_intercept = np.isinf(scaled.std).all(1, keepdims=True)
    converged = converged | only_intercept
    if classes > 2:
        targets = one_hot_targets(labels, classes)
        absent = (train @ targets.T == 0)[:, None]
        bias = np.where(absent, -np.inf, bias)
    return Linear(kernel, bias, gradient, converged)


def sets_are_small(train: np.ndarray) -> bool:
    """Whether the sets bool [S, N] have, on average, less than a quarter of the rows of their
    union.

    Each is then fitted on its own rows. What a step multiplies falls by that share; but matrices
    are smaller, and each set needs a basis of its own, so that a smaller saving is none.
    """
    union = train.any(0).sum()
    return train.sum() < SMALL * union * len(train)


# Large sets: one matrix for all


def fit_sets_together(
    scaled: Scaled,
    labels: np.ndarray,
    train: np.ndarray,
    strengths: Sequence[float],
    classes: int,
    tolerance: float,
    steps: int,
) -> Fitted:
    """See :func:`logistic`: every fit on the whitened rows of the union, with weights 0 and 1.

    Every Hessian is bounded by the same matrix: a quarter of X'X, and half of it for more than two
    classes (Böhning 1992).
    """
    used = train.any(0)
    x = scaled.x[used]
    white, unwhiten, variances = whiten(x)
    targets = one_hot_targets(labels[used], classes)
    penalised = np.append(1 / variances, 0)  # the intercept, which comes last, is not
    shared = on_device(white, x, unwhiten, penalised, targets)
    varies = scaled.std < np.inf
    std = np.where(varies, scaled.std, 1)

    # Fit number k * S + s has strength k and training set s. All blocks have one size, so that they
    # share a program.
    count = len(train) * len(strengths)
    num_blocks = ceil_div(count * targets.size, BLOCK)
    block = ceil_div(count, num_blocks)
    results = []
    for start in range(0, count, block):
        # The last block is filled with fits of the first.
        fits = np.arange(start, start + block) % count
        strength_of_fit, set_of_fit = np.divmod(fits, len(train))
        rows = np.float32(train[set_of_fit][:, used])
        std_of_fit = np.float32(std[set_of_fit])
        strength = np.asarray(strengths, np.float32)[strength_of_fit]
        result = minimise(*shared, rows, std_of_fit, strength, tolerance, steps)
        results.append(result)

    def by_set(arrays: Sequence[Any]) -> np.ndarray:
        """Blocks [B, ...] -> [S, K, ...]."""
        fits = np.concatenate(arrays)[:count]
        return fits.reshape(len(strengths), len(train), *fits.shape[1:]).swapaxes(0, 1)

    weights, gradient, converged = (by_set(arrays) for arrays in zip(*results, strict=True))
    kernel = weights @ unwhiten * varies[:, None, None]
    return kernel, weights[..., -1], gradient, converged


def whiten(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [N, D] -> (whitened with a last column of ones [N, D + 1], weights of it to weights of x [D
    + 1, D], variances [D]).
    """
    covariance = x.T @ x / len(x)
    variances, vectors = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 0) + TINY
    scaled_vectors = (vectors / np.sqrt(variances)).T
    unwhiten = np.vstack([scaled_vectors, np.zeros(x.shape[1])])
    white = x @ unwhiten.T
    white[:, -1] = 1
    return white, unwhiten, variances


@functools.partial(jax.jit, static_argnames="steps")
def minimise(
    white: jax.Array,
    x: jax.Array,
    unwhiten: jax.Array,
    penalised: jax.Array,
    targets: jax.Array,
    train: jax.Array,
    std: jax.Array,
    strength: jax.Array,
    tolerance: float,
    steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """B fits side by side, on the rows of a union.

    white [N, D + 1], x [N, D], unwhiten [D + 1, D], penalised [D + 1], targets [C, N]; of each fit
    train [B, N], std [B, D], strength [B]. Returns (weights [B, C, D + 1] of whitened features,
    largest entry of the gradient [B], converged [B]).
    """
    binary = len(targets) == 1
    absent = (train @ targets.T == 0)[..., None] & (not binary)
    losses = Losses(white, targets, train[:, None], absent)

    def penalty_gradient(weights: jax.Array) -> jax.Array:
        unscaled = matmul(weights, unwhiten) * std[:, None] ** 2
        return per_fit(strength) * matmul(unscaled, unwhiten.T)

    curvature = 0.25 if binary else 0.5
    bound = curvature * jnp.sum(white**2, 0) + strength[:, None] * penalised
    bound = bound[:, None]  # [B, 1, D + 1]

    zeros = jnp.zeros((len(train), len(targets), white.shape[1]))
    logits = jnp.zeros((len(train), len(targets), len(white)))
    grad = matmul(losses.residual(logits), white)
    grad_norm2 = dot(grad, grad / bound)
    enough = tolerance**2 * grad_norm2
    state = State(
        weights=zeros,
        logits=logits,
        penalty_grad=zeros,
        grad=grad,
        direction=-grad / bound,
        grad_norm2=grad_norm2,
        step_size=jnp.ones(len(train)),
        converged=grad_norm2 <= enough,
        iteration=jnp.zeros((), jnp.int32),
    )
    state = descend(losses, penalty_gradient, bound, enough, state, steps)

    # The gradient afresh, in standardised coordinates: what scikit-learn's tolerance bounds.
    left = losses.residual(matmul(state.weights, white.T))
    unscaled = matmul(state.weights, unwhiten) * std[:, None] ** 2
    weight_grad = (matmul(left, x) + per_fit(strength) * unscaled) / std[:, None]
    bias_grad = left.sum(2)
    largest = jnp.maximum(jnp.abs(weight_grad).max((1, 2)), jnp.abs(bias_grad).max(1))
    return state.weights, largest / train.sum(1), state.converged


# Small sets: a matrix of its own rows for each


# Between these small products the threads of BLAS would wait busily: half of all CPU seconds.
@threadpoolctl.threadpool_limits.wrap(limits=1, user_api="blas")
def fit_each_set(
    scaled: Scaled,
    labels: np.ndarray,
    train: np.ndarray,
    strengths: Sequence[float],
    classes: int,
    tolerance: float,
    steps: int,
) -> Fitted:
    """See :func:`logistic`: the fits of each set on its own rows, which are filled up to one of a
    few counts, so that sets share programs.
    """
    kernels = []
    biases = []
    gradients = []
    are_converged = []
    for rows, mean, std in zip(train, scaled.mean, scaled.std, strict=True):
        standardized = (scaled.x[rows] - mean) / std
        coordinates, axes = principal_axes(standardized)
        targets = one_hot_targets(labels[rows], classes)
        arrays = on_device(*filled_up(coordinates, targets), np.array(strengths))
        weights, gradient, converged = minimise_alone(*arrays, tolerance, steps)
        # Back from coordinates on the axes of the standardized features to features.
        weights = np.asarray(weights)
        kernel = weights[..., : len(axes)] @ axes / std
        bias = weights[..., -1] - kernel @ mean
        kernels.append(kernel)
        biases.append(bias)
        gradients.append(np.asarray(gradient))
        are_converged.append(np.asarray(converged))
    return np.array(kernels), np.array(biases), np.array(gradients), np.array(are_converged)


def filled_up(coordinates: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [N, R] and targets [C, N] with more rows, which are 0 and count nothing.

    The coordinates get a last column, of ones for the rows that were there. Where there are as many
    columns as rows, both are filled up, so that shapes are few.
    """
    rows, rank = coordinates.shape
    count = few_counts(rows)
    width = count if rank == rows else rank
    features = np.zeros((count, width + 1))
    features[:rows, :rank] = coordinates
    features[:rows, -1] = 1
    return features, np.pad(targets, ((0, 0), (0, count - rows)))


def few_counts(count: int) -> int:
    """The least of few numbers that is not below ``count``, and at most an eighth above it."""
    step = 1 << max(0, (count - 1).bit_length() - 4)
    return ceil_div(count, step) * step


def principal_axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x [N, D] -> (coordinates [N, R], axes [R, D]), whose product x is; R is the lesser of N and
    D.

    The axes are orthonormal; the columns of the coordinates are orthogonal, to float32.
    """
    reduced = x
    row_space = None
    if len(x) < x.shape[1]:
        row_space, triangle = np.linalg.qr(x.T)
        reduced = triangle.T
    gram = reduced.T @ reduced
    # Any orthonormal basis is exact, and one that is roughly this is as quick: six times faster in
    # float32, then a Newton-Schulz step makes it orthonormal in float64.
    _, vectors = np.linalg.eigh(gram.astype(np.float32))
    vectors = vectors.astype(np.float64)
    vectors = vectors @ (1.5 * np.eye(len(vectors)) - 0.5 * vectors.T @ vectors)
    axes = vectors.T if row_space is None else vectors.T @ row_space.T
    return reduced @ vectors, axes


@functools.partial(jax.jit, static_argnames="steps")
def minimise_alone(
    features: jax.Array, targets: jax.Array, strength: jax.Array, tolerance: float, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The fits of one set, K strengths side by side.

    features [N, R + 1] are coordinates on principal axes, and ones, or 0 where a row is filled up;
    targets [C, N], strength [K]. Returns as :func:`minimise` does.

    Gradients are divided by the diagonal of the Hessian in these coordinates, with the mean
    ``p (1 - p)`` of each class: Böhning's bound is 40 times that for 77 classes. It is estimated
    anew after some steps, since that mean falls as the classes come apart. Each time the descent
    begins afresh, and its first steps mend the steep directions only: hence ever more of them.
    """
    counts = features[:, -1]
    penalised = jnp.ones(features.shape[1]).at[-1].set(0)
    weight = counts[None, None]
    absent = (matmul(targets, counts) == 0)[None, :, None] & (len(targets) > 1)
    losses = Losses(features, targets, weight, absent)
    squares = jnp.sum(features**2, 0)
    penalty = per_fit(strength) * penalised  # [K, 1, R + 1]

    def penalty_gradient(weights: jax.Array) -> jax.Array:
        return penalty * weights

    def diagonal(logits: jax.Array) -> jax.Array:
        p = losses.probabilities(logits)
        curvature = jnp.sum(weight * p * (1 - p), 2, keepdims=True) / counts.sum()
        return jnp.maximum(curvature, 1e-6) * squares + penalty  # [K, C, R + 1]

    def stage(state: State) -> State:
        bound = diagonal(state.logits)
        preconditioned = jnp.where(per_fit(state.converged), 0, state.grad / bound)
        state = state._replace(
            direction=-preconditioned,
            grad_norm2=dot(state.grad, preconditioned),
            step_size=jnp.ones(len(strength)),
        )
        last = jnp.minimum(2 * state.iteration + REFRESH, steps)
        return descend(losses, penalty_gradient, bound, enough, state, last)

    def keep_going(state: State) -> jax.Array:
        return ~jnp.all(state.converged) & (state.iteration < steps)

    zeros = jnp.zeros((len(strength), len(targets), features.shape[1]))
    logits = jnp.zeros((len(strength), len(targets), len(features)))
    grad = matmul(losses.residual(logits), features)
    grad_norm2 = dot(grad, grad / diagonal(logits))
    enough = tolerance**2 * grad_norm2
    state = State(
        weights=zeros,
        logits=logits,
        penalty_grad=zeros,
        grad=grad,
        direction=zeros,
        grad_norm2=grad_norm2,
        step_size=jnp.ones(len(strength)),
        converged=grad_norm2 <= enough,
        iteration=jnp.zeros((), jnp.int32),
    )
    state = jax.lax.while_loop(keep_going, stage, state)
    left = losses.residual(matmul(state.weights, features.T))
    largest = jnp.abs(matmul(left, features) + penalty * state.weights).max((1, 2))
    return state.weights, largest / counts.sum(), state.converged


# For both


def one_hot_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """bool [C, N]: a row a class; for two classes the second one alone."""
    if classes == 2:
        return (labels == 1)[None]
    return labels == np.arange(classes)[:, None]


def on_device(*arrays: np.ndarray) -> list[jax.Array]:
    """The arrays in float32 on this process's first device."""
    return jax.device_put([np.float32(array) for array in arrays], jax.local_devices()[0])


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)

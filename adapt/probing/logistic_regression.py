"""Logistic regressions for many training sets and penalties at once, in JAX.

All fits share one matrix of features. It is whitened once; in the whitened basis every fit's
Hessian is nearly diagonal, so that conjugate gradients need few steps, and a step costs two matrix
products for all fits together.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adapt.probing.linear import Linear, Scaled

TINY = 1e-7  # directions with less of the mean eigenvalue, 1, are not whitened any further
BLOCK = 1 << 20  # logits that are computed together: they stay in the processor's cache
LINE_SEARCH_STEPS = 10


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

    ``labels`` int [N] are below ``classes``; ``train`` bool [S, N] has a training set a row. Every
    Hessian is bounded by the same matrix: a quarter of X'X, and half of it for more than two
    classes (Böhning 1992). A fit has converged when its gradient, in the norm of that bound, is
    ``tolerance`` of what it was at zero.
    """
    used = train.any(0)
    x = scaled.x[used]
    white, unwhiten, variances = whiten(x)
    targets = one_hot_targets(labels[used], classes)
    penalised = np.append(1 / variances, 0)  # the intercept, which comes last, is not
    shared = [np.float32(array) for array in (white, x, unwhiten, penalised, targets)]
    shared = jax.device_put(shared, jax.local_devices()[0])
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
    # With nothing but an intercept the gradient is round-off from the start.
    only_intercept = np.logical_not(varies.any(1))
    converged |= only_intercept[:, None]
    kernel = weights @ unwhiten * varies[:, None, None]
    bias = weights[..., -1]
    if classes > 2:
        absent = (train[:, used] @ targets.T == 0)[:, None]
        bias = np.where(absent, -np.inf, bias)
    return Linear(kernel, bias, gradient, converged)


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


def one_hot_targets(labels: np.ndarray, classes: int) -> np.ndarray:
    """bool [C, N]: a row a class; for two classes the second one alone."""
    if classes == 2:
        return (labels == 1)[None]
    return labels == np.arange(classes)[:, None]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


class State(NamedTuple):
    """Conjugate gradients for B fits side by side."""

    weights: jax.Array  # [B, C, D + 1], of whitened features
    logits: jax.Array  # [B, C, N], weights @ white.T
    penalty_grad: jax.Array  # [B, C, D + 1]
    grad: jax.Array  # [B, C, D + 1]
    direction: jax.Array  # [B, C, D + 1], 0 where a fit has converged
    grad_norm2: jax.Array  # [B], in the norm of 1 / bound
    step_size: jax.Array  # [B]
    converged: jax.Array  # bool [B]
    iteration: jax.Array


class Bracket(NamedTuple):
    """The line search: the derivative along the line is negative at ``low`` and not at ``high``."""

    step: jax.Array  # [B]
    low: jax.Array  # [B]
    high: jax.Array  # [B], inf until a step was too long
    done: jax.Array  # bool [B]
    iteration: jax.Array


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
    """Nonlinear conjugate gradients (Polak-Ribière) for B fits side by side, preconditioned, with a
    line search.

    white [N, D + 1], x [N, D], unwhiten [D + 1, D], penalised [D + 1], targets [C, N]; of each fit
    train [B, N], std [B, D], strength [B]. Logits are linear along a direction, so that the line
    search needs no product. A fit that has converged does not move. Returns (weights [B, C, D + 1]
    of whitened features, largest entry of the gradient [B], converged [B]).
    """
    binary = len(targets) == 1
    weight = train[:, None]
    absent = (train @ targets.T == 0)[..., None] & (not binary)  # classes without an example
    matmul = functools.partial(jnp.matmul, precision="highest")

    def per_fit(values):
        return values[:, None, None]

    def dot(a, b):
        return jnp.sum(a * b, (1, 2))

    def probabilities(logits):
        if binary:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(jnp.where(absent, -jnp.inf, logits), axis=1)

    def residual(logits):
        return weight * (probabilities(logits) - targets)

    def penalty_gradient(weights):
        unscaled = matmul(weights, unwhiten) * std[:, None] ** 2
        return per_fit(strength) * matmul(unscaled, unwhiten.T)

    curvature = 0.25 if binary else 0.5
    bound = curvature * jnp.sum(white**2, 0) + strength[:, None] * penalised
    bound = bound[:, None]  # [B, 1, D + 1]

    def line_search(state, along, penalty_along):
        """[B]: where the objective's derivative along the line vanishes, by Newton's method within
        a bracket.

        ``along`` [B, C, N] is how logits change on the line, ``penalty_along`` how the penalty's
        gradient does.
        """
        slope = dot(state.grad, state.direction)
        offset = dot(state.penalty_grad, state.direction)
        bend = dot(penalty_along, state.direction)

        def narrow(bracket):
            step = bracket.step
            logits = state.logits + per_fit(step) * along
            p = probabilities(logits)
            loss_slope = dot(weight * (p - targets), along)
            first = loss_slope + offset + step * bend
            mean_along = jnp.sum(p * along, 1, keepdims=True)
            loss_bend = dot(weight * p * along, along - mean_along)
            second = loss_bend + bend

            too_short = first < 0
            low = jnp.where(too_short, step, bracket.low)
            high = jnp.where(too_short, bracket.high, step)
            longest = 10 * step
            newton = step - first / jnp.maximum(second, 1e-30)
            newton = jnp.minimum(newton, longest)
            middle = jnp.where(high < jnp.inf, (low + high) / 2, longest)
            is_inside = (newton > low) & (newton < high)
            new_step = jnp.where(is_inside, newton, middle)
            new_step = jnp.where(bracket.done, step, new_step)
            is_flat = jnp.abs(first) <= jnp.abs(slope) / 2
            done = bracket.done | is_flat
            return Bracket(new_step, low, high, done, bracket.iteration + 1)

        def keep_going(bracket):
            return ~jnp.all(bracket.done) & (bracket.iteration < LINE_SEARCH_STEPS)

        start = state.step_size
        nothing = 0 * start
        everything = jnp.full_like(start, jnp.inf)
        bracket = Bracket(start, nothing, everything, state.converged, jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(keep_going, narrow, bracket).step

    def advance(state):
        along = matmul(state.direction, white.T)
        penalty_along = penalty_gradient(state.direction)
        step_size = line_search(state, along, penalty_along)
        moved = per_fit(jnp.where(state.converged, 0, step_size))
        weights = state.weights + moved * state.direction
        logits = state.logits + moved * along
        penalty_grad = state.penalty_grad + moved * penalty_along

        grad = matmul(residual(logits), white) + penalty_grad
        preconditioned = grad / bound
        grad_norm2 = dot(grad, preconditioned)
        change = grad_norm2 - dot(grad, state.grad / bound)
        beta = jnp.maximum(change, 0) / jnp.maximum(state.grad_norm2, 1e-30)
        direction = per_fit(beta) * state.direction - preconditioned
        downhill = per_fit(dot(direction, grad) < 0)
        direction = jnp.where(downhill, direction, -preconditioned)
        converged = state.converged | (grad_norm2 <= enough)
        direction = jnp.where(per_fit(converged), 0, direction)
        return State(
            weights,
            logits,
            penalty_grad,
            grad,
            direction,
            grad_norm2,
            step_size,
            converged,
            state.iteration + 1,
        )

    def keep_going(state):
        return ~jnp.all(state.converged) & (state.iteration < steps)

    zeros = jnp.zeros((len(train), len(targets), white.shape[1]))
    logits = jnp.zeros((len(train), len(targets), len(white)))
    grad = matmul(residual(logits), white)
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
    state = jax.lax.while_loop(keep_going, advance, state)

    # The gradient afresh, in standardised coordinates: what scikit-learn's tolerance bounds.
    left = residual(matmul(state.weights, white.T))
    unscaled = matmul(state.weights, unwhiten) * std[:, None] ** 2
    weight_grad = (matmul(left, x) + per_fit(strength) * unscaled) / std[:, None]
    bias_grad = left.sum(2)
    largest = jnp.maximum(jnp.abs(weight_grad).max((1, 2)), jnp.abs(bias_grad).max(1))
    return state.weights, largest / train.sum(1), state.converged

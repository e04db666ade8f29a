"""Nonlinear conjugate gradients for many logistic regressions side by side, in JAX.

The fits share one matrix of features. A step costs two matrix products for all of them together: a
line search needs none, for logits are linear along a direction.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

LINE_SEARCH_STEPS = 10

matmul = functools.partial(jnp.matmul, precision="highest")


class Losses(NamedTuple):
    """The losses of B fits: which rows count, and how."""

    features: jax.Array  # [N, D + 1], the last column is ones
    targets: jax.Array  # [C, N], one row for two classes
    weight: jax.Array  # [B, 1, N], 0 for a row that a fit does not train on
    absent: jax.Array  # bool [B, C, 1], classes without an example; never of two classes

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """[B, C, N], of logits of that shape."""
        if len(self.targets) == 1:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(jnp.where(self.absent, -jnp.inf, logits), axis=1)

    def residual(self, logits: jax.Array) -> jax.Array:
        """[B, C, N]: the gradient of the losses with respect to logits."""
        return self.weight * (self.probabilities(logits) - self.targets)


class State(NamedTuple):
    """Conjugate gradients for B fits side by side."""

    weights: jax.Array  # [B, C, D + 1], of Losses.features
    logits: jax.Array  # [B, C, N], weights @ features.T
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


def per_fit(values: jax.Array) -> jax.Array:
    """[B] -> [B, 1, 1]."""
    return values[:, None, None]


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """The inner products [B] of arrays [B, C, anything]."""
    return jnp.sum(a * b, (1, 2))


def descend(
    losses: Losses,
    penalty_gradient: Callable[[jax.Array], jax.Array],
    bound: jax.Array,
    enough: jax.Array,
    state: State,
    steps: int | jax.Array,
) -> State:
    """The state after the descent from ``state`` (Polak-Ribière), preconditioned, with a line
    search.

    It ends when all fits have converged, or when ``state.iteration`` is ``steps``; a fit that has
    converged does not move. ``bound`` [B, 1 or C, D + 1] is the diagonal that gradients are divided
    by. ``penalty_gradient(weights)`` is linear. ``enough`` [B] is the squared norm of a gradient,
    in the norm of 1 / bound, at which a fit has converged.
    """

    def advance(state: State) -> State:
        along = matmul(state.direction, losses.features.T)
        penalty_along = penalty_gradient(state.direction)
        step_size = line_search(losses, state, along, penalty_along)
        moved = per_fit(jnp.where(state.converged, 0, step_size))
        weights = state.weights + moved * state.direction
        logits = state.logits + moved * along
        penalty_grad = state.penalty_grad + moved * penalty_along

        grad = matmul(losses.residual(logits), losses.features) + penalty_grad
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

    def keep_going(state: State) -> jax.Array:
        return ~jnp.all(state.converged) & (state.iteration < steps)

    return jax.lax.while_loop(keep_going, advance, state)


def line_search(
    losses: Losses, state: State, along: jax.Array, penalty_along: jax.Array
) -> jax.Array:
    """[B]: where the objective's derivative along the line vanishes, by Newton's method within a
    bracket.

    ``along`` [B, C, N] is how logits change on the line, ``penalty_along`` how the penalty's
    gradient does.
    """
    slope = dot(state.grad, state.direction)
    offset = dot(state.penalty_grad, state.direction)
    bend = dot(penalty_along, state.direction)

    def narrow(bracket: Bracket) -> Bracket:
        step = bracket.step
        logits = state.logits + per_fit(step) * along
        p = losses.probabilities(logits)
        loss_slope = dot(losses.weight * (p - losses.targets), along)
        first = loss_slope + offset + step * bend
        mean_along = jnp.sum(p * along, 1, keepdims=True)
        loss_bend = dot(losses.weight * p * along, along - mean_along)
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

    def keep_going(bracket: Bracket) -> jax.Array:
        return ~jnp.all(bracket.done) & (bracket.iteration < LINE_SEARCH_STEPS)

    start = state.step_size
    nothing = 0 * start
    everything = jnp.full_like(start, jnp.inf)
    bracket = Bracket(start, nothing, everything, state.converged, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(keep_going, narrow, bracket).step

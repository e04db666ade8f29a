"""Probes: heads on the fixed features of every layer, fitted many at once.

    features = layer_features(pretrained, windows, count, ("mean", "cls"))   # every layer, one pass over the data
    scaled   = standardise(features[layer, pooling], train)
    heads    = logistic(scaled, labels, train, strengths, classes)           # all training sets and strengths together
    answers  = predict(heads, scaled.x, held, classes)

S training sets (folds, seeds) are rows of a matrix, bool [S, N]; K are strengths, C classes, H the most rows held out.
``strength`` is the weight of the L2 penalty: 1 / C in scikit-learn's LogisticRegression, alpha in its Ridge.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.errors import StrategyError
from adapt.models import POOLINGS, Classifier, Encoder, Model, flatten_groups
from adapt.parallel.sharding import Layout, shard_inputs, shard_tree
from adapt.pretrained.hub import Pretrained
from adapt.training.loop import evaluate

WEIGHTLESS = tuple(name for name in POOLINGS if name != "pooler")
TINY = 1e-7  # directions with less of the mean eigenvalue, 1, are not whitened any further
BLOCK = 1 << 20  # logits that are computed together: they stay in the processor's cache


def layer_features(
    pretrained: Pretrained,
    windows: Iterable[tuple[Any, Mapping[str, Any]]],
    count: int,
    poolings: Sequence[str],
    layout: Layout | None = None,
) -> np.ndarray:
    """(index, batch) pairs over ``count`` examples -> features float32 [layers + 1, poolings, N, D], in memory, one pass.

    Layer 0 is the embedding, the last one has the final norm. Raises :class:`StrategyError` for a pooling with weights.
    """
    if unknown := [name for name in poolings if name not in WEIGHTLESS]:
        raise StrategyError(
            f"pooling {unknown[0]!r} can't be probed: give some of {', '.join(WEIGHTLESS)}"
        )
    params = shard_tree(tree.drop(pretrained.params, "head"), layout)
    forward = pooled_layers(
        Model(Encoder(pretrained.config), Classifier(0), layout), tuple(poolings)
    )
    return np.moveaxis(evaluate(forward, params, windows, count), 0, 2)


@functools.cache
def pooled_layers(model: Model, poolings: tuple[str, ...]) -> Any:
    """Jitted (params, batch) -> float32 [slots, layers + 1, poolings, D]."""

    def forward(params: tree.Tree, batch: Mapping[str, Any]) -> jax.Array:
        states = [x.reshape(-1, x.shape[-1]) for x in model.hidden_states(params, dict(batch))]
        pooled = [jnp.stack([POOLINGS[name](x, batch) for name in poolings], 1) for x in states]
        return jnp.stack(pooled, 1).astype(jnp.float32)

    if (layout := model.layout) is None:
        return jax.jit(forward)
    grouped = lambda params, batch: flatten_groups(
        layout.over_groups(
            functools.partial(forward, params | {"encoder": model.gather_tables(params["encoder"])})
        )(batch)
    )
    return shard_inputs(jax.jit(grouped, out_shardings=layout.replicated), layout)


class Scaled(NamedTuple):
    """Features in units of all training rows together, and in these units the moments of each set's own rows.

    The first is a change of coordinates for the numbers' sake; what heads see is ``(x - mean[s]) / std[s]``.
    """

    x: np.ndarray  # float64 [N, D]
    mean: np.ndarray  # float64 [S, D]
    std: np.ndarray  # float64 [S, D], inf where a feature is constant in a set: it counts nothing


def standardise(features: np.ndarray, train: np.ndarray) -> Scaled:
    """features [N, D], train bool [S, N]. Rows that no set trains on decide nothing but their own ``x``."""
    raw = features.astype(np.float64)
    used = train.any(0)
    center = raw[used].mean(0)
    scale = raw[used].std(0)
    floor = least(center, scale)
    unit = np.where(scale > floor, scale, np.inf)
    x = (raw - center) / unit
    share = train / train.sum(1, keepdims=True)
    mean = share @ x
    std = np.sqrt(np.maximum(share @ x**2 - mean**2, 0))
    return Scaled(x, mean, np.where(std * scale > floor, std, np.inf))


def least(center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The deviation [D] up to which a feature is constant: a millionth of its size, since float32 leaves noise there, or
    1e-12 of the largest (two of MiniLM's 384 deviate by 1e-32: to divide by that would blow up what is nothing)."""
    size = np.hypot(center, scale)
    return np.maximum(1e-6 * size, 1e-12 * size.max())


class Linear(NamedTuple):
    """Heads of S sets and K strengths: ``scaled.x @ kernel + bias`` scores C columns.

    ``gradient`` is the largest entry of a fit's gradient of the mean objective, standardised: scikit-learn's ``tol`` bounds it.
    """

    kernel: np.ndarray  # float64 [S, K, C, D]
    bias: np.ndarray  # float64 [S, K, C]
    gradient: np.ndarray | None = None  # [S, K]
    converged: np.ndarray | None = None  # bool [S, K]


def logistic(
    scaled: Scaled,
    labels: np.ndarray,
    train: np.ndarray,
    strengths: Sequence[float],
    classes: int,
    tolerance: float = 2e-6,
    steps: int = 500,
) -> Linear:
    """Logistic regressions, ``strength / 2 ||w||^2 + sum of losses``: one column for two classes, else one a class.

    In the eigenbasis of X'X, scaled to unit variance, every Hessian is nearly diagonal: the loss's is at most a quarter of
    X'X, for more than two classes half of it (Böhning 1992), the same for all fits. A fit has converged when its gradient,
    in the norm of that bound, is ``tolerance`` of what it was at zero.
    """
    used = train.any(0)
    count = len(train) * len(strengths)
    x = scaled.x[used]
    y = labels[used]
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    values = np.maximum(values, 0) + TINY
    back = np.vstack(
        [(vectors / np.sqrt(values)).T, np.zeros(x.shape[1])]
    )  # from whitened weights to weights of x
    white = x @ back.T
    white[:, -1] = 1
    target = (y == 1)[None] if classes == 2 else y == np.arange(classes)[:, None]
    shared = (white, x, back, np.append(1 / values, 0), target)
    shared = jax.device_put([np.float32(each) for each in shared], jax.local_devices()[0])
    std = np.where(scaled.std < np.inf, scaled.std, 1)
    size = -(-count // -(-count * target.size // BLOCK))
    found = []
    for start in range(0, count, size):
        fit = (
            np.arange(start, start + size) % count
        )  # the last block is filled up with fits of the first
        which = fit % len(train)
        strength = np.asarray(strengths, np.float32)[fit // len(train)]
        each = np.float32(train[which][:, used]), np.float32(std[which]), strength
        found.append(minimise(*shared, *each, tolerance, steps))
    by_set = lambda part: part.reshape(len(strengths), len(train), *part.shape[1:]).swapaxes(0, 1)
    u, gradient, converged = (
        by_set(np.concatenate(part)[:count]) for part in zip(*found, strict=True)
    )
    converged |= (scaled.std == np.inf).all(1)[
        :, None
    ]  # nothing but an intercept, whose gradient is round-off from the start
    absent = (train[:, used] @ target.T == 0)[:, None] & (classes > 2)
    kernel = u @ back * (scaled.std < np.inf)[:, None, None]
    return Linear(kernel, np.where(absent, -np.inf, u[..., -1]), gradient, converged)


@functools.partial(jax.jit, static_argnames="steps")
def minimise(white, x, back, pull, target, train, std, strength, tolerance, steps):
    """Nonlinear conjugate gradients (Polak-Ribière) for B fits side by side, preconditioned, with a line search.

    white [N, D + 1], x [N, D], back [D + 1, D], pull [D + 1], target [C, N]; of each fit: train [B, N], std [B, D],
    strength [B]. A step costs two products with ``white`` for all fits; logits are linear along a direction, so that the
    search takes none. A fit that has converged stands still. Returns (whitened weights [B, C, D + 1], gradient, converged).
    """
    one = len(target) == 1
    weight = train[:, None]
    per_fit = lambda values: values[:, None, None]
    absent = (train @ target.T == 0)[..., None] & (
        not one
    )  # classes without an example are never predicted
    expected = (
        jax.nn.sigmoid if one else lambda z: jax.nn.softmax(jnp.where(absent, -jnp.inf, z), axis=1)
    )
    bound = ((0.25 if one else 0.5) * jnp.sum(white**2, 0) + strength[:, None] * pull)[
        :, None
    ]  # [B, 1, D + 1]
    product = functools.partial(jnp.matmul, precision="highest")
    dot = lambda a, b: jnp.sum(a * b, (1, 2))
    residual = lambda z: weight * (expected(z) - target)
    penalty = lambda u: per_fit(strength) * product(product(u, back) * std[:, None] ** 2, back.T)

    def search(z, along, offset, bend, slope, step, done):
        """Where the objective's derivative along a line vanishes: Newton's method within a bracket, from ``step`` on."""

        def trip(carry):
            step, low, high, near, number = carry
            p = expected(z + per_fit(step) * along)
            first = dot(weight * (p - target), along) + offset + step * bend
            second = dot(weight * p * along, along - jnp.sum(p * along, 1, keepdims=True)) + bend
            low = jnp.where(first < 0, step, low)
            high = jnp.where(first < 0, high, step)
            new = jnp.minimum(step - first / jnp.maximum(second, 1e-30), 10 * step)
            new = jnp.where(
                (new > low) & (new < high),
                new,
                jnp.where(high < jnp.inf, (low + high) / 2, 10 * step),
            )
            return (
                jnp.where(near, step, new),
                low,
                high,
                near | (jnp.abs(first) <= jnp.abs(slope) / 2),
                number + 1,
            )

        begin = step, 0 * step, jnp.full_like(step, jnp.inf), done, 0
        return jax.lax.while_loop(lambda carry: ~jnp.all(carry[3]) & (carry[4] < 10), trip, begin)[
            0
        ]

    def advance(carry):
        u, z, pulled, gradient, direction, size, step, done, number = carry
        along = product(direction, white.T)
        bend = penalty(direction)
        slope = dot(gradient, direction)
        step = search(z, along, dot(pulled, direction), dot(bend, direction), slope, step, done)
        moved = per_fit(jnp.where(done, 0, step))
        u = u + moved * direction
        z = z + moved * along
        pulled = pulled + moved * bend
        new = product(residual(z), white) + pulled
        new_size = dot(new, new / bound)
        beta = jnp.maximum(new_size - dot(new, gradient / bound), 0) / jnp.maximum(size, 1e-30)
        turned = per_fit(beta) * direction - new / bound
        turned = jnp.where(per_fit(dot(turned, new) < 0), turned, -new / bound)
        done = done | (new_size <= enough)
        return (
            u,
            z,
            pulled,
            new,
            jnp.where(per_fit(done), 0, turned),
            new_size,
            step,
            done,
            number + 1,
        )

    u, z = (jnp.zeros((len(train), len(target), wide)) for wide in (white.shape[1], len(white)))
    gradient = product(residual(z), white)
    size = dot(gradient, gradient / bound)
    enough = tolerance**2 * size
    begin = u, z, u, gradient, -gradient / bound, size, jnp.ones(len(train)), size <= enough, 0
    u, *_, done, _ = jax.lax.while_loop(
        lambda carry: ~jnp.all(carry[-2]) & (carry[-1] < steps), advance, begin
    )
    left = residual(product(u, white.T))  # afresh, in standardised coordinates
    by_weight = (product(left, x) + per_fit(strength) * product(u, back) * std[:, None] ** 2) / std[
        :, None
    ]
    largest = jnp.maximum(jnp.abs(by_weight).max((1, 2)), jnp.abs(left.sum(2)).max(1))
    return u, largest / train.sum(1), done


def ridge(
    scaled: Scaled, labels: np.ndarray, train: np.ndarray, strengths: Sequence[float], classes: int
) -> Linear:
    """Ridge regressions, ``strength ||w||^2 + sum of squares``, of values or (``classes`` > 0) of one-hot classes, float64.

    One eigendecomposition X'X = V L V' a set serves all strengths: w = V (L + strength)^-1 V'X'y.
    """
    target = np.eye(classes)[labels] if classes else np.asarray(labels, np.float64)[:, None]
    heads = []
    for rows, mean, std in zip(train, scaled.mean, scaled.std, strict=True):
        x = (scaled.x[rows] - mean) / std
        y = target[rows]
        values, vectors = np.linalg.eigh(x.T @ x)
        inverse = 1 / (np.maximum(values, 0) + np.array(strengths)[:, None, None])  # [K, 1, D]
        weight = ((y - y.mean(0)).T @ x @ vectors * inverse) @ vectors.T / std
        heads.append((weight, y.mean(0) - weight @ mean))
    return Linear(*(np.array(part) for part in zip(*heads, strict=True)))


def centroid(scaled: Scaled, labels: np.ndarray, train: np.ndarray, classes: int) -> Linear:
    """The nearest class mean of standardised features, K = 1: linear, ``m'x - ||m||^2 / 2``; absent classes score -inf."""
    target = np.eye(classes)[labels]
    heads = []
    for rows, mean, std in zip(train, scaled.mean, scaled.std, strict=True):
        count = target[rows].sum(0)[:, None]
        center = (target[rows].T @ scaled.x[rows] / np.maximum(count, 1) - mean) / std
        bias = np.where(count[:, 0], -(center**2).sum(1) / 2 - center / std @ mean, -np.inf)
        heads.append(((center / std)[None], bias[None]))
    return Linear(*(np.array(part) for part in zip(*heads, strict=True)))


@functools.partial(jax.jit, static_argnames="classes")
def predict(heads: Linear, x: jax.Array, held: jax.Array, classes: int) -> jax.Array:
    """``scaled.x`` [N, D], held int [S, H] -> [S, K, H]: classes int32, or values float32 where ``classes`` is 0."""

    def one(part: Any) -> jax.Array:
        kernel, bias, rows = part
        scores = jnp.einsum("kcd,hd->kch", kernel, x[rows], precision="highest") + bias[..., None]
        if not classes:
            return scores[:, 0]
        return (jnp.argmax(scores, 1) if scores.shape[1] > 1 else scores[:, 0] > 0).astype(
            jnp.int32
        )

    return jax.lax.map(one, (heads.kernel, heads.bias, held))


@functools.partial(jax.jit, static_argnames=("neighbours", "classes"))
def nearest(
    scaled: Scaled,
    labels: jax.Array,
    train: jax.Array,
    held: jax.Array,
    neighbours: tuple[int, ...],
    classes: int,
) -> jax.Array:
    """As :func:`predict`, by votes (a tie goes to the first class) or means of the K numbers of nearest training rows.

    Distances are Euclidean between standardised features.
    """
    at = np.array(neighbours) - 1

    def one(part: Any) -> jax.Array:
        rows, mean, std, train = part
        x = (scaled.x - mean) / std
        closeness = 2 * jnp.matmul(x[rows], x.T, precision="highest") - (x**2).sum(1)
        near = labels[jax.lax.top_k(jnp.where(train, closeness, -jnp.inf), max(neighbours))[1]]
        if not classes:
            return (jnp.cumsum(near, 1)[:, at] / (at + 1)).T
        return jnp.cumsum(jax.nn.one_hot(near, classes), 1)[:, at].argmax(-1).astype(jnp.int32).T

    return jax.lax.map(one, (held, scaled.mean, scaled.std, train))

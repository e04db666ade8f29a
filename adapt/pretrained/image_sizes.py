"""Encoders for pictures of another size than they were trained on: what they know of places is
interpolated, as the original library does.

    config, params = with_image_size(config, params, 384)

Positions are interpolated by cubic convolution (Keys 1981), the bias of distances by lines. Rotary
positions are functions of coordinates, and need nothing.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from adapt import tree
from adapt.models import EncoderConfig


def with_image_size(
    config: EncoderConfig, params: tree.Tree, size: int, smooth: bool = False
) -> tuple[EncoderConfig, tree.Tree]:
    """The encoder for pictures of ``size`` pixels a side, a multiple of the patches' size.

    ``smooth`` averages positions over all that fall into one, where they become fewer (DINOv2 with
    registers).
    """
    patches = (size // config.patch_size) ** 2
    positions = config.leading_tokens + patches
    changed = dataclasses.replace(config, image_size=size, positions=positions)
    leaves = {}
    for path, leaf in tree.paths(params).items():
        if path == "encoder/embedding/position":
            leaf = resized_positions(np.asarray(leaf), config, size, smooth)
        elif config.relative_patches and path.endswith("relative/table"):
            leaf = resized_distances(np.asarray(leaf), config, size)
        leaves[path] = leaf
    encoder_and_head = tree.unflatten(leaves)
    return changed, {"head": {}, **encoder_and_head}


def resized_positions(
    table: np.ndarray, config: EncoderConfig, size: int, smooth: bool
) -> np.ndarray:
    """Positions float32 [T, D] of the patches of another size; those of the tokens before them
    stay.
    """
    first = len(table) - config.patches
    side = config.image_size // config.patch_size
    weights = smooth_weights if smooth else cubic_weights
    grid = table[first:].reshape(side, side, -1)
    grid = resized_grid(grid, weights(side, size // config.patch_size))
    return np.concatenate([table[:first], grid.reshape(-1, table.shape[1])])


def resized_distances(table: np.ndarray, config: EncoderConfig, size: int) -> np.ndarray:
    """The rows [distances + 3, H] of :class:`adapt.models.patch_places.PatchBias` for another size;
    the three of the class token stay.
    """
    old = 2 * (config.image_size // config.patch_size) - 1
    new = 2 * (size // config.patch_size) - 1
    grid = resized_grid(table[:-3].reshape(old, old, -1), linear_weights(old, new))
    return np.concatenate([grid.reshape(new * new, -1), table[-3:]])


def resized_grid(grid: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A square grid [S, S, D] -> [N, N, D], by weights [N, S] along both sides."""
    grid = np.einsum("ns,stD->ntD", weights, grid.astype(np.float64))
    grid = np.einsum("mt,ntD->nmD", weights, grid)
    return grid.astype(np.float32)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """How much each of ``old`` values counts for each of ``new``, [new, old]: of the four nearest,
    where those beyond an edge are the one at the edge.
    """
    return point_weights(old, new, range(-1, 3), lambda x: cubic(x, -0.75))


def linear_weights(old: int, new: int) -> np.ndarray:
    """The same of the two nearest."""
    return point_weights(old, new, range(2), lambda x: np.maximum(1 - np.abs(x), 0))


def point_weights(
    old: int, new: int, taps: range, kernel: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Weights [new, old] by a kernel of the distance between the centres of values."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in taps:
        source = np.floor(places).astype(int) + tap
        np.add.at(weights, (np.arange(new), source.clip(0, old - 1)), kernel(places - source))
    return weights


def smooth_weights(old: int, new: int) -> np.ndarray:
    """Cubic weights [new, old] whose kernel is as wide as a new value, where these are fewer."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new
    distances = (np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = cubic(distances, -0.5)
    return weights / weights.sum(1, keepdims=True)


def cubic(x: np.ndarray, slope: float) -> np.ndarray:
    """The kernel of cubic convolution with this slope at distance 1 (Keys 1981, eq. 4 generalised)."""
    x = np.abs(x)
    near = (slope + 2) * x**3 - (slope + 3) * x**2 + 1
    far = slope * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.select([x <= 1, x < 2], [near, far], 0.0)

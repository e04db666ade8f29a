"""What it costs to keep frozen kernels in fewer bytes: the error of the kernels, and of what an
encoder makes of a few examples with them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.models import SCALE, Model, dequantise
from adapt.training.events import FrozenStored
from adapt.training.step import is_kernel

MOST_TOKENS = 1024  # that go through the encoder, padding among them; a row at least
BY_ROW = ("tokens", "positions", "types", "segments", "pixels")  # of a batch: [R, ...]


def measure(
    model: Model,
    dtype: str,
    frozen_dtype: str,
    frozen: tree.Tree,
    computed: tree.Tree,
    trainable: tree.Tree,
    batch: Mapping[str, Any],
    phase: int = 0,
) -> FrozenStored:
    """What became of the kernels of ``frozen`` in ``computed``, which are on the devices in
    ``frozen_dtype``.

    ``model``, which computes in ``dtype``, ``trainable`` and a ``batch`` serve to compare outputs.
    They are computed operation by operation, on one device, which needs no more of the exact
    kernels than one at a time.
    """
    kernels = {path: leaf for path, leaf in tree.paths(frozen).items() if is_kernel(path)}
    nbytes = 0
    of_kernels = Errors()
    for path, leaf in kernels.items():
        stored = stored_kernel(computed, path)
        nbytes += sum(array.nbytes for array in stored)
        of_kernels.add(tree.to_numpy(leaf), dequantised(*stored))

    is_on_mesh = model.layout is not None
    model = dataclasses.replace(model, layout=None, remat="none", scan=False)
    batch = few_rows(batch)
    of_outputs = Errors()
    of_outputs.add(
        encoded(model, tree.merge(frozen, trainable), batch, is_on_mesh),
        encoded(model, tree.merge(computed, trainable), batch, is_on_mesh),
    )
    return FrozenStored(
        phase=phase,
        dtype=frozen_dtype,
        kernels=len(kernels),
        nbytes=nbytes,
        computed_bytes=tree.count(kernels) * jnp.dtype(dtype).itemsize,
        kernel_error=of_kernels.relative,
        output_error=of_outputs.relative,
    )


@dataclasses.dataclass
class Errors:
    """The root mean square of differences, relative to that of exact numbers."""

    squared_error: float = 0.0
    squared_norm: float = 0.0

    def add(self, exact: np.ndarray, rounded: np.ndarray) -> None:
        exact = exact.astype(np.float32)
        self.squared_error += float(np.square(rounded - exact).sum(dtype=np.float64))
        self.squared_norm += float(np.square(exact).sum(dtype=np.float64))

    @property
    def relative(self) -> float:
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0


def stored_kernel(computed: tree.Tree, path: str) -> list[np.ndarray]:
    """The arrays of a kernel as it is stored: its values, and its scales if it has such."""
    layer = tree.get(computed, path.removesuffix("/kernel"))
    return [tree.to_numpy(layer[name]) for name in ("kernel", SCALE) if name in layer]


def dequantised(values: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """The float32 kernel that is stored."""
    return values.astype(np.float32) if scale is None else dequantise(values, scale)


def few_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The first rows of a batch, without the axes of micro-batches and groups before them."""
    of_groups = batch["length"].ndim - 1
    few = {name: np.asarray(array)[(0,) * of_groups] for name, array in batch.items()}
    rows = max(1, MOST_TOKENS // few["segments"].shape[-1])
    return {name: array[:rows] if name in BY_ROW else array for name, array in few.items()}


def encoded(
    model: Model, params: tree.Tree, batch: Mapping[str, Any], is_on_mesh: bool
) -> np.ndarray:
    """What the head reads of the tokens that are no padding, float32 [tokens, D]."""
    encoder = {"encoder": params["encoder"]}
    if is_on_mesh:
        encoder = tree.map_paths(lambda _, leaf: tree.to_numpy(leaf), encoder)
    states = np.asarray(model.head_input(encoder, None, batch), np.float32)
    is_token = np.ones(states.shape[:2], bool)
    if batch["segments"].shape == is_token.shape:
        is_token = batch["segments"] < len(batch["length"])
    return states[is_token]

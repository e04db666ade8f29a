"""The arrays of a checkpoint in one file, for tests that ask nothing of Orbax.

Orbax takes a quarter of a second of the processor for a hundred tiny arrays, and reads them as
slowly: in the run of a tiny encoder that is more than training. Files of Orbax are read, too.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapt import tree
from adapt.training import checkpoint

ARRAYS = "arrays.bin"
INDEX = "arrays.json"


def install(patch: pytest.MonkeyPatch) -> None:
    """Checkpoints are written as one file, and read from it where it is there."""
    patch.setattr(checkpoint, "write_arrays", write)
    patch.setattr(checkpoint, "stored_arrays", where_quick(stored, checkpoint.stored_arrays))
    patch.setattr(checkpoint, "read_arrays", where_quick(read, checkpoint.read_arrays))


def where_quick(quick: Callable[..., Any], orbax: Callable[..., Any]) -> Callable[..., Any]:
    """``quick`` for folders that :func:`write` wrote, else ``orbax``."""

    def chosen(path: str, *rest: Any) -> Any:
        is_quick = (Path(path) / INDEX).exists()
        return (quick if is_quick else orbax)(path, *rest)

    return chosen


def write(path: str, arrays: tree.Tree) -> None:
    folder = Path(path)
    folder.mkdir()
    index = {}
    with (folder / ARRAYS).open("wb") as file:
        for name, leaf in tree.paths(arrays).items():
            array = np.asarray(leaf)
            index[name] = [array.shape, array.dtype.name, file.tell()]
            file.write(array.tobytes())
    (folder / INDEX).write_text(json.dumps(index))


def stored(path: str) -> tree.Tree:
    index = json.loads((Path(path) / INDEX).read_text())
    leaves = {}
    for name, (shape, dtype, _) in index.items():
        leaves[name] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    return tree.unflatten(leaves)


def read(path: str, wanted: tree.Tree) -> tree.Tree:
    index = json.loads((Path(path) / INDEX).read_text())
    content = (Path(path) / ARRAYS).read_bytes()

    def leaf(name: str, of_leaf: Any) -> Any:
        if of_leaf is checkpoint.NOT_WANTED:
            return of_leaf
        shape, dtype, start = index[name]
        count = int(np.prod(shape))
        array = np.frombuffer(content, jnp.dtype(dtype), count, start).reshape(shape)
        if isinstance(of_leaf, np.ndarray):
            return array.copy()
        return jax.device_put(array, of_leaf.sharding)

    return tree.map_paths(leaf, wanted)

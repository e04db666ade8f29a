"""Kernels that are stored in fewer bytes than the computation takes, and products by them.

An int8 kernel has a float32 scale for each output, beside it in the parameters of its layer::

    values, scale = quantise(kernel)        # kernel ~ values * scale
    {"kernel": values, "kernel_scale": scale, "bias": bias}

A product widens a kernel where it is used, in the backward pass once more, so that a step never
holds all of them in the dtype of the computation. There is no gradient by these kernels: they are
frozen.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCALE = "kernel_scale"  # the name of the scales beside "kernel"
LARGEST = 127  # of the integers: -128 is not used, so that they are symmetric


class Kernel(NamedTuple):
    """A kernel as it is stored: values [in, out], and of int8 ones the scale float32 [out]."""

    values: Any
    scale: Any = None

    def in_dtype(self, dtype: Any) -> jax.Array:
        """The kernel as the computation means it, [in, out]."""
        if self.scale is None:
            return self.values.astype(dtype)
        return dequantise(self.values, self.scale).astype(dtype)

    def is_narrow(self, dtype: Any) -> bool:
        """Whether an element takes fewer bytes than one of ``dtype``."""
        return self.values.dtype.itemsize < jnp.dtype(dtype).itemsize


def quantise(kernel: Any) -> tuple[Any, Any]:
    """(int8 values [in, out], float32 scale [out]) with the least largest error: the largest number
    of a column is 127 times its scale, zero is exact, and rounding is to the nearest even.

    A NumPy array gives NumPy arrays, with one temporary of the kernel's size.

        >>> values, scale = quantise(np.array([[-2.0, 0.0], [1.0, 0.0]], np.float32))
        >>> values.tolist()
        [[-127, 0], [64, 0]]
        >>> f"{dequantise(values, scale)[1, 0]:.3f}"
        '1.008'
    """
    numpy: Any = np if isinstance(kernel, np.ndarray) else jnp
    largest = numpy.abs(kernel).max(0).astype(numpy.float32)
    # Multiplied, for XLA would make that of a division by a constant, and NumPy would not. A column
    # of zeros has any scale but zero.
    scale = numpy.where(largest > 0, largest * np.float32(1 / LARGEST), np.float32(1))
    values = numpy.rint(kernel.astype(numpy.float32) / scale)
    return values.astype(numpy.int8), scale


def dequantise(values: Any, scale: Any) -> Any:
    """The float32 kernel [in, out] that :func:`quantise` stands for."""
    return values.astype(np.float32) * scale


def multiply(x: jax.Array, *kernels: Kernel) -> jax.Array:
    """x [..., in] by kernels side by side: [..., sum of out], in the dtype of ``x``.

    The rows of ``x`` are laid out as one axis: with more of them XLA would, on a CPU, write all of
    ``x`` anew, transposed, for the gradient of the kernel.
    """
    y = multiply_rows(x.reshape(-1, x.shape[-1]), kernels)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def multiply_rows(x: jax.Array, kernels: Sequence[Kernel]) -> jax.Array:
    """x [rows, in] by kernels side by side, [rows, sum of out]."""
    narrow = [kernel.is_narrow(x.dtype) for kernel in kernels]
    scaled = [kernel.scale is not None for kernel in kernels]
    if all(narrow) and len(set(scaled)) == 1:
        return multiply_narrow(x, kernels)
    return x @ side_by_side([kernel.in_dtype(x.dtype) for kernel in kernels])


# The backward pass gets what is stored, and widens it again: else XLA keeps what the forward pass
# widened, of all layers at once.
@jax.checkpoint
def multiply_narrow(x: jax.Array, kernels: Sequence[Kernel]) -> jax.Array:
    """:func:`multiply` by kernels that are all stored alike."""
    # With the barrier a kernel is widened when x is there, and not at the start of the program.
    kernels, x = jax.lax.optimization_barrier((tuple(kernels), x))
    y = x @ side_by_side([kernel.values for kernel in kernels]).astype(x.dtype)
    if kernels[0].scale is None:
        return y
    scale = jnp.concatenate([kernel.scale for kernel in kernels])
    return (y.astype(jnp.float32) * scale).astype(x.dtype)


def side_by_side(kernels: Sequence[Any]) -> Any:
    """[in, sum of out]; one kernel is left as it is."""
    return kernels[0] if len(kernels) == 1 else jnp.concatenate(kernels, 1)

"""What a program may be compiled with where it runs on an accelerator, and for which device.

A kernel, and a gradient that is written by hand, have no rule for :func:`jax.jvp`. So a program
that needs none says so, and what it calls asks here.
"""

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

# The device that a program is compiled for, where this process has no such device.
target_device: contextvars.ContextVar[Any] = contextvars.ContextVar("target_device", default=None)


@dataclasses.dataclass(frozen=True)
class PackedKernel:
    """The permission to use this project's kernels, such as that of
    :mod:`adapt.models.packed_attention`, and the mesh that they run on.
    """

    mesh: Mesh | None = None


# None: kernels must not be used, for they have no rule for jvp or a second derivative.
packed_kernel: contextvars.ContextVar[PackedKernel | None] = contextvars.ContextVar(
    "packed_kernel", default=None
)


@contextlib.contextmanager
def set_contextvar(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    """Give the variable a value inside ``with``."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def device_of_program() -> Any:
    """The device that programs are compiled for: :data:`target_device`, or this process's first."""
    return target_device.get() or jax.local_devices()[0]


def has_own_gradients() -> bool:
    """Whether a layer may have a gradient written by hand: on an accelerator, in a program that
    allows kernels.
    """
    return packed_kernel.get() is not None and device_of_program().platform in ("gpu", "tpu")


def is_for_one_accelerator() -> bool:
    """:func:`has_own_gradients`, off a mesh, where XLA need not divide what is computed."""
    allowed = packed_kernel.get()
    return has_own_gradients() and allowed is not None and allowed.mesh is None


def nvidia_capability(device: Any) -> int:
    """The compute capability of an NVIDIA GPU, without what follows the point; 0 for others."""
    # The "compute capability" of an AMD GPU is a name, such as gfx90a.
    capability = re.match(r"(\d+)\.\d", str(getattr(device, "compute_capability", "")))
    return int(capability[1]) if capability else 0

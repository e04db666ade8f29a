"""What the device of this process is, and what follows from it: the dtype that computes best.

    compute_dtype("auto")      # "bfloat16" on an H100 or a TPU, "float32" on a CPU

A :class:`Device` is a plain description, so that what is decided for an accelerator can be tested
on a machine that has none.
"""

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Any

import jax

from adapt.errors import StrategyError
from adapt.options import DType, FrozenDType, wanted

BFLOAT16_CAPABILITY = (8, 0)  # of NVIDIA's GPUs: from Ampere on they multiply it natively


@dataclasses.dataclass(frozen=True)
class Device:
    """A device, as far as decisions depend on it.

    ``platform`` is JAX's word for it: cpu, gpu or tpu. ``capability`` is the compute capability of
    an NVIDIA GPU, (9, 0) for an H100; None of any other. ``memory`` are the bytes that JAX may use
    of it; None where it does not say, as a CPU does not.
    """

    platform: str
    kind: str = ""
    capability: tuple[int, int] | None = None
    memory: int | None = None

    @property
    def is_accelerator(self) -> bool:
        return self.platform != "cpu"

    @property
    def has_bfloat16(self) -> bool:
        """Whether products of bfloat16 matrices are computed natively, at a higher rate."""
        if self.platform == "tpu":
            return True
        return self.capability is not None and self.capability >= BFLOAT16_CAPABILITY


CPU = Device("cpu")


def describe(device: Any) -> Device:
    """The :class:`Device` of one of JAX's."""
    if device.platform == "cpu":
        return Device("cpu", device.device_kind)
    stats = device.memory_stats() or {}
    memory = stats.get("bytes_limit")
    capability = numbers_of(getattr(device, "compute_capability", None))
    return Device(device.platform, device.device_kind, capability, memory)


def numbers_of(capability: Any) -> tuple[int, int] | None:
    """``"9.0"`` as (9, 0); None for what is not of that form, such as AMD's ``gfx90a``."""
    major, dot, minor = str(capability).partition(".")
    if dot and major.isdecimal() and minor.isdecimal():
        return int(major), int(minor)
    return None


pretended: list[Device] = []


def this_device() -> Device:
    """The first device of this process, or what :func:`pretend` says of it."""
    return pretended[-1] if pretended else described_device()


@functools.cache
def described_device() -> Device:
    """The first device of this process."""
    return describe(jax.local_devices()[0])


@contextlib.contextmanager
def pretend(device: Device) -> Iterator[None]:
    """Inside, everything is decided as for another device, in all threads; what computes is still
    the one that is there. For measurements and tests of the host's side of an accelerator.
    """
    pretended.append(device)
    try:
        yield
    finally:
        pretended.pop()


def compute_dtype(asked: str, device: Device | None = None) -> str:
    """The dtype of the computation, by name: ``auto`` is bfloat16 where the device has it, else
    float32. Any other is what was asked for.

    Raises :class:`StrategyError` for what is none of these.
    """
    if asked not in typing.get_args(DType):
        raise StrategyError(f"`dtype` is {asked!r}: {wanted(DType)}")
    if asked != "auto":
        return asked
    device = this_device() if device is None else device
    return "bfloat16" if device.has_bfloat16 else "float32"


def check_frozen_dtype(asked: str | None) -> None:
    """Raise :class:`StrategyError` unless kernels can be stored in a dtype of this name; None: in
    that of the computation.
    """
    if asked is not None and asked not in typing.get_args(FrozenDType):
        raise StrategyError(f"`frozen_dtype` is {asked!r}: {wanted(FrozenDType)}")


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Inside, JAX computes on the host's processor, where it has a backend for it."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names others alone
        return contextlib.nullcontext()

"""Agreement between the processes of one run; with one process, every function is trivial."""

import hashlib
import itertools
from typing import Any, TypeVar

import jax
import numpy as np

from adapt.errors import MeshError

Number = TypeVar("Number", int, float, bool)


def is_multiprocess() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lead_process() -> bool:
    """Whether this process writes what all of them have."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process has called it with this name."""
    if jax.distributed.is_initialized():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_gather(value: Any) -> np.ndarray:
    """The values of all processes, [processes, ...], exact in any dtype.

    A value is a number, or an array of the same shape in all of them.
    """
    local = np.asarray(value)
    if not is_multiprocess():
        return local[None]
    from jax.experimental import multihost_utils

    # JAX would narrow 64 bits to 32, so the bytes travel.
    gathered = multihost_utils.process_allgather(np.frombuffer(local.tobytes(), np.uint8))
    return np.frombuffer(gathered.tobytes(), local.dtype).reshape(-1, *local.shape)


def all_processes(value: bool) -> bool:
    """Whether the value is true in all processes."""
    return bool(all_gather(value).all())


def broadcast_from_lead(value: Number) -> Number:
    """The first process's number, for what is measured and decides."""
    return type(value)(all_gather(value)[0])


def total_over_processes(value: int) -> int:
    """The sum over all processes."""
    return int(all_gather(value).sum())


def even_shares(rows: int) -> list[range]:
    """The rows of each process: contiguous ranges that differ by one row at most."""
    processes = jax.process_count() if is_multiprocess() else 1
    bounds = [rows * process // processes for process in range(processes + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def assert_same(what: str, entries: dict[str, str]) -> None:
    """Raise :class:`MeshError`, in every process, where an entry is not the same in all of them.

    The error says ``what`` they disagree on and names the first such entry.
    """
    for name, text in entries.items():
        digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if (all_gather(digest) != digest).any():
            raise MeshError(
                f"the processes of this run disagree on {what}: {name} is {text} here: "
                "give all of them the same"
            )

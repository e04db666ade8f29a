"""What the processes of one run tell each other."""

import hashlib
from typing import Any

import jax
import numpy as np

from adapt.errors import MeshError


def is_lead_process() -> bool:
    """Whether this is the process that writes what all of them have."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def barrier(what: str) -> None:
    """Until every process is here."""
    if jax.distributed.is_initialized():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def is_multiprocess() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def all_gather(value: Any) -> np.ndarray:
    """A number, or an array of one shape, of every process: [processes, ...], exact in any dtype."""
    own = np.asarray(value)
    if not is_multiprocess():
        return own[None]
    from jax.experimental import multihost_utils

    bits = multihost_utils.process_allgather(np.frombuffer(own.tobytes(), np.uint8))
    return np.frombuffer(bits.tobytes(), own.dtype).reshape(-1, *own.shape)


def all_processes(value: bool) -> bool:
    """Whether it holds in all processes."""
    return bool(all_gather(value).all())


def broadcast_from_lead(value: Any) -> Any:
    """A number as the first process has it: for what is measured, and decides."""
    return type(value)(all_gather(value)[0])


def total_over_processes(value: int) -> int:
    """The sum over all processes."""
    return int(all_gather(value).sum())


def even_shares(count: int) -> list[range]:
    """So many rows in one piece for each process."""
    processes = jax.process_count() if is_multiprocess() else 1
    return [
        range(count * place // processes, count * (place + 1) // processes)
        for place in range(processes)
    ]


def assert_same(what: str, entries: dict[str, str]) -> None:
    """Raise :class:`MeshError`, in every process, naming the first entry that is not the same in all of them."""
    for name, text in entries.items():
        own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if (all_gather(own) != own).any():
            raise MeshError(
                f"the processes of this run disagree on {what}: {name} is {text} here: give all of them the same"
            )

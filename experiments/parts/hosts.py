"""The devices of a run: those of one process, or of several on as many hosts, which run the same command together.

    python -m experiments.finetune ... --coordinator host0:1234 --processes 2 --process-id 0     # on host0
    python -m experiments.finetune ... --coordinator host0:1234 --processes 2 --process-id 1     # on another

Under SLURM nothing is to be given, under Kubernetes and on Cloud TPU ``--coordinator auto``. The first process alone
writes and prints; checkpoints are written by all. ``--out`` and ADAPT_CACHE are on a disk that all of them see.
"""

import dataclasses
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import jax
import numpy as np

from adapt.errors import MeshError
from adapt.shard import first, wait

__all__ = ("Devices", "agree", "every", "first", "from_first", "join", "parts", "several", "total", "wait")

CHILD = "ADAPT_PROCESS"  # set in the process that works, by the one that watches it
DIED = "another process of this run has ended, so this one stops: look at what that one said, then go on with --resume"
LOST = re.compile(r"Gloo|[Cc]onnection|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination|[Pp]eer|heartbeat")
LOGGED = re.compile(
    r"[IWEF]\d{4} \d\d:\d\d:|\s+@ |\*\*\* |\[Gloo\] |RPC: |Additional GRPC error|:UNKNOWN:|https://|\d+$|The tasks have crashed"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """Flags of every command that works on a mesh."""

    mesh: str = ""  # sizes of the axes data, fsdp and tensor, as in data=2,fsdp=4; default: all devices on data
    coordinator: str | None = None  # of several processes: HOST:PORT of the first one, or auto: see experiments/parts/hosts.py
    processes: int | None = None  # how many there are
    process_id: int | None = None  # which of them this is, from 0
    join_timeout: int = 60  # seconds in which all of them have to be there


def join(flags: Devices) -> None:
    """Meet the other processes of the run, where there are any; call it before JAX looks for devices.

    Raises :class:`MeshError` for flags that make no sense, and when the others do not come in time.
    """
    explicit = (flags.coordinator, flags.processes, flags.process_id)
    given = [each is not None for each in explicit]
    virtual = (
        "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or (jax.config.values["jax_num_cpu_devices"] or 0) > 1
    )
    if virtual or any(given):  # on a CPU each collective holds a thread, and all threads may wait for one that has none
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        os.environ.setdefault("NPROC", "64")
    auto = flags.coordinator == "auto" or (not any(given) and int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1)  # set by srun
    if not auto and not any(given):
        return
    if not auto and not all(given):
        raise MeshError("--coordinator, --processes and --process-id go together: give all three, or --coordinator auto")
    if not auto and not (flags.processes or 0) > (flags.process_id or 0) >= 0:
        raise MeshError(f"--process-id {flags.process_id} must be from 0 to --processes - 1, {(flags.processes or 0) - 1}")
    port = re.fullmatch(r".+:(\d+)", flags.coordinator or "")
    if not auto and not (port and int(port[1]) < 2**16):
        raise MeshError(f"--coordinator {flags.coordinator} must be HOST:PORT, a port below 65536")
    if flags.join_timeout < 1:
        raise MeshError(f"--join-timeout {flags.join_timeout} must be at least 1 second")
    if CHILD not in os.environ:
        watch(flags)
    own = os.dup(1)
    os.dup2(2, 1)  # what libraries print there goes to stderr, where the log is
    sys.stdout = os.fdopen(own, "w", buffering=1, closefd=False)
    if not auto and flags.process_id:
        reach(str(flags.coordinator), flags.join_timeout)
    names = ("coordinator_address", "num_processes", "process_id")
    place: dict[str, Any] = {} if auto else dict(zip(names, explicit, strict=True))
    warnings.filterwarnings("ignore", "\\s*Kubernetes environment detected", UserWarning)  # reason() says it
    try:
        jax.distributed.initialize(
            **place, initialization_timeout=flags.join_timeout, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=30
        )
    except Exception as fault:  # with auto also what the client of a cluster raises
        mend = (
            "give --coordinator HOST:PORT, --processes and --process-id" if auto else f"look at --coordinator {flags.coordinator}"
        )
        raise MeshError(f"the processes of the run did not meet: {reason(fault)}; {mend}") from None
    if not first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), own)


def reason(fault: BaseException) -> str:
    """Why ``jax.distributed.initialize`` failed, in one line."""
    text = str(fault.__cause__ or fault).strip() or type(fault).__name__
    if "coordinator_address should be defined" not in text:
        return text.splitlines()[0].rstrip(".")
    nowhere = "--coordinator auto sees no SLURM step, Kubernetes job or Cloud TPU here"
    package = "in a Kubernetes job it needs pip install 'adapt[kubernetes]'"
    return f"{nowhere} ({package})" if "KUBERNETES_SERVICE_HOST" in os.environ else nowhere


def reach(coordinator: str, limit: float) -> None:
    """Raise :class:`MeshError` unless somebody answers at the address within ``limit`` seconds."""
    host, port = coordinator.rsplit(":", 1)
    until, why = time.monotonic() + limit, "no answer"
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=max(until - time.monotonic(), 0.1)).close()
            return
        except OSError as fault:
            why = str(fault)
            time.sleep(0.2)
    raise MeshError(f"--coordinator {coordinator} does not answer within {limit:g} s ({why}): is process 0 running there?")


def watch(flags: Devices) -> None:
    """Run this very command in a process of its own and end as it ends.

    Where a peer dies, JAX's runtime aborts the process with pages of its log; here that becomes one line.
    """
    child = subprocess.Popen(sys.orig_argv, env=os.environ | {CHILD: "1"}, stderr=subprocess.PIPE, text=True, errors="replace")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    logged = []

    def forward() -> None:
        assert child.stderr
        for line in child.stderr:
            if LOGGED.match(line):
                logged.append(line)
            else:
                sys.stderr.write(line)
                sys.stderr.flush()

    reading = threading.Thread(target=forward, daemon=True)
    reading.start()
    code = child.wait()
    reading.join(5)
    text = "".join(logged)
    if code == -signal.SIGABRT and "distributed service detected fatal errors" in text:
        late = "Connect()" in text or "DEADLINE_EXCEEDED" in text
        came = f"not all {flags.processes or ''} processes came within --join-timeout {flags.join_timeout} s"
        why = f"{came}: has each its own --process-id, and process 0's address as --coordinator?" if late else DIED
        print(f"error: {why}", file=sys.stderr)
        code = 2
    elif code < 0:
        if -code not in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):  # those come from outside: the log knows nothing of them
            sys.stderr.write(text)
        code = 128 - code
    sys.stderr.flush()
    os._exit(code)


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def gathered(value: Any) -> np.ndarray:
    """A number, or an array of one shape, of every process: [processes, ...], exact in any dtype."""
    own = np.asarray(value)
    if not several():
        return own[None]
    from jax.experimental import multihost_utils

    bits = multihost_utils.process_allgather(np.frombuffer(own.tobytes(), np.uint8))
    return np.frombuffer(bits.tobytes(), own.dtype).reshape(-1, *own.shape)


def every(value: bool) -> bool:
    """Whether it holds in all processes."""
    return bool(gathered(value).all())


def from_first(value: Any) -> Any:
    """A number as the first process has it: for what is measured, and decides."""
    return type(value)(gathered(value)[0])


def total(value: int) -> int:
    """The sum over all processes."""
    return int(gathered(value).sum())


def parts(count: int) -> list[range]:
    """So many rows in one piece for each process."""
    processes = jax.process_count() if several() else 1
    return [range(count * place // processes, count * (place + 1) // processes) for place in range(processes)]


def agree(what: str, entries: dict[str, str]) -> None:
    """Raise :class:`MeshError`, in every process, naming the first entry that is not the same in all of them."""
    for name, text in entries.items():
        own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
        if (gathered(own) != own).any():
            raise MeshError(f"the processes of this run disagree on {what}: {name} is {text} here: give all of them the same")

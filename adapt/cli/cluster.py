"""The devices of a run: those of one process, or of several on as many hosts, which run the same
command together.

    adapt finetune ... --coordinator host0:1234 --processes 2 --process-id 0     # on host0
    adapt finetune ... --coordinator host0:1234 --processes 2 --process-id 1     # on another

Under SLURM nothing is to be given, under Kubernetes and on Cloud TPU ``--coordinator auto``. The
lead process alone writes and prints; checkpoints are written by all. ``--out`` and ADAPT_CACHE are
on a disk that all of them see.
"""

import os
import re
import socket
import sys
import time
import warnings
from typing import Any

import jax

from adapt.cli.gloo import listen_where_others_reach, split_address
from adapt.cli.watcher import watch_worker
from adapt.errors import MeshError
from adapt.options import DeviceOptions
from adapt.parallel.multihost import all_gather, is_lead_process

LOST = re.compile(  # what an error says that comes from the loss of another process
    r"Gloo|[Cc]onnection|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination|[Pp]eer|heartbeat"
)


def join(flags: DeviceOptions) -> None:
    """Meet the other processes of the run, where there are any; call it before JAX looks for
    devices.

    Raises :class:`MeshError` for flags that make no sense, and when the others do not come in time.
    """
    explicit = (flags.coordinator, flags.processes, flags.process_id)
    is_alone = all(value is None for value in explicit)
    is_slurm_step = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1  # set by srun
    is_auto = flags.coordinator == "auto" or (is_alone and is_slurm_step)
    if has_virtual_devices() or is_auto or not is_alone:
        avoid_deadlock_on_cpus()
    if is_alone and not is_auto:
        return

    check_flags(flags, is_auto)
    if is_auto:
        set_port_of_slurm_step()
    watch_worker(flags)
    stdout = divert_stdout()
    if is_auto:
        meet(flags, {})
    else:
        assert flags.coordinator is not None
        if flags.process_id:
            wait_for_coordinator(flags.coordinator, flags.join_timeout)
        else:
            check_port(flags.coordinator)
        names = ("coordinator_address", "num_processes", "process_id")
        meet(flags, dict(zip(names, explicit, strict=True)))
    if not is_lead_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)


def has_virtual_devices() -> bool:
    """Whether the CPU is to be several devices."""
    by_flag = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    return by_flag or (jax.config.values["jax_num_cpu_devices"] or 0) > 1


def avoid_deadlock_on_cpus() -> None:
    """On a CPU each collective holds a thread, and all threads may wait for one that has none."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    os.environ.setdefault("NPROC", "64")


def check_flags(flags: DeviceOptions, is_auto: bool) -> None:
    """Raise :class:`MeshError` for flags that make no sense."""
    if flags.join_timeout < 1:
        raise MeshError(f"--join-timeout {flags.join_timeout} must be at least 1 second")
    if is_auto:
        return
    if flags.coordinator is None or flags.processes is None or flags.process_id is None:
        raise MeshError(
            "--coordinator, --processes and --process-id go together: give all three, "
            "or --coordinator auto"
        )
    if not 0 <= flags.process_id < flags.processes:
        raise MeshError(
            f"--process-id {flags.process_id} must be from 0 to --processes - 1, "
            f"{flags.processes - 1}"
        )
    port = re.fullmatch(r".+:(\d+)", flags.coordinator)
    if port is None or int(port[1]) >= 2**16:
        raise MeshError(f"--coordinator {flags.coordinator} must be HOST:PORT, a port below 65536")


def set_port_of_slurm_step() -> None:
    """Give each step of a SLURM job a port of its own: JAX has one for all of a job, whose steps
    may run at once.
    """
    step = os.environ.get("SLURM_STEP_ID")
    if step:
        job = int(os.environ["SLURM_JOB_ID"])
        port = 61440 + (61 * job + int(step)) % 4096
        os.environ.setdefault("JAX_COORDINATOR_PORT", str(port))


def divert_stdout() -> int:
    """Send what libraries print on stdout to stderr, where the log is. The descriptor of what
    Python prints there.
    """
    descriptor = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(descriptor, "w", buffering=1, closefd=False)
    return descriptor


def meet(flags: DeviceOptions, place: dict[str, Any]) -> None:
    """Start JAX's runtime of several processes, and have each hear from all. Raises
    :class:`MeshError`.

    ``place`` has the arguments of ``jax.distributed.initialize`` that say where this process is; {}
    lets it find out.
    """
    # It would take SIGTERM for a notice, and the run would go on.
    jax.config.update("jax_enable_preemption_service", False)
    # reason() says it.
    warnings.filterwarnings("ignore", "\\s*Kubernetes environment detected", UserWarning)
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=flags.join_timeout,
            heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30,
        )
    except Exception as error:  # with auto also what the client of a cluster raises
        hint = "give --coordinator HOST:PORT, --processes and --process-id"
        if place:
            hint = f"look at --coordinator {flags.coordinator}"
        why = f"the processes of the run did not meet: {reason(error)}"
        raise MeshError(f"{why}; {hint}") from None
    listen_where_others_reach(flags.join_timeout)
    try:
        all_gather(0)
    except (RuntimeError, ValueError) as error:
        if not LOST.search(str(error)):
            raise
        why = f"the processes met, but do not reach each other: {reason(error)[:200]}"
        raise MeshError(f"{why}; their hosts need to open any TCP port to each other") from None


def reason(error: BaseException) -> str:
    """Why ``jax.distributed.initialize`` failed, in one line."""
    text = str(error.__cause__ or error).strip() or type(error).__name__
    if "coordinator_address should be defined" not in text:
        return text.splitlines()[0].rstrip(".")
    nowhere = "--coordinator auto sees no SLURM step, Kubernetes job or Cloud TPU here"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return f"{nowhere} (in a Kubernetes job it needs pip install -e '.[kubernetes]' from the clone)"
    return nowhere


def check_port(coordinator: str) -> None:
    """Raise :class:`MeshError` if the port is in use: JAX would join the coordinator of that other
    run.
    """
    port = split_address(coordinator)[1]
    has_both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=has_both).close()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise MeshError(
            f"--coordinator {coordinator}: process 0 cannot listen at port {port} of this host "
            f"({why}): give all processes another port"
        ) from None


def wait_for_coordinator(coordinator: str, timeout: float) -> None:
    """Raise :class:`MeshError` unless somebody answers at the address within ``timeout`` seconds."""
    until = time.monotonic() + timeout
    why = "no answer"
    while time.monotonic() < until:
        left = max(until - time.monotonic(), 0.1)
        try:
            socket.create_connection(split_address(coordinator), timeout=left).close()
            return
        except OSError as error:
            why = str(error)
            time.sleep(0.2)
    raise MeshError(
        f"--coordinator {coordinator} does not answer within {timeout:g} s ({why}): "
        "is process 0 running there?"
    )

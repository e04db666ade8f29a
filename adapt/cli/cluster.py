"""The devices of a run: those of one process, or of several on as many hosts, which run the same command together.

    adapt finetune ... --coordinator host0:1234 --processes 2 --process-id 0     # on host0
    adapt finetune ... --coordinator host0:1234 --processes 2 --process-id 1     # on another

Under SLURM nothing is to be given, under Kubernetes and on Cloud TPU ``--coordinator auto``. The first process alone
writes and prints; checkpoints are written by all. ``--out`` and ADAPT_CACHE are on a disk that all of them see.
"""

import contextlib
import ctypes
import functools
import importlib
import ipaddress
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

from adapt.errors import MeshError
from adapt.options import DeviceOptions
from adapt.parallel.multihost import all_gather, is_lead_process

CHILD = "ADAPT_PROCESS"  # set in the process that works, by the one that watches it
DIED = (
    "another process of this run has ended, or is out of reach, so this one stops: "
    "look at what that one said, then go on with --resume"
)
LOST = re.compile(
    r"Gloo|[Cc]onnection|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination|[Pp]eer|heartbeat"
)
LOGGED = re.compile(  # beginnings of lines
    r"[IWEF]\d{4} \d\d:\d\d:|\s+@ |\*\*\* |.*(\[Gloo\] |peer ranks)|\[external/gloo/|RPC: |Additional GRPC error|:UNKNOWN:|https://"
    r"|\d*$|The tasks have crashed|=== Source Location Trace|external/"
)


def join(flags: DeviceOptions) -> None:
    """Meet the other processes of the run, where there are any; call it before JAX looks for devices.

    Raises :class:`MeshError` for flags that make no sense, and when the others do not come in time.
    """
    explicit = (flags.coordinator, flags.processes, flags.process_id)
    alone = all(each is None for each in explicit)
    step = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1  # set by srun
    auto = flags.coordinator == "auto" or (alone and step)
    virtual = (
        "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
        or (jax.config.values["jax_num_cpu_devices"] or 0) > 1
    )
    if (
        virtual or auto or not alone
    ):  # on a CPU each collective holds a thread, and all threads may wait for one that has none
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        os.environ.setdefault("NPROC", "64")
    if alone and not auto:
        return
    check(flags, auto)
    if auto and (
        number := os.environ.get("SLURM_STEP_ID")
    ):  # JAX has one port for all steps of a job, which may run at once
        os.environ.setdefault(
            "JAX_COORDINATOR_PORT",
            str(61440 + (61 * int(os.environ["SLURM_JOB_ID"]) + int(number)) % 4096),
        )
    if CHILD not in os.environ:
        watch(flags)
    with contextlib.suppress(
        AttributeError
    ):  # PR_SET_PDEATHSIG of Linux: not to go on when the one that watches is killed
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    own = os.dup(1)
    os.dup2(2, 1)  # what libraries print there goes to stderr, where the log is
    sys.stdout = os.fdopen(own, "w", buffering=1, closefd=False)
    if not auto:
        (reach if flags.process_id else free)(str(flags.coordinator), flags.join_timeout)
    meet(
        flags,
        {}
        if auto
        else dict(
            zip(("coordinator_address", "num_processes", "process_id"), explicit, strict=True)
        ),
    )
    if not is_lead_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), own)


def check(flags: DeviceOptions, auto: bool) -> None:
    """Raise :class:`MeshError` for flags that make no sense."""
    if flags.join_timeout < 1:
        raise MeshError(f"--join-timeout {flags.join_timeout} must be at least 1 second")
    if auto:
        return
    if flags.coordinator is None or flags.processes is None or flags.process_id is None:
        raise MeshError(
            "--coordinator, --processes and --process-id go together: give all three, or --coordinator auto"
        )
    if not flags.processes > flags.process_id >= 0:
        raise MeshError(
            f"--process-id {flags.process_id} must be from 0 to --processes - 1, {flags.processes - 1}"
        )
    port = re.fullmatch(r".+:(\d+)", flags.coordinator)
    if not (port and int(port[1]) < 2**16):
        raise MeshError(f"--coordinator {flags.coordinator} must be HOST:PORT, a port below 65536")


def meet(flags: DeviceOptions, place: dict[str, Any]) -> None:
    """Start JAX's runtime of several processes, and have each hear from all. Raises :class:`MeshError`."""
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # it would take SIGTERM for a notice, and the run would go on
    warnings.filterwarnings(
        "ignore", "\\s*Kubernetes environment detected", UserWarning
    )  # reason() says it
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=flags.join_timeout,
            heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30,
        )
    except Exception as fault:  # with auto also what the client of a cluster raises
        mend = (
            f"look at --coordinator {flags.coordinator}"
            if place
            else "give --coordinator HOST:PORT, --processes and --process-id"
        )
        raise MeshError(f"the processes of the run did not meet: {reason(fault)}; {mend}") from None
    if jax.config.values["jax_cpu_collectives_implementation"] == "gloo":
        with contextlib.suppress(
            ImportError, AttributeError
        ):  # where a later JAX has moved it, the host's name has to be right
            publish(flags.join_timeout)
    try:
        all_gather(0)
    except (RuntimeError, ValueError) as fault:
        if not LOST.search(str(fault)):
            raise
        why = f"the processes met, but do not reach each other: {reason(fault)[:200]}"
        raise MeshError(f"{why}; their hosts need to open any TCP port to each other") from None


def reason(fault: BaseException) -> str:
    """Why ``jax.distributed.initialize`` failed, in one line."""
    text = str(fault.__cause__ or fault).strip() or type(fault).__name__
    if "coordinator_address should be defined" not in text:
        return text.splitlines()[0].rstrip(".")
    nowhere = "--coordinator auto sees no SLURM step, Kubernetes job or Cloud TPU here"
    package = "in a Kubernetes job it needs pip install 'adapt-jax[kubernetes]'"
    return f"{nowhere} ({package})" if "KUBERNETES_SERVICE_HOST" in os.environ else nowhere


def split(coordinator: str) -> tuple[str, int]:
    """Host and port of ``host0:1234``, ``10.0.0.1:1234`` or ``[fd00::1]:1234``."""
    host, port = coordinator.rsplit(":", 1)
    return host.strip("[]"), int(port)


def free(coordinator: str, _: float) -> None:
    """Raise :class:`MeshError` where this host's port is taken: that of another run JAX would share, and mix up the two."""
    port = split(coordinator)[1]
    try:
        dual = socket.has_dualstack_ipv6()
        socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        ).close()
    except OSError as fault:
        why = (
            f"process 0 cannot listen at port {port} of this host ({os.strerror(fault.errno or 0)})"
        )
        raise MeshError(
            f"--coordinator {coordinator}: {why}: give all processes another port"
        ) from None


def facing(host: str, port: int = 9) -> str:
    """The address of this host that another one sees; IPv4 where there are both. Nothing is sent."""
    for family, kind, _, _, there in sorted(
        socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM), key=lambda each: each[0]
    ):
        with (
            contextlib.suppress(OSError),
            socket.socket(family, kind) as here,
        ):  # no route for this family
            here.connect(there)
            return here.getsockname()[0]
    raise MeshError(f"no address of this host faces {host}: look at its routes")


def publish(limit: float) -> None:
    """Have JAX's collectives on CPUs listen at the address of this host that the others reach; ``limit`` is in seconds.

    By itself JAX takes what the host's own name stands for. In Debian's /etc/hosts that is 127.0.1.1, where each host finds
    itself, and a container's name may stand for nothing. JAX has no flag for it, only a private part.
    """
    from jax._src import distributed, xla_bridge
    from jax.extend.backend import register_backend_factory

    run: Any = distributed.global_state
    compiled: Any = importlib.import_module("jaxlib._jax")
    loopback = lambda address: ipaddress.ip_address(address.partition("%")[0]).is_loopback
    own = facing(*split(run.coordinator_address))
    run.client.key_value_set(f"adapt/{run.process_id}", own)
    if loopback(own):  # process 0 is on this host, under a name that is only known here
        others = (
            run.client.blocking_key_value_get(f"adapt/{number}", int(1000 * limit))
            for number in range(run.num_processes)
        )
        own = next((facing(other) for other in others if not loopback(other)), own)
    client = functools.partial(
        xla_bridge.make_cpu_client, compiled.make_gloo_tcp_collectives(run.client, hostname=own)
    )
    register_backend_factory("cpu", client, priority=0, fail_quietly=False)


def reach(coordinator: str, limit: float) -> None:
    """Raise :class:`MeshError` unless somebody answers at the address within ``limit`` seconds."""
    host, port = split(coordinator)
    until = time.monotonic() + limit
    why = "no answer"
    while time.monotonic() < until:
        try:
            socket.create_connection(
                (host, port), timeout=max(until - time.monotonic(), 0.1)
            ).close()
            return
        except OSError as fault:
            why = str(fault)
            time.sleep(0.2)
    raise MeshError(
        f"--coordinator {coordinator} does not answer within {limit:g} s ({why}): is process 0 running there?"
    )


def watch(flags: DeviceOptions) -> None:
    """Run this very command in a process of its own and end as it ends.

    Where a peer dies, JAX's runtime aborts the process with pages of its log; here that becomes one line.
    """
    child = subprocess.Popen(
        sys.orig_argv,
        env=os.environ | {CHILD: "1"},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
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
        late = "Connect()" in text or "RegisterTask" in text
        came = f"not all {flags.processes or ''} processes came within --join-timeout {flags.join_timeout} s"
        why = (
            f"{came}: has each its own --process-id, and process 0's address as --coordinator?"
            if late
            else DIED
        )
        print(f"error: {why}", file=sys.stderr)
        code = 2
    elif code < 0:
        if -code not in (
            signal.SIGKILL,
            signal.SIGTERM,
            signal.SIGINT,
        ):  # those come from outside: the log knows nothing of them
            sys.stderr.write(text)
        code = 128 - code
    sys.stderr.flush()
    os._exit(code)

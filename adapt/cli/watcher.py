"""A process that watches the one that works: where another process of a run dies, one line in place
of pages.

JAX's runtime then aborts the process from within, with its log on stderr. No Python sees that,
except in a parent.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from typing import IO

from adapt.options import DeviceOptions

WORKER = "ADAPT_PROCESS"  # set in the environment of the process that works
DIED = (
    "another process of this run has ended, or is out of reach, so this one stops: "
    "look at what that one said, then go on with --resume"
)
# How the lines of the runtime's log begin.
RUNTIME_LOG = re.compile(
    r"[IWEF]\d{4} \d\d:\d\d:|\s+@ |\*\*\* |.*(\[Gloo\] |peer ranks)|\[external/gloo/|RPC: |"
    r"Additional GRPC error|:UNKNOWN:|https://|\d*$|The tasks have crashed|"
    r"=== Source Location Trace|external/"
)
# What comes from outside: the log knows nothing of it.
SENT = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def watch_worker(flags: DeviceOptions) -> None:
    """Run this very command in a process of its own and end as it ends. The worker returns at once,
    and goes on.
    """
    if WORKER in os.environ:
        end_with_parent()
        return
    worker = subprocess.Popen(
        sys.orig_argv,
        env=os.environ | {WORKER: "1"},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: worker.send_signal(number))
    assert worker.stderr
    log: list[str] = []
    reader = threading.Thread(target=forward, args=(worker.stderr, log), daemon=True)
    reader.start()
    code = worker.wait()
    reader.join(5)

    text = "".join(log)
    if code == -signal.SIGABRT and "distributed service detected fatal errors" in text:
        print(f"error: {why_aborted(text, flags)}", file=sys.stderr)
        code = 2
    elif code < 0:
        if -code not in SENT:
            sys.stderr.write(text)
        code = 128 - code
    sys.stderr.flush()
    os._exit(code)


def end_with_parent() -> None:
    """Have Linux end this process when the one that watches it is killed; elsewhere nothing is
    done.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def forward(stderr: IO[str], log: list[str]) -> None:
    """Print what the worker says on stderr, and keep the lines of the runtime's log."""
    for line in stderr:
        if RUNTIME_LOG.match(line):
            log.append(line)
        else:
            sys.stderr.write(line)
            sys.stderr.flush()


def why_aborted(log: str, flags: DeviceOptions) -> str:
    """What the log of an abort means to a user."""
    if "Connect()" not in log and "RegisterTask" not in log:
        return DIED
    return (
        f"not all {flags.processes or ''} processes came within --join-timeout "
        f"{flags.join_timeout} s: has each its own --process-id, and process 0's address as "
        "--coordinator?"
    )

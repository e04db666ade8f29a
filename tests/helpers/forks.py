"""Commands in processes of their own that have imported everything before they begin.

    python -m tests.helpers.forks 7     # which a test session starts: 7 is the socket of its requests

Importing JAX and what a command needs takes two to four seconds of a core, which most of the
processes of tests would spend anew. One process imports it all and forks for each command, before
JAX looks for devices: threads that run then would be missing in a fork. Variables that are read at
import have the values of the first process, see `Server.can_start`.
"""

import dataclasses
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import jax

ROOT = Path(__file__).parents[2]
# What commands import when they need it.
IMPORTED_LATE = (
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "orbax.checkpoint",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.metrics",
)
NUMBER = 8  # bytes of a process's number, and of its status
# Beginnings of the variables that are read while something is imported.
READ_BY_IMPORTS = ("JAX_", "PYTHON", "HF_", "TF_", "MPL", "LD_", "TZ", "LANG", "LC_", "HOME")
# Those of them that a fork can read anew, and what they are.
READ_ANEW = {
    "JAX_COMPILATION_CACHE_DIR": str,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": float,
}


def import_all() -> None:
    """Import every command, and what commands import when they need it."""
    import adapt.cli

    for module in pkgutil.iter_modules(adapt.cli.__path__):
        importlib.import_module(f"adapt.cli.{module.name}")
    for name in IMPORTED_LATE:
        importlib.import_module(name)


# Where a test starts commands


class Server:
    """The process that forks. `can_start` says for which environments."""

    def __init__(self, env: Mapping[str, str]):
        self.env = env
        self.socket, other = socket.socketpair()
        words = [sys.executable, "-m", __name__, str(other.fileno())]
        self.process = subprocess.Popen(
            words, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()]
        )
        other.close()

    def can_start(self, env: Mapping[str, str]) -> bool:
        """Whether a process with that environment would import what this one has imported."""
        names = (env.keys() | self.env.keys()) - READ_ANEW.keys()
        read = [name for name in names if name.startswith(READ_BY_IMPORTS)]
        return all(env.get(name) == self.env.get(name) for name in read)

    def run(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`python -m WORDS` to its end, in a new Python where its environment needs that."""
        if not self.can_start(env):
            return run_anew(words, env, cwd)
        process = self.start(words, env, cwd)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(words, process.wait(), out, err)

    def start(
        self, words: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
    ) -> "Forked":
        """Begin `python -m WORDS`."""
        out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        wanted = Request([*words], {**env}, str(cwd or Path.cwd()))
        reply, other = socket.socketpair()
        with tempfile.TemporaryFile("w+") as request, other:
            json.dump(dataclasses.asdict(wanted), request)
            request.flush()
            request.seek(0)
            descriptors = [file.fileno() for file in (request, other, out, err)]
            socket.send_fds(self.socket, [b"+"], descriptors)
        return Forked(words, reply, out, err)

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self.socket.close()
        self.process.wait()


def run_anew(
    words: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`python -m WORDS` to its end, in a Python that imports for itself."""
    line = [sys.executable, "-m", *words]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


class Forked:
    """A process as `subprocess.Popen` has it, as far as tests ask."""

    def __init__(self, args: Sequence[str], reply: socket.socket, out: IO[str], err: IO[str]):
        self.args = args
        self.out = out
        self.err = err
        self.reply = reply
        self.pid = self.next_number()
        self.returncode: int | None = None

    def next_number(self) -> int:
        said = self.reply.recv(NUMBER, socket.MSG_WAITALL)
        if len(said) < NUMBER:
            raise RuntimeError("the process that forks has ended")
        return int.from_bytes(said, signed=True)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; minus its number where a signal ended the process."""
        if self.returncode is None:
            self.reply.settimeout(timeout)
            try:
                self.returncode = self.next_number()
            except TimeoutError:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0) from None
            self.reply.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and to stderr until its end."""
        self.wait(timeout)
        said = []
        for file in (self.out, self.err):
            file.seek(0)
            said.append(file.read())
            file.close()
        return said[0], said[1]

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


# The process that forks


@dataclasses.dataclass(frozen=True)
class Request:
    """A command to be run by the process that has this."""

    words: list[str]
    env: dict[str, str]
    cwd: str

    def run(self) -> None:
        """What `python -m WORDS` does."""
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        for name in READ_ANEW.keys() & self.env.keys():
            jax.config.update(name.lower(), READ_ANEW[name](self.env[name]))
        sys.path[0] = self.cwd
        sys.orig_argv[1:] = ["-m", *self.words]
        sys.argv[1:] = self.words[1:]
        runpy.run_module(self.words[0], run_name="__main__", alter_sys=True)


def serve(requests: socket.socket) -> Request | None:
    """The request of a forked process, which this returns in; in the first process None at the end.

    It forks for each request until the other side closes the socket.
    """
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 1, 4)
        if not message:
            forget_ended()
            return None
        if os.fork() == 0:
            requests.close()
            return begin(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        forget_ended()


def begin(request: int, reply: int, out: int, err: int) -> Request:
    """The request, in a second fork. The first one sends its pid, waits for it, sends its exit status
    and ends.
    """
    pid = os.fork()
    if pid:
        os.write(reply, pid.to_bytes(NUMBER, signed=True))
        _, status = os.waitpid(pid, 0)
        os.write(reply, os.waitstatus_to_exitcode(status).to_bytes(NUMBER, signed=True))
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    with open(request) as file:
        wanted = json.load(file)
    for descriptor in (reply, out, err):
        os.close(descriptor)
    return Request(**wanted)


def forget_ended() -> None:
    """Take the status of forks that have ended, which would stay in the system's table."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    import_all()
    gc.collect()
    gc.freeze()  # what is imported is no garbage
    gc.set_threshold(100_000, 20, 20)
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        request = serve(requests)
    if request is not None:
        request.run()


if __name__ == "__main__":
    main()

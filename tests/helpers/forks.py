"""Commands in processes of their own that have imported everything before they begin.

    python -m tests.helpers.forks 7 8   # which a test session starts: 7 is the socket of its requests,
                                        # 8 the one at which programs in place of Python's ask

Importing JAX and what a command needs takes two to four seconds of a core, which most of the
processes of tests would spend anew. One process imports it all and forks for each command, before
JAX looks for devices: threads that run then would be missing in a fork. Variables that are read at
import have the values of the first process, see `Server.can_start`.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# JAX is imported where it is needed: this file is also the program of `Server.python`.

ROOT = Path(__file__).parents[2]
# What commands import when they need it.
IMPORTED_LATE = (
    "datasets",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "orbax.checkpoint",
    "pandas",
    "pyarrow.parquet",
)
NUMBER = 8  # bytes of a process's number, and of its status
FILES = (
    5  # that come with a request: itself, where to answer, and the process's stdin, stdout, stderr
)
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
        self.folder = tempfile.TemporaryDirectory(prefix="forks")
        self.address = f"{self.folder.name}/socket"  # where programs in place of Python's ask
        self.python = self.write_python()
        self.socket, other = socket.socketpair()
        with other, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            descriptors = [other.fileno(), listener.fileno()]
            words = [sys.executable, "-m", __name__, *map(str, descriptors)]
            alike = {name: value for name, value in env.items() if name not in READ_ANEW}
            self.process = subprocess.Popen(
                words, env=alike, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=descriptors
            )

    def write_python(self) -> str:
        """A program that does what `sys.executable` does, in a fork where imports find the same.

        Signals, the exit status and the end of the fork are those of this program.
        """
        path = Path(self.folder.name, "python")
        words = [sys.executable, "-I", "-S", __file__, self.address, sys.executable]
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        path.chmod(0o755)
        return str(path)

    def can_start(self, env: Mapping[str, str]) -> bool:
        """Whether a process with that environment would import what this one has imported."""
        return is_read_alike(env, self.env)

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
        self,
        words: Sequence[str],
        env: Mapping[str, str],
        cwd: Path | None = None,
        starts_forks: bool = True,
    ) -> "Forked":
        """Begin `python -m WORDS`. What it starts itself are forks, too, unless told otherwise."""
        python = self.python if starts_forks else sys.executable
        out = tempfile.TemporaryFile("w+")  # noqa: SIM115
        err = tempfile.TemporaryFile("w+")  # noqa: SIM115
        wanted = Request(["-m", *words], {**env}, str(cwd or Path.cwd()), python)
        with open(os.devnull) as nothing:
            files = (nothing.fileno(), out.fileno(), err.fileno())
            reply = ask(self.socket, wanted, files)
        return Forked(words, reply, out, err)

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self.socket.close()
        self.process.wait()
        self.folder.cleanup()


def is_read_alike(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether imports find the same in both environments."""
    names = (one.keys() | other.keys()) - READ_ANEW.keys() - {"PYTHONPATH"}
    read = [name for name in names if name.startswith(READ_BY_IMPORTS)]
    paths = [dict.fromkeys(env.get("PYTHONPATH", "").split(os.pathsep)) for env in (one, other)]
    return paths[0] == paths[1] and all(one.get(name) == other.get(name) for name in read)


def ask(server: socket.socket, wanted: "Request", files: Sequence[int]) -> socket.socket:
    """Send a request; the socket that answers with the number of the process, and with its status."""
    reply, other = socket.socketpair()
    with tempfile.TemporaryFile("w+") as request, other:
        json.dump(dataclasses.asdict(wanted), request)
        request.flush()
        request.seek(0)
        socket.send_fds(server, [b"+"], [request.fileno(), other.fileno(), *files])
    return reply


def next_number(reply: socket.socket) -> int:
    """The next number of an answer."""
    said = reply.recv(NUMBER, socket.MSG_WAITALL)
    if len(said) < NUMBER:
        raise RuntimeError("the process that forks has ended")
    return int.from_bytes(said, signed=True)


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
        self.pid = next_number(reply)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; minus its number where a signal ended the process."""
        if self.returncode is None:
            self.reply.settimeout(timeout)
            try:
                self.returncode = next_number(self.reply)
            except TimeoutError:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0) from None
            self.reply.close()
        return self.returncode

    def is_running(self) -> bool:
        """Whether it has not ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode is None

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
            kill_group(self.pid)
            self.wait()


# In place of Python


def stand_for(address: str, python: str, words: Sequence[str]) -> None:
    """Have a fork do what that Python does with these words, and end as it ends; or be that Python,
    where no fork would be the same.
    """
    can_fork = words[:1] in (["-m"], ["-c"])
    reply = ask_for_fork(address, words) if can_fork else None
    if reply is None:
        os.execv(python, [python, *words])
    pid = next_number(reply)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    status = next_number(reply)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def ask_for_fork(address: str, words: Sequence[str]) -> socket.socket | None:
    """The socket that answers; None where the environment asks for other imports."""
    program = f"{Path(address).parent}/python"
    wanted = Request([*words], {**os.environ}, os.getcwd(), program)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        reply = ask(server, wanted, (0, 1, 2))
    return reply if reply.recv(1, socket.MSG_PEEK) else None


# The process that forks


@dataclasses.dataclass(frozen=True)
class Request:
    """What a Python is to do, by the process that has this."""

    words: list[str]  # -m and a module, or -c and a program; and what follows
    env: dict[str, str]
    cwd: str
    python: str  # by which it starts others

    def run(self) -> None:
        """Do it."""
        import jax

        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.env)
        for name in READ_ANEW.keys() & self.env.keys():
            jax.config.update(name.lower(), READ_ANEW[name](self.env[name]))
        sys.executable = self.python
        sys.orig_argv[:] = [self.python, *self.words]
        kind, program, *rest = self.words
        if kind == "-m":
            sys.path[0] = self.cwd
            sys.argv[1:] = rest
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = ""
            sys.argv[:] = ["-c", *rest]
            exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})


def serve(requests: socket.socket, listener: socket.socket) -> Request | None:
    """The request of a forked process, which this returns in; in the first process None at the end.

    It forks for each request until the other side closes the socket.
    """
    while True:
        ready, *_ = select.select([requests, listener], [], [])
        if requests in ready:
            message, descriptors, *_ = socket.recv_fds(requests, 1, FILES)
            if not message:
                forget_ended()
                return None
        else:
            asking, _ = listener.accept()
            with asking:
                _, descriptors, *_ = socket.recv_fds(asking, 1, FILES)
        if os.fork() == 0:
            requests.close()
            listener.close()
            return begin(*descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        forget_ended()


def begin(request: int, reply: int, *files: int) -> Request:
    """The request, in a second fork. The first one sends its pid, waits for it, sends its exit status
    and ends. It kills it where the other side closes the socket before.
    """
    with open(request) as file:
        wanted = Request(**json.load(file))
    if not is_read_alike(wanted.env, os.environ):
        os._exit(0)
    pid = os.fork()
    if pid:
        os.write(reply, pid.to_bytes(NUMBER, signed=True))
        threading.Thread(target=end_with, args=(reply, pid), daemon=True).start()
        _, status = os.waitpid(pid, 0)
        os.write(reply, os.waitstatus_to_exitcode(status).to_bytes(NUMBER, signed=True))
        os._exit(0)
    os.setsid()
    os.close(reply)
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return wanted


def end_with(reply: int, pid: int) -> None:
    """Kill a process, and what it has started, when nobody waits for its status any more."""
    os.read(reply, 1)
    kill_group(pid)


def kill_group(pid: int) -> None:
    """Kill a fork and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


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
    with (
        socket.socket(fileno=int(sys.argv[1])) as requests,
        socket.socket(fileno=int(sys.argv[2])) as listener,
    ):
        request = serve(requests, listener)
    if request is not None:
        request.run()


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        main()
    else:
        stand_for(sys.argv[1], sys.argv[2], sys.argv[3:])

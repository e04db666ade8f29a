"""Commands in forked processes, which are killed, or whose disk is full, at a point of their run.

A fork of a process that has imported everything starts in a hundredth of the time of a new Python.
It must be made before JAX starts its threads.
"""

import dataclasses
import errno
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.robustness import doors

Then = Callable[[str, str], None]  # takes the names of the operation and of the file
# Operations on files that Python says before it does them.
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended: its status (negative: the signal), what it said, its seconds, and how
    many operations on watched files it did.
    """

    status: int
    said: str
    seconds: float
    operations: int


def run(
    words: Sequence[str],
    scratch: Path,
    cache: Path,
    watched: Sequence[Path] = (),
    kill_after: float | None = None,
    at_operation: int | None = None,
    then: Then | None = None,
) -> Ended:
    """Run `adapt WORDS` in a fork of this process.

    It is killed ``kill_after`` seconds, or does ``then`` (by default dies by SIGKILL) right before
    its ``at_operation``-th operation, from 1, on a file under one of the ``watched`` folders, and
    before every later one.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    said = scratch / "said"
    counted = scratch / "operations"
    said.write_text("")
    counted.write_text("0")
    began = time.monotonic()
    process = os.fork()
    if not process:
        child(words, cache, watched, said, counted, at_operation, then or die)
    if kill_after is not None:
        wait_until(process, began + kill_after)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - began
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, said.read_text(), seconds, int(counted.read_text() or 0))


def in_fork(function: Callable[[], Any]) -> Any:
    """What a function returns in a fork of this process, which JAX's threads would otherwise be
    in."""
    return Background(function).result()


class Background:
    """A function that runs in a fork of this process."""

    def __init__(self, function: Callable[[], Any]):
        fork = multiprocessing.get_context("fork")
        self.here, there = fork.Pipe(duplex=False)
        self.process = fork.Process(target=lambda: there.send(function()))
        self.process.start()
        there.close()

    def is_running(self) -> bool:
        return self.process.is_alive()

    def result(self) -> Any:
        """What the function returned. Raises EOFError where it did not."""
        try:
            return self.here.recv()
        finally:
            self.process.join()


def in_background(function: Callable[[], Any]) -> Background:
    """Begin a function in a fork of this process."""
    return Background(function)


def wait_until(process: int, moment: float) -> None:
    """Wait until then, or until the process has ended; it stays to be waited for."""
    while time.monotonic() < moment:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        if os.waitid(os.P_PID, process, flags):
            return
        time.sleep(0.002)


def die(event: str, path: str) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def child(
    words: Sequence[str],
    cache: Path,
    watched: Sequence[Path],
    said: Path,
    counted: Path,
    at_operation: int | None,
    then: Then,
) -> None:
    """What the fork does, and its end: status 0, 2 for a refusal, 1 for a traceback."""
    status = 1
    try:
        os.environ["ADAPT_CACHE"] = str(cache)
        count = watch(watched, at_operation, then)
        with said.with_suffix(".err").open("w") as errors:
            os.dup2(errors.fileno(), 2)
        answer = doors.command(list(words))
        count.stopped = True
        said.write_text(answer.said)
        counted.write_text(str(count.operations))
        status = {doors.TAKEN: 0, doors.REFUSED: 2}.get(answer.kind, 1)
    finally:
        os._exit(status)


class Count:
    """How many operations there were."""

    operations = 0
    stopped = False


def watch(watched: Sequence[Path], at_operation: int | None, then: Then) -> Count:
    """Count operations on files from now on, and do ``then`` from a certain one on."""
    count = Count()
    folders = tuple(str(folder) for folder in watched)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if count.stopped or not folders or not changes_files(event, arguments):
            return
        if not str(arguments[0]).startswith(folders):
            return
        count.operations += 1
        if at_operation is not None and count.operations >= at_operation:
            then(event, str(arguments[0]))

    sys.addaudithook(hook)
    return count


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an event of Python's is about changing a file or a folder."""
    if event != "open":
        return event in EVENTS
    _, mode, flags = arguments
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR))


def no_space(event: str, path: str) -> None:
    """What a full disk does to an operation: there is no room for anything new."""
    if event in ("open", "os.mkdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def fill_disk(file: Path, left: int) -> None:
    """Write zeros to a file until its disk has ``left`` bytes; once."""
    if file.exists():
        return
    free = os.statvfs(file.parent).f_bavail * os.statvfs(file.parent).f_frsize
    with file.open("wb") as filler:
        filler.write(bytes(max(free - left, 0)))


def points(count: int, number: int) -> list[float]:
    """``count`` numbers between 0 and 1, one in each of as many equal parts."""
    chance = random.Random(number)
    return [(index + chance.random()) / count for index in range(count)]

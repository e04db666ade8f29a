"""The sides of a measurement as processes: how one is driven and watched."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.errors import TrainingError
from experiments.benchmark import peers

ON_CPU = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # where a GPU is at hand too


class Worker:
    """One side in a process of its own, driven by JSON lines; what it prints goes to ``log``."""

    def __init__(
        self, name: str, command: list[str], log: Path, environment: Mapping[str, str] = ON_CPU
    ):
        self.name = name
        self.log = log
        self.program = command[0]
        self.start_up = 0.0  # seconds until the side had answered that it is there
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **environment},
            )

    def ask(self, job: str, **request: Any) -> dict[str, Any]:
        """The answer to one job, its ``wall`` seconds, and ``foreign``: the share of all cores that
        others used meanwhile.

        Raises :class:`TrainingError` with the worker's own words when the job failed.
        """
        started = time.perf_counter()
        before = foreign_seconds(self.process.pid)
        line = self.send(json.dumps({"job": job} | request))
        answer = self.read_answer(line)
        if "error" in answer:
            raise TrainingError(f"{self.name} failed: {answer['error']} (see {self.log})")
        foreign = foreign_seconds(self.process.pid) - before
        wall = time.perf_counter() - started
        cores = os.cpu_count() or 1
        answer["foreign"] = max(foreign, 0.0) / (wall * cores)
        answer["wall"] = wall
        return answer

    def send(self, request: str) -> str:
        """The line that the side answers; nothing where its process has ended."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            return self.process.stdout.readline()
        return ""

    def read_answer(self, line: str) -> dict[str, Any]:
        """An answer as the side meant it, or ``{"error": ...}`` for what is none."""
        if not line:
            return {"error": f"the process ended{self.last_words()}"}
        try:
            return json.loads(line)
        except ValueError:
            said = repr(line.strip()[:80])
            question = f"is {self.program} a Python with what it needs?"
            return {"error": f"it answered {said}: {question}"}

    def last_words(self) -> str:
        """The last line of its log, which goes with the folder where nothing else came of a run."""
        text = self.log.read_text("utf-8", "replace").strip()
        return f": {text.splitlines()[-1].strip()[:200]}" if text else ""

    def close(self) -> None:
        """End the process: it leaves when its input ends, and is killed if it does not."""
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def command(name: str, python: str) -> list[str]:
    """How a side is started. A peer's interpreter sees nothing of this project but peers.py."""
    if name == "adapt":
        return [sys.executable, "-m", "experiments.benchmark.adapt_side"]
    return [python, "-P", peers.__file__]


def foreign_seconds(pid: int) -> float:
    """The seconds that all cores together have worked for others than this process; 0 where there
    is no /proc.
    """
    try:
        all_cores = Path("/proc/stat").read_text().partition("\n")[0]
        process = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return 0.0
    ticks = [int(word) for word in all_cores.split()[1:9]]
    idle = ticks[3] + ticks[4]  # and waiting for a disk
    user, system = process.split()[11:13]
    own = int(user) + int(system)
    return (sum(ticks) - idle - own) / os.sysconf("SC_CLK_TCK")


def peak_memory(command: list[str], log: Path) -> float:
    """Run a command to its end: the peak of its anonymous memory (RssAnon) in MB, looked at every
    20 ms.

    Memory-mapped files count in RSS but not here, as the kernel can drop them. 0 where there is no
    /proc. Raises :class:`TrainingError` with the end of its log when the command failed.
    """
    peak = 0
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise TrainingError(f"{' '.join(command[1:4])} failed: {log.read_text().strip()[-300:]}")
    return peak / 1000


def anonymous_memory(pid: int) -> int:
    """The anonymous memory of a process in kB; 0 where that can't be read."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0

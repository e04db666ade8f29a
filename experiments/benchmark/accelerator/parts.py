"""The parts of the measurement: each a process that is ended at its limit.

They are done in their order, the most telling ones first, for as long as there is time for all.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmark.accelerator.finetuning import last_line
from experiments.benchmark.accelerator.needs import ROOT
from experiments.benchmark.accelerator.settings import PROGRAM, Settings

LEAST = 3.0  # seconds: a part that would have less is not started


@dataclasses.dataclass(frozen=True)
class Part:
    """One part: its name, and the seconds that it may take at the most."""

    name: str
    limit: float
    is_timed: bool = True  # alone on the machine; checks are done side by side
    of_peers: bool = False
    on_cpu: bool = False  # though there is an accelerator


# On one H100, where importing torch takes 25 s for the first time, and compiling a step of MiniLM
# some 15. The last part has what the others leave.
PARTS = (
    Part("inputs", 20, on_cpu=True),
    Part("rate", 25),
    Part("kernel", 60, is_timed=False),
    Part("attention", 60, is_timed=False),
    Part("training", 70, is_timed=False),
    Part("finetune", 95),
    Part("finetune-peers", 65, of_peers=True),
    Part("extract", 40),
    Part("extract-peers", 40, of_peers=True),
    Part("steps", 300),
)
NAMES = tuple(part.name for part in PARTS)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of the process of a part."""

    status: str  # measured, error, or over its limit
    seconds: float
    note: str = ""


def side_by_side(todo: Sequence[Part]) -> list[list[Part]]:
    """The parts in their order; those that follow one another and time nothing, together."""
    groups: list[list[Part]] = []
    for part in todo:
        joins = bool(groups) and not part.is_timed and not groups[-1][0].is_timed
        if joins:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def run(part: Part, told: Settings, log: Path, limit: float) -> Outcome:
    """Do a part, for at most ``limit`` seconds; then it is killed, with all that it has started."""
    command = [sys.executable, "-m", f"{PROGRAM}.part", part.name, str(told.file)]
    environment = os.environ | {"ADAPT_CACHE": str(told.cache), "PYTHONPATH": python_path()}
    if part.on_cpu:
        environment["JAX_PLATFORMS"] = "cpu"
    if not part.is_timed:  # each takes what it needs of the memory that they share
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Outcome("over its limit", time.perf_counter() - started, f"of {limit:.0f} s")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.perf_counter() - started
    if code:
        return Outcome("error", seconds, last_line(log))
    return Outcome("measured", seconds)


def python_path() -> str:
    """PYTHONPATH of a part and of all that it starts: this clone first, from whatever folder."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)


def lacking(python: str) -> str:
    """What the Python of the peers lacks, as a sentence; "" if it has everything."""
    program = (
        "import importlib.util as u\n"
        "names = 'torch', 'transformers', 'sentence_transformers'\n"
        "print(*[name for name in names if u.find_spec(name) is None], sep=', ')"
    )
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python} can't be used: {error}"
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        return f"{python} can't be used: {said[-1]}"
    absent = done.stdout.strip()
    return f"{python} lacks {absent}" if absent else ""


def import_ahead(python: str, log: Path) -> subprocess.Popen[bytes]:
    """Start importing the peers' libraries, so that their files are in memory when they are needed:
    cold, it takes 25 seconds. Nothing is computed.
    """
    program = "import torch, transformers, sentence_transformers"
    with log.open("w") as file:
        return subprocess.Popen(
            [python, "-c", program], stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()

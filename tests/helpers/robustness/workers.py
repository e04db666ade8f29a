"""Processes that run damaged inputs one after the other, each with a limit of time.

A worker that hangs is killed, one that dies (a parser of C++ or Rust may) is missed, and another
takes its place: a damaged input costs a second where a process of its own would cost ten.
"""

import dataclasses
import faulthandler
import multiprocessing
import os
import pickle
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.robustness import doors, kinds
from tests.helpers.robustness.mutations import mutate

SECONDS = 60.0  # that an input may take; the first one of a worker compiles and gets more
FIRST_SECONDS = 300.0
MEMORY = 24 << 30  # bytes of addresses that a worker may use
SAME, CHANGED, REFUSED = "same", "changed", "refused"
TRACEBACK, SILENT, HANG, CRASH = "traceback", "silent", "hang", "crash"
FAULTS = (TRACEBACK, SILENT, HANG, CRASH)


@dataclasses.dataclass(frozen=True)
class Job:
    """One damaged input, which ``kind``, ``number`` and ``seed`` determine."""

    kind: int  # of kinds.KINDS
    number: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an input: one of the words above; which file, what was done to it, and why."""

    kind: str
    number: int
    outcome: str
    file: str = ""
    damage: str = ""
    why: str = ""
    seconds: float = 0.0


def run_all(jobs: Sequence[Job], base: Path, folder: Path, workers: int) -> Iterator[Outcome]:
    """The outcomes of all jobs, in the order in which they are done."""
    waiting = list(reversed(jobs))
    slots: dict[Any, Worker] = {}
    count = 0
    looked = time.monotonic()
    while waiting or slots:
        while waiting and len(slots) < workers:
            worker = Worker(base, folder / f"worker{count}")
            count += 1
            worker.start(waiting.pop())
            slots[worker.pipe] = worker
        ready = connection.wait(list(slots), timeout=1.0)
        # A whole program that is stopped for a while, as a laptop that sleeps, is no hang.
        elapsed = min(time.monotonic() - looked, 2.0)
        looked = time.monotonic()
        for pipe, worker in list(slots.items()):
            if pipe in ready:
                outcome = worker.answer()
            elif worker.is_late(elapsed):
                outcome = worker.lost(HANG, f"no answer in {worker.limit:.0f} s")
            else:
                continue
            yield outcome
            if worker.process.is_alive() and outcome.outcome not in (HANG, CRASH) and waiting:
                worker.start(waiting.pop())
                continue
            worker.end()
            del slots[pipe]


class Worker:
    """A process that answers one job after the other."""

    def __init__(self, base: Path, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        fork = multiprocessing.get_context("fork")
        self.pipe, other = fork.Pipe()
        self.process = fork.Process(target=serve, args=(other, base, folder), daemon=True)
        self.process.start()
        other.close()
        self.job = Job(0, 0, 0)
        self.answered = 0
        self.waited = 0.0

    @property
    def limit(self) -> float:
        return SECONDS if self.answered else FIRST_SECONDS

    def start(self, job: Job) -> None:
        self.job = job
        self.waited = 0.0
        self.pipe.send(job)

    def is_late(self, elapsed: float) -> bool:
        """Whether it has had its time, after another ``elapsed`` seconds."""
        self.waited += elapsed
        return self.waited > self.limit

    def answer(self) -> Outcome:
        """The outcome that the process sent; a crash where it died."""
        try:
            outcome = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(10)
            return self.lost(CRASH, f"the process ended with {self.process.exitcode}")
        self.answered += 1
        return outcome

    def lost(self, outcome: str, why: str) -> Outcome:
        """The outcome of a job whose process said nothing; its last notes are in its folder."""
        about = {"file": "", "damage": ""}
        note = self.folder / "job"
        if note.exists():
            about = dict(zip(about, note.read_text().splitlines(), strict=False))
        stack = self.folder / "stack"
        if outcome == HANG:
            os.kill(self.process.pid or 0, 10)  # faulthandler writes where it is
            time.sleep(1)
        words = stack.read_text()[-3000:] if stack.exists() else ""
        name = kinds.KINDS[self.job.kind].name
        return Outcome(name, self.job.number, outcome, **about, why=f"{why}\n{words}")

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def serve(pipe: Any, base: Path, folder: Path) -> None:
    """Answer jobs until there are no more."""
    import signal

    stack = (folder / "stack").open("w")
    faulthandler.enable(stack)
    faulthandler.register(signal.SIGUSR1, stack)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with (folder / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["ADAPT_CACHE"] = str(folder / "cache")
    readings: dict[tuple[int, str], Any] = {}
    while True:
        job = pipe.recv()
        try:
            outcome = run(job, base, folder, readings)
        except BaseException:
            name = kinds.KINDS[job.kind].name
            why = f"of the harness itself\n{traceback.format_exc()}"
            outcome = Outcome(name, job.number, TRACEBACK, why=why)
        pipe.send(outcome)


def run(job: Job, base: Path, folder: Path, readings: dict[tuple[int, str], Any]) -> Outcome:
    """Damage a file, read it, give it to a command, and judge."""
    began = time.monotonic()
    kind = kinds.KINDS[job.kind](base)
    random = np.random.default_rng([job.seed, job.kind, job.number])
    name = str(random.choice(kind.folders))
    scratch = folder / "input"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(base / name, scratch)
    found = kind.files(scratch)
    place = int(random.integers(len(found))) if kind.is_damaged else job.number % len(found)
    file = found[place]
    intact = base / name / file.relative_to(scratch)
    if (job.kind, name) not in readings and kind.is_damaged:
        readings[job.kind, name] = intact_reading(kind, base / name, folder, intact)
    damage = "as it is"
    if kind.is_damaged:
        damage, content = mutate(file.read_bytes(), random)
        file.write_bytes(content)
    about = {"file": f"{name}/{file.relative_to(scratch)}", "damage": damage}
    (folder / "job").write_text("\n".join(about.values()))
    outcome, why = judge(kind, scratch, file, intact, readings.get((job.kind, name)))
    words = kind.commands(scratch, file, folder / "out")
    if words and outcome not in FAULTS:
        chosen = words[int(random.integers(len(words)))]
        by_command, why_command = judge_command(chosen, folder / "out")
        if by_command in FAULTS or outcome != REFUSED:
            outcome = by_command if by_command in (*FAULTS, REFUSED) else outcome
            why = why_command or why
    if outcome in FAULTS:
        keep = folder.parent / f"fault-{job.kind}-{job.number}"
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(scratch, keep)
    return Outcome(
        kind.name, job.number, outcome, **about, why=why, seconds=time.monotonic() - began
    )


def intact_reading(kind: kinds.Kind, source: Path, folder: Path, file: Path) -> Any:
    """What the library reads of the intact input, in a copy: some readings go on with a run."""
    copy = folder / "intact"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    answer = doors.call(lambda: kind.read(copy, copy / file.relative_to(source)))
    assert answer.kind == doors.TAKEN, answer.said
    return answer.value


def judge(
    kind: kinds.Kind, folder: Path, file: Path, intact: Path, expected: Any
) -> tuple[str, str]:
    """(the outcome of reading, why)."""
    answer = doors.call(lambda: kind.read(folder, file))
    if answer.kind == doors.REFUSED:
        return REFUSED, answer.said
    if answer.kind == doors.TRACEBACK:
        return TRACEBACK, answer.said
    if not doors.is_finite(answer.value):
        return SILENT, "values that are not finite"
    if expected is not None and doors.is_same(answer.value, expected):
        return SAME, ""
    if kind.explains(folder, file, intact, answer.value):
        return CHANGED, ""
    before = expected or {}
    differing = [
        name for name, value in answer.value.items() if not same_entry(before, name, value)
    ]
    return SILENT, f"what was read is not what stands in the file: {', '.join(differing)}"


def same_entry(expected: dict[str, Any], name: str, value: Any) -> bool:
    """Whether an entry of a reading is as it was."""
    return name in expected and doors.is_same(value, expected[name])


def judge_command(words: list[str], out: Path) -> tuple[str, str]:
    """(the outcome of a command, why): what it wrote is whole and finite, or there is nothing."""
    shutil.rmtree(out, ignore_errors=True)
    answer = doors.command(words)
    shown = f"adapt {' '.join(words)}\n"
    if answer.kind == doors.TRACEBACK:
        return TRACEBACK, answer.said
    if answer.kind == doors.REFUSED:
        left = [path for path in out.rglob("*") if path.is_file()] if out.exists() else []
        if left:
            return SILENT, f"{shown}refused ({answer.said}), and left {left}"
        return REFUSED, answer.said
    features = out / "features.npy"
    if features.exists() and not np.isfinite(np.load(features)).all():
        return SILENT, f"{shown}features that are not finite"
    return SAME, ""


def forked(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in a process of its own: this one stays without JAX's threads."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with {process.exitcode}")


def save(outcomes: Sequence[Outcome], path: Path) -> None:
    """Keep outcomes for another run of the report."""
    path.write_bytes(pickle.dumps(list(outcomes)))

"""A disk that fills at any point of a run, and two processes on one folder."""

import contextlib
import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.robustness.kills import Trial, contents, difference, scenarios
from tests.helpers.robustness.processes import (
    Ended,
    fill_disk,
    in_background,
    no_space,
    points,
)

SIZE = 160 << 20  # bytes of the disk: a run wants 64 MB of it to stay free
LEFT = 4096  # bytes that are left of it when it is full


@dataclasses.dataclass(frozen=True)
class Full:
    """What became of a full disk: how it was made, when it was full, what was said, the fault."""

    scenario: str
    number: int
    how: str
    at: str
    said: str
    state: str
    fault: str = ""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """Make ``folder`` a small disk of its own, and yield ""; or why that can't be."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        why = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        why = str(error)
    try:
        yield why
    finally:
        if not why:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def fill_all(base: Path, folder: Path, count: int, seed: int) -> Iterator[Full]:
    """``count`` full disks, shared out among the commands: of a small one that is filled where it
    can be mounted, and of system calls that fail as on one.
    """
    with small_disk(folder / "disk") as why:
        if why:
            print(f"no disk of its own can be mounted ({why}): calls fail instead", flush=True)
        ways = ["calls"] if why else ["calls", "disk"]
        chosen = [one for one in scenarios(base) if not one.replaces]
        for number, scenario in enumerate(chosen):
            share = count // len(chosen) + (number < count % len(chosen))
            for place, way in enumerate(ways):
                of_way = points(share, seed + number)[place :: len(ways)] if share else []
                home = folder / ("disk" if way == "disk" else "calls") / str(number)
                trial = Trial(scenario, home, folder / "notes")
                if of_way:
                    trial.prepare(times=1)
                for index, point in enumerate(of_way):
                    yield fill(trial, index, way, point)
                shutil.rmtree(home, ignore_errors=True)


def fill(trial: Trial, number: int, way: str, point: float) -> Full:
    """Run until the disk is full, look, make room, run again, compare."""
    trial.clear()
    filler = trial.folder / "filler"
    operation = 1 + int(point * trial.whole.operations)
    at = f"before operation {operation} of {trial.whole.operations} on its files"

    def then(event: str, path: str) -> None:
        if way == "disk":
            fill_disk(filler, LEFT)
        else:
            no_space(event, path)

    ended = trial.run(at_operation=operation, then=then)
    filler.unlink(missing_ok=True)
    fault = ""
    if ended.status not in (0, 2):
        fault = f"status {ended.status}: {ended.said}"
    elif ended.status == 0 and way == "calls" and not trial.scenario.watches_cache:
        fault = difference(trial.expected, contents(trial.out))
    state, unfit = trial.look()
    fault = fault or unfit or trial.go_on()
    said = ended.said.splitlines()[0] if ended.status == 2 else "done"
    return Full(trial.scenario.name, number, way, at, said, state, fault)


def two_at_once(base: Path, folder: Path) -> Iterator[Full]:
    """Two processes on one folder: the second one is refused in a line, the first one goes on."""
    trial = Trial(scenarios(base)[0], folder, folder / "notes")
    other = Trial(scenarios(base)[0], folder, folder / "other notes")
    trial.prepare(times=1)
    for number, flags in enumerate(([], ["--overwrite"], ["--resume"])):
        trial.clear()
        first = in_background(trial.run)
        while not (trial.out / "checkpoints/index.json").exists():
            assert first.is_running()
        second = other.run(*flags)
        ended: Ended = first.result()
        fault = ""
        if second.status != 2 or len(second.said.splitlines()) != 1:
            fault = f"the second one: status {second.status}: {second.said}"
        elif ended.status:
            fault = f"the first one: status {ended.status}: {ended.said}"
        fault = fault or difference(trial.expected, contents(trial.out))
        at = f"the second one {' '.join(flags) or 'as the first one'}"
        yield Full(
            "two processes on one folder", number, "lock", at, second.said, "finished", fault
        )

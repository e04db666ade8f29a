"""`kill -9` at any point of a run, and then the same command again: bit for bit what it would have
been.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt import tree
from adapt.training import checkpoint
from tests.helpers.robustness import by_hand
from tests.helpers.robustness.processes import Ended, in_fork, points, run

Words = list[str]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that is killed. ``flags`` make it, without `out`; ``watches`` says whether its
    folder or the cache is what may be left half-written.
    """

    name: str
    flags: Sequence[str]
    resumes: bool = False
    replaces: bool = False  # a finished run, with `overwrite`
    watches_cache: bool = False


@dataclasses.dataclass(frozen=True)
class Kill:
    """What became of one kill: where it came, what was there then, and whether all ended well."""

    scenario: str
    number: int
    at: str
    state: str
    fault: str = ""


def scenarios(base: Path) -> list[Scenario]:
    """The commands of the table."""
    data = ["--train", str(base / "tables/train.csv"), "--test", str(base / "tables/train.tsv")]
    train = ["--checkpoint", str(base / "bert"), *data, "--batch-size", "8", "--epochs", "2"]
    saves = ["--save-every", "1", "--patience", "0"]
    frozen = ["--strategy", "frozen", "--cache", "on"]
    text = ["--checkpoint", str(base / "mlm"), "--text", str(base / "lines.txt")]
    steps = ["--steps", "8", "--batch-size", "4", "--validate-every", "2"]
    extract = ["--checkpoint", str(base / "bert"), "--data", str(base / "tables/train.csv")]
    full = ["finetune", *train, *saves, "--strategy", "full", "--cache", "off"]
    return [
        Scenario("finetune, resumed", full, resumes=True),
        Scenario(
            "finetune --strategy frozen, resumed", ["finetune", *train, *saves, *frozen], True
        ),
        Scenario("pretrain, resumed", ["pretrain", *text, *steps], resumes=True),
        Scenario("finetune --overwrite, begun again", full, replaces=True),
        Scenario("extract, begun again", ["extract", *extract]),
        Scenario(
            "filling the cache, begun again", ["finetune", *train, *frozen], watches_cache=True
        ),
    ]


def kill_all(base: Path, folder: Path, count: int, seed: int) -> Iterator[Kill]:
    """``count`` kills, shared out among the scenarios; every second one right before an operation
    on a file.
    """
    chosen = scenarios(base)
    for number, scenario in enumerate(chosen):
        share = count // len(chosen) + (number < count % len(chosen))
        if share:
            yield from kill_scenario(scenario, folder / f"kills{number}", share, seed + number)


def kill_scenario(scenario: Scenario, folder: Path, count: int, seed: int) -> Iterator[Kill]:
    """The kills of one command."""
    trial = Trial(scenario, folder, folder / "notes")
    trial.prepare()
    for number, point in enumerate(points(count, seed)):
        yield trial.kill(number, point, by_time=number % 2 == 0)


class Trial:
    """One command, its undisturbed run, and its folders."""

    def __init__(self, scenario: Scenario, folder: Path, notes: Path):
        self.scenario = scenario
        self.folder = folder
        self.out = folder / "out"
        self.cache = folder / "cache"
        self.notes = notes  # of the processes: on another disk, where that of the folder is full

    def prepare(self, times: int = 2) -> None:
        """The undisturbed run, twice where its seconds count: the first one compiles."""
        for _ in range(times):
            self.clear()
            self.whole = self.run()
            assert self.whole.status == 0, self.whole.said
            self.expected = contents(self.out)
            self.expected_cache = cache_contents(self.cache)

    def clear(self) -> None:
        """As before the command; the programs stay compiled."""
        shutil.rmtree(self.out, ignore_errors=True)
        for path in self.cache.glob("*") if self.scenario.watches_cache else ():
            shutil.rmtree(path)

    def run(self, *flags: str, **when: Any) -> Ended:
        """The command, with more flags."""
        watched = [self.cache if self.scenario.watches_cache else self.out]
        # What overwrite moves away lies beside.
        watched += [self.out.with_name(f".{self.out.name}")]
        words = [*self.scenario.flags, *flags, "--out", str(self.out)]
        return run(words, self.notes, self.cache, watched, **when)

    def kill(self, number: int, point: float, by_time: bool) -> Kill:
        """Run, kill, look, run again, compare."""
        self.clear()
        flags = []
        if self.scenario.replaces:
            before = self.run()
            assert before.status == 0, before.said
            flags = ["--overwrite"]
        if by_time:
            seconds = point * self.whole.seconds
            at = f"after {seconds:.2f} s"
            ended = self.run(*flags, kill_after=seconds)
        else:
            operation = 1 + int(point * self.whole.operations)
            at = f"before operation {operation} of {self.whole.operations} on its files"
            ended = self.run(*flags, at_operation=operation)
        if ended.status not in (0, -9):
            return self.judged(number, at, "", f"it ended by itself: {ended.said}")
        state, fault = self.look()
        return self.judged(number, at, state, fault or self.go_on())

    def go_on(self) -> str:
        """Run again, as a person would; what differs then from the undisturbed run, or ""."""
        again = self.run(*self.flags_again())
        if again.status:
            return f"again: status {again.status}: {again.said}"
        fault = difference(self.expected, contents(self.out))
        return fault or difference(self.expected_cache, cache_contents(self.cache))

    def judged(self, number: int, at: str, state: str, fault: str) -> Kill:
        return Kill(self.scenario.name, number, at, state, fault)

    def flags_again(self) -> list[str]:
        """How a person goes on."""
        if self.scenario.resumes and (self.out / "checkpoints/index.json").exists():
            return ["--resume"]
        return ["--overwrite"]

    def look(self) -> tuple[str, str]:
        """(what was there after the kill, the fault of what reads as whole and is not)."""
        if not self.out.exists():
            return "no folder", ""
        index = self.out / "checkpoints/index.json"
        there = contents(self.out)
        state = "a folder without results"
        if index.exists():
            step = json.loads(index.read_text())["last"]["folder"].removeprefix("step_").lstrip("0")
            state = f"saved at step {step or 0}"
        if "result.json" in there or "features.npy" in there:
            name = "result.json" if "result.json" in there else "features.npy"
            state = "finished" if name == "result.json" else "features without result.json"
            if there[name] != self.expected[name]:
                return state, f"{name} is there and is not that of the undisturbed run"
        return state, ""


def contents(out: Path) -> dict[str, Any]:
    """What is to be the same of a run or of features: {file: content without what the clock
    decides}.
    """
    found: dict[str, Any] = {}
    for name in ("result.json", "metrics.jsonl", "features.npy"):
        path = out / name
        if not path.exists():
            continue
        if name == "features.npy":
            features = np.load(path)
            found[name] = (features.shape, features.tobytes())
        elif name == "result.json":
            found[name] = untimed(json.loads(path.read_text()))
        else:
            found[name] = [untimed(json.loads(line)) for line in complete_lines(path)]
    index = out / "checkpoints/index.json"
    if index.exists():
        for which, entry in json.loads(index.read_text()).items():
            found[which] = arrays(out / "checkpoints" / entry["folder"])
    return found


def complete_lines(path: Path) -> list[str]:
    """The lines that end."""
    return path.read_text().split("\n")[:-1]


TIMED = ("second", "time", "created")


def untimed(value: Any) -> Any:
    """A value of JSON without the entries that the clock decides, and without paths."""
    if isinstance(value, dict):
        kept = {}
        for name, inner in value.items():
            if not any(word in name for word in TIMED) and name not in ("command", "git_commit"):
                kept[name] = untimed(inner)
        return kept
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def arrays(folder: Path) -> str:
    """The digest of every leaf of a checkpoint: parameters, optimizer state, step, key."""
    return str(in_fork(lambda: tree.digest(checkpoint.read_tree(folder, None))))


def cache_contents(cache: Path) -> dict[str, str]:
    """The arrays of the cache: {folder: digest}."""
    found = {}
    for path in sorted((cache / "prefix").glob("*/values.bin")):
        found[path.parent.name] = by_hand.digest(path)
    return found


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """Which entries differ; "" where none does."""
    names = sorted(expected.keys() | found.keys())
    wrong = [name for name in names if expected.get(name) != found.get(name)]
    return f"{', '.join(wrong)} not as in the undisturbed run" if wrong else ""

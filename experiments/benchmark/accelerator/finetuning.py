"""Whole runs of `adapt finetune`, from the command to the result, and what they cost with
transformers + torch.

A run of adapt is one: the command in a process of its own. A peer's run is computed: its start-up
and its first steps as they were, then its steps and its evaluations at their measured rates. For
all of them it would take too long.
"""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapt.errors import TrainingError
from adapt.options import HELD_OUT
from experiments.benchmark.accelerator import inputs
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import LEARNING, Settings, Sizes
from experiments.benchmark.workers import Worker

TORCH_SIDE = "experiments.benchmark.accelerator.torch_side"
NOTHING_COMPILED = "first run"
COMPILED = "again"


def measure(told: Settings) -> Iterator[Row]:
    """A row a run: full fine-tuning twice, for what compiling costs, then the others."""
    sizes = told.sizes
    first_batch = sizes.batch_sizes[0]
    yield adapt_run(told, sizes.strategies[0], first_batch, NOTHING_COMPILED)
    yield adapt_run(told, sizes.strategies[0], first_batch, COMPILED)
    for batch_size, strategy in itertools.product(sizes.batch_sizes, sizes.strategies):
        if (strategy, batch_size) != (sizes.strategies[0], first_batch):
            yield adapt_run(told, strategy, batch_size, NOTHING_COMPILED)


def adapt_run(told: Settings, strategy: str, batch_size: int, which: str) -> Row:
    """One run of the command."""
    out = told.scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    flags = {
        "checkpoint": told.checkpoint,
        "train": told.train,
        "test": told.test,
        "strategy": strategy,
        "batch-size": batch_size,
        "epochs": told.sizes.epochs,
        "patience": 0,
        "dtype": "bfloat16",
        "out": out,
    }
    row = {"side": "adapt", "strategy": strategy, "batch_size": batch_size, "which": which}
    name = f"finetune_{strategy}_{batch_size}_{which}".replace(" ", "_").replace(":", "")
    return row | run_command(flags, "finetune", told.logs / f"{name}.log", out)


def run_command(flags: dict[str, Any], command: str, log: Path, out: Path) -> Row:
    """A command of adapt to its end: its ``wall`` seconds, and what its result.json says."""
    words = [sys.executable, "-m", "adapt", command]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    started = time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run(words, stdout=file, stderr=file, check=False).returncode
    wall = time.perf_counter() - started
    if code:
        return {"status": "error", "note": last_line(log), "wall": wall}
    result = json.loads((out / "result.json").read_text("utf-8"))
    figures = {"status": "measured", "wall": wall, "seconds": result["seconds"]}
    figures["examples_per_second"] = result["examples_per_second"]
    return figures | {"accuracy": result.get("accuracy")}


def last_line(log: Path) -> str:
    """The last line of a log: what a program that failed said last."""
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it said nothing"


# Peers


def torch_worker(told: Settings, name: str) -> Worker:
    """A process of the peers' Python."""
    assert told.peers is not None  # a part of the peers is not started without
    command = [told.peers, "-m", TORCH_SIDE]
    return Worker(name, command, told.logs / f"{name}.log", {})


def measure_peers(told: Settings) -> Iterator[Row]:
    """A row a run of transformers + torch, as it is and with torch.compile."""
    sizes = told.sizes
    settings = {
        "checkpoint": str(told.checkpoint),
        "train": str(told.train),
        "test": str(told.test),
        "cores": os.cpu_count(),
        "seed": 0,
        "learning": LEARNING,
    }
    worker = torch_worker(told, "torch_finetune")
    with contextlib.closing(worker):
        started = worker.ask("start", side="finetuning", **settings)
        versions = started["versions"]
        common = {"versions": versions, "platform": versions["device"]}
        common["start_up"] = started["wall"]
        for is_compiled, batch_size, strategy in peer_kinds(sizes):
            row = {"side": "torch.compile" if is_compiled else "torch"}
            row |= {"strategy": strategy, "batch_size": batch_size}
            try:
                answer = worker.ask(
                    "train",
                    strategy=strategy,
                    batch_size=batch_size,
                    is_compiled=is_compiled,
                    seconds=sizes.peer_seconds,
                )
            except TrainingError as error:
                yield row | {"status": "error", "note": str(error)}
                continue
            row |= common | answer | {"status": "measured"}
            yield row | {"wall": computed_run(told, started["wall"], answer)}


def peer_kinds(sizes: Sizes) -> list[tuple[bool, int, str]]:
    """(with torch.compile?, batch size, strategy): the runs of the peer. Compiled ones are of the
    first strategy.
    """
    kinds: list[tuple[bool, int, str]] = []
    for batch_size, strategy in itertools.product(sizes.batch_sizes, sizes.strategies):
        kinds.append((False, batch_size, strategy))
    if sizes.compiles_torch:
        kinds += [(True, batch_size, sizes.strategies[0]) for batch_size in sizes.batch_sizes]
    return kinds


def computed_run(told: Settings, start_up: float, answer: dict[str, float]) -> float:
    """The seconds of a peer's whole run, with the same validations and test as adapt's."""
    num_train = len(inputs.read_examples(told.train))
    num_test = len(inputs.read_examples(told.test))
    epochs = told.sizes.epochs
    trained = (1 - HELD_OUT) * num_train * epochs - answer["first_examples"]
    evaluated = HELD_OUT * num_train * epochs + num_test
    training = answer["first_seconds"] + max(trained, 0) / answer["examples_per_second"]
    return start_up + training + evaluated / answer["evaluated_per_second"]

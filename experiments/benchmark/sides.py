"""What the sides of a measurement are given: the same data, the same settings, each in a process of
its own.
"""

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapt.cli import console
from adapt.data import bundled, tables
from adapt.errors import StrategyError, TrainingError
from adapt.models import EncoderConfig
from adapt.pretrained import hub
from adapt.run_folder import write_json
from adapt.tasks import TASKS
from experiments.benchmark.options import BackendOptions, SourceOptions, SpeedOptions, interpreter
from experiments.benchmark.workers import Worker, command

LEARNING = {"rate": 5e-5, "decay": 0.01, "clip": 1.0}
SIZES = [1024, 1536, 2048]  # of the matrices whose products give the machine's rate
REPEATS = 5
FORMULA = (
    "L (n (8 D^2 + 4 D M) + 4 D n^2) FLOP an example of n tokens forward, three times that for a "
    "training step"
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is measured: its title, the name of what each side does it with, digits of a speed."""

    title: str
    sides: dict[str, str]
    digits: int


JOBS = {
    "train": Job(
        "full fine-tuning, examples/s",
        {"adapt": "adapt", "torch": "transformers + torch", "keras": "keras-hub on JAX"},
        digits=1,
    ),
    "extract": Job(
        "extraction, sentences/s",
        {
            "adapt": "adapt",
            "torch": "sentence-transformers",
            "onnx": "ONNX Runtime",
            "onnx_int8": "ONNX Runtime, int8",
            "openvino": "OpenVINO",
            "openvino_float32": "OpenVINO, float32",
        },
        digits=0,
    ),
    "rate": Job("float32 matrix products, GFLOP/s", {"adapt": "JAX", "torch": "torch"}, digits=0),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The checkpoint, all rows of the data, and those to train on."""

    pretrained: hub.Pretrained
    table: tables.Table
    train_table: tables.Table


def read(config: SourceOptions) -> Source:
    """Read what the sides work on. Raises :class:`StrategyError` for a checkpoint that not every
    side can load.
    """
    pretrained = hub.load(config.checkpoint)
    if pretrained.tokenizer is None or pretrained.config.family != "bert":
        raise StrategyError(
            f"{config.checkpoint} is not a BERT encoder with a tokenizer, which all sides can load"
        )
    table = tables.read(config.data)
    tables.check_texts(table, config.text_column)
    train_table = table
    if config.data in bundled.SETS:
        train_table = tables.read(config.data, "train")
    return Source(pretrained, table, train_table)


@dataclasses.dataclass(frozen=True)
class Task:
    """The texts of all rows, and for a job the lengths in tokens [N] of what it works on."""

    texts: list[str]
    lengths: dict[str, np.ndarray]


def write_task(config: SpeedOptions, source: Source) -> Task:
    """Write task.json, the data as every side gets them."""
    classification = TASKS["classification"]
    train_table = source.train_table
    names = classification.label_names(train_table, config.label_column, [config.text_column])
    labels = classification.encode_labels(train_table, config.label_column, names)
    train_texts = list(train_table.rows[config.text_column])
    texts = list(source.table.rows[config.text_column])
    tokenizer = source.pretrained.tokenizer
    assert tokenizer is not None  # read() has refused that
    train_ids = tokenizer.encode(train_texts)[0]
    all_ids = tokenizer.encode(texts)[0]
    content = {
        "train": train_texts,
        "labels": np.asarray(labels).tolist(),
        "ids": [train_ids[row].tolist() for row in range(len(train_ids))],
        "texts": texts,
        "classes": len(names),
        "max_length": tokenizer.max_length,
        "epochs": config.rounds + 1,
    }
    write_json(config.out / "task.json", content)
    return Task(texts, {"train": train_ids.lengths, "extract": all_ids.lengths})


@dataclasses.dataclass
class Sides:
    """The processes that answer, the versions of their libraries, and why others are skipped."""

    workers: dict[str, Worker] = dataclasses.field(default_factory=dict)
    libraries: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Peer:
    """What a side is called, its interpreter, and the flag that names another one."""

    title: str
    interpreter: Path | None
    flag: str


def trainers(config: SpeedOptions) -> dict[str, Peer]:
    """The peers that train, by side."""
    titles = JOBS["train"].sides
    return {
        "torch": Peer(titles["torch"], config.peers, "--peers"),
        "keras": Peer(titles["keras"], config.keras, "--keras"),
    }


def encoders(config: BackendOptions) -> dict[str, Peer]:
    """The peers that only extract, by side."""
    peers = {}
    for side, name in JOBS["extract"].sides.items():
        backend = side.partition("_")[0]
        if backend in ("onnx", "openvino"):
            title = f"sentence-transformers on {name}"
            peers[side] = Peer(title, getattr(config, backend), f"--{backend}")
    return peers


def start(
    config: SpeedOptions, batch_size: int, peers: Mapping[str, Peer], stack: contextlib.ExitStack
) -> Sides:
    """Start adapt and its peers. One that does not answer is skipped, with a note; the ``stack``
    ends the others.
    """
    settings = {
        "checkpoint": str(hub.resolve(config.checkpoint)),
        "task": str(config.out / "task.json"),
        "batch_size": batch_size,
        "cores": config.cores,
        "seed": config.seed,
        "learning": LEARNING,
    }
    sides = Sides()

    def start_side(name: str, python: str) -> None:
        worker = Worker(name, command(name, python), config.out / f"{name}.log")
        stack.callback(worker.close)
        answer = worker.ask("start", side=name, **settings)
        worker.start_up = answer["wall"]
        sides.libraries[name] = answer["versions"]
        sides.workers[name] = worker

    start_side("adapt", sys.executable)
    for name, peer in peers.items():
        python = interpreter(peer.interpreter)
        try:
            start_side(name, python)
        except (TrainingError, OSError) as error:
            reason = f"{error}; looked for with {python}"
            sides.skipped[name] = reason
            console.warn(f"skipped {peer.title}: {reason}, name another with {peer.flag}")
    return sides


def forward_flops(config: EncoderConfig, lengths: np.ndarray) -> float:
    """FLOPs of all matrix products for examples of these lengths [N] in tokens, by FORMULA.

    Padding is not work and is not counted.
    """
    tokens = float(lengths.sum())
    pairs = float((lengths.astype(np.float64) ** 2).sum())
    width = config.width
    per_token = 8 * width**2 + 2 * config.mlp_kernels * width * config.mlp_width
    return config.layers * (tokens * per_token + 4 * width * pairs)


def machine(cores: int) -> dict[str, Any]:
    """What the figures depend on: processor, cores, system, and the time."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    return {
        "cpu": processor(),
        "cores": min(cores, usable),
        "system": platform.platform(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def processor() -> str:
    """The name of the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()

"""What the host delivers alone: everything of extraction and of training but the device's work.

An accelerator computes faster than one core of its host packs, so a run is as fast as the slower of
both. Here the device is replaced by nothing: a forward pass gives zeros at once, a step gives its
state. What is left is tokenizing, packing, putting results in their rows, and the loop, decided as
for an H100. The measure is the tokenizer's own rate on the same cores: no encoder can be fed with
texts faster.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adapt.cli import console
from adapt.data import packing
from adapt.data.examples import Examples, from_texts
from adapt.data.shapes import shape_rule
from adapt.devices import CPU, Device, pretend
from adapt.features import fill, text_batches
from adapt.pretrained.hub import Pretrained, tokenizer_of
from adapt.run_folder import versions, write_json
from adapt.training import feeding, loop
from experiments.benchmark import sides, table_files
from experiments.benchmark.options import SpeedOptions

H100 = Device("gpu", "NVIDIA H100 80GB HBM3", (9, 0), 60 << 30)
CHUNK = 4096  # texts that are tokenized together
BATCH_SIZES = (32, 256)
EXTRACTION_SHARE = 0.85  # of the tokenizer's rate, that extraction is to reach
TRAINING_TIMES = 20  # so many times that rate, training from token ids
COLUMNS = ("host alone", "examples/s", "of the tokenizer's rate", "target")


def main(config: SpeedOptions) -> dict[str, Any]:
    source = sides.read(config)
    texts = list(source.table.rows[config.text_column])
    pretrained = source.pretrained
    config_of = pretrained.config
    training = from_texts(pretrained, chunks(texts), np.arange(len(texts)) % 2)
    measured: dict[str, list[float]] = {}
    with console.progress("round", config.rounds + 1) as bar:
        for number in range(config.rounds + 1):
            for name, rate in rates(pretrained, texts, training, config.seed).items():
                if number > 0:  # the first one warms up
                    measured.setdefault(name, []).append(rate())
                else:
                    rate()
            bar.update(number + 1)
    result = {
        "rates": measured,
        "median": {name: float(np.median(of_rounds)) for name, of_rounds in measured.items()},
        "texts": len(texts),
        "tokens": float(training.file_sequences.lengths.mean()),
        "tokens_a_batch": shape_rule(config_of, H100).tokens,
        "machine": sides.machine(len(os.sched_getaffinity(0))),
        "libraries": versions(),
    }
    write_json(config.out / "host.json", result)
    show(config, result)
    return result


def rates(
    pretrained: Pretrained, texts: list[str], training: Examples, seed: int
) -> Mapping[str, Callable[[], float]]:
    """What measures each rate, in examples a second."""
    found = {
        "tokenizer": lambda: tokenizer_rate(pretrained, texts),
        "extraction": lambda: extraction_rate(pretrained, texts, H100),
        "extraction as on a CPU": lambda: extraction_rate(pretrained, texts, CPU),
    }
    for size in BATCH_SIZES:
        found[f"training in batches of {size}"] = lambda size=size: training_rate(
            pretrained, training, size, seed
        )
    return found


def chunks(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), CHUNK):
        yield texts[start : start + CHUNK]


def tokenizer_rate(pretrained: Pretrained, texts: list[str]) -> float:
    """Texts a second of the tokenizers library alone: its objects are dropped as they come."""
    backend = tokenizer_of(pretrained).backend
    started = time.perf_counter()
    for chunk in chunks(texts):
        backend.encode_batch_fast(chunk)
    return len(texts) / (time.perf_counter() - started)


def extraction_rate(pretrained: Pretrained, texts: list[str], device: Device) -> float:
    """Texts a second of ``extract`` with a device that takes no time."""
    width = pretrained.config.width
    zeros = np.zeros((1, width), np.float32)

    def forward(params: Any, batch: Mapping[str, Any]) -> Any:
        return np.broadcast_to(zeros, (len(batch["first"]), width))

    features = np.zeros((len(texts), width), np.float32)
    with pretend(device):
        started = time.perf_counter()
        fill(features, forward, {}, text_batches(pretrained, chunks(texts), few=True))
        return len(texts) / (time.perf_counter() - started)


@dataclasses.dataclass
class NoStep:
    """A step that computes nothing."""

    state: Any

    def __call__(self, frozen: Any, state: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        one = np.float32(1)
        return state, {"loss": one, "grad_norm": one, "weight": one}

    def take_several(
        self, frozen: Any, state: Any, batches: list[packing.Arrays], most: int
    ) -> tuple[Any, Any]:
        packing.stack(batches)
        ones = np.ones(most, np.float32)
        return state, {"loss": ones, "grad_norm": ones, "weight": ones}


@dataclasses.dataclass
class NoState:
    """What a loop reads of a state."""

    step: Any = dataclasses.field(default_factory=lambda: jnp.int32(0))
    halted: Any = dataclasses.field(default_factory=lambda: jnp.bool_(False))


def training_rate(pretrained: Pretrained, training: Examples, size: int, seed: int) -> float:
    """Examples a second of the loop of an epoch with steps that take no time."""
    with pretend(H100):
        rule = shape_rule(pretrained.config)
        source: Any = training.file_sequences
        source = dataclasses.replace(source, rule=rule)
        training = dataclasses.replace(training, file_sequences=source)
        shapes = training.batch_shapes(size, seed, epochs=1)
        pace = loop.Pace(16, is_late=True)
        state: Any = NoState()
        started = time.perf_counter()
        batches = feeding.ahead(training.batches(shapes, seed, 0))
        for _ in loop.run_steps(NoStep(state), {}, state, batches, 20, pace=pace):
            pass
        return len(training) / (time.perf_counter() - started)


def show(config: SpeedOptions, result: Mapping[str, Any]) -> None:
    """Print the table, and write it for the pages where that is asked for."""
    rows = table_rows(result["median"])
    console.table("device replaced by nothing", COLUMNS, rows)
    if config.tables is None:
        return
    command = table_files.command_line("experiments.benchmark", config)
    what = (
        f"{result['texts']:,} texts of {result['tokens']:.1f} tokens, medians of {config.rounds} "
        f"rounds; batches of {result['tokens_a_batch']:,} tokens, as on an H100, unless it says "
        "otherwise"
    )
    where = table_files.machine_text(result["machine"])
    text = table_files.versions_text([result["libraries"]])
    source = table_files.source_line(command, what, where, text)
    table_files.write_table(
        config.tables, "host", table_files.table_text(source, COLUMNS, rows, right=3)
    )


def table_rows(median: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A row a rate: what it is of the tokenizer's, and what it should be."""
    rows = []
    for name, rate in median.items():
        target = ""
        if name == "extraction":
            target = f"{EXTRACTION_SHARE:.2f}"
        elif name.startswith("training"):
            target = f"{EXTRACTION_SHARE * TRAINING_TIMES:.0f}"
        share = rate / median["tokenizer"]
        rows.append((name, f"{rate:,.0f}", f"{share:.2f}", target))
    return rows

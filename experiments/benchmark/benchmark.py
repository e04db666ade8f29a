"""How fast is it, side by side with what users can pick instead, on the same data in the same
minutes?

    python -m experiments.benchmark    # a peer that is not there is skipped
    python -m experiments.benchmark --peers torch/bin/python \\
        --keras keras/bin/python --onnx onnx/bin/python \\
        --openvino openvino/bin/python
    python -m experiments.benchmark --whole --tables docs/tables
    python -m experiments.benchmark --host --tables docs/tables

Full fine-tuning (the steps: compilation excluded, dropout on) and extraction (tokenization
included), in turn with transformers + torch and sentence-transformers, with its ONNX Runtime
(float32 and int8) and OpenVINO backends (as they come, and in float32), and with keras-hub on JAX.
Each side is a process of its own that stays warm, and one works at a time. Also: what share of the
machine's matrix products each reaches, and the anonymous memory of extraction with N and 4 N
sentences. Expect ratios that hold from run to run, and absolute figures that do not: quote the
ratio. Some 15 minutes on 2 cores; leave the machine alone meanwhile (a note says if it was not).

With --host: what this machine's cores deliver to a device that takes no time, for extraction and
training, by the rate of the tokenizer alone; see experiments/benchmark/host.py.
"""

import contextlib
import csv
import dataclasses
import itertools
import random
import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from adapt.cli import console
from adapt.cli.flags import first_nondefault_flag
from adapt.cli.run_folder import open_run
from adapt.data import packing
from adapt.errors import StrategyError
from adapt.models import EncoderConfig
from adapt.run_folder import check_out, write_json
from experiments.benchmark import host, sides, speed_report
from experiments.benchmark.options import (
    BackendOptions,
    HostOptions,
    PeerOptions,
    SpeedOptions,
)
from experiments.benchmark.sides import JOBS
from experiments.benchmark.workers import Worker, peak_memory

COMPARED = 256  # texts whose vectors are compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractionOptions:
    """What is extracted."""

    title: ClassVar[str] = "extraction"

    # in each round: a fixed random choice
    sentences: int = 2048
    # all of the data, in every round
    whole: bool = False
    # N of the measurement of memory; 0: none
    memory: int = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How many examples a step has."""

    title: ClassVar[str] = "rounds"

    # examples a step
    batch_size: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(HostOptions, BatchOptions, ExtractionOptions, BackendOptions, SpeedOptions):
    """The flags of the command."""


# What does not go with --host, which has no peers and takes no steps.
NOT_OF_HOST = ["steps", "cores"]
for group in (ExtractionOptions, BackendOptions, BatchOptions, PeerOptions):
    NOT_OF_HOST += [field.name for field in dataclasses.fields(group)]


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    check_flags(config)
    if config.host:
        with open_run(config.out, config):
            return host.main(config)
    source = sides.read(config)
    with open_run(config.out, config):
        task = sides.write_task(config, source)
        with contextlib.ExitStack() as stack:
            peers = sides.trainers(config) | sides.encoders(config)
            started = sides.start(config, config.batch_size, peers, stack)
            encoder = source.pretrained.config
            rounds = measure(config, started.workers, encoder, task.lengths)
            cosines = agreement(config, started.workers, len(task.texts))
        sizes = [n for n in (config.memory, 4 * config.memory) if n]
        result = {
            "summary": summary(rounds),
            "cosines": cosines,
            "memory_mb": {n: extract_memory(config, task.texts, n) for n in sizes},
            "skipped": started.skipped,
            "machine": sides.machine(config.cores),
            "libraries": started.libraries,
            "flops": sides.FORMULA,
            "rounds": rounds,
        }
        write_json(config.out / "benchmark.json", result)
        speed_report.show(result)
        plot = speed_report.plot(config, result)
        console.say(f"rounds    {config.out / 'benchmark.json'}\nplot      {plot}")
        num_texts = len(task.texts)
        num_sentences = num_texts if config.whole else min(config.sentences, num_texts)
        speed_report.write_tables(config, config.batch_size, num_sentences, result)
    return result


def check_flags(config: Config) -> None:
    """Raise :class:`StrategyError` for flags that do not go together, or that are too small."""
    if config.host and (flag := first_nondefault_flag(config, NOT_OF_HOST)):
        raise StrategyError(f"{flag} does not go with --host: leave one of them out")
    for name in ("rounds", "steps", "batch_size", "sentences", "cores"):
        value = getattr(config, name)
        if value < 1:
            raise StrategyError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if config.seed < 0:
        raise StrategyError(f"--seed {config.seed} must be at least 0")
    if config.steps < 2:
        raise StrategyError(
            f"--steps {config.steps} must be at least 2, since the first one compiles"
        )


def measure(
    config: Config,
    workers: Mapping[str, Worker],
    encoder: EncoderConfig,
    lengths: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Entries of all rounds, the sides in turn. Round 0 compiles and warms up: it is left out."""
    count = len(lengths["extract"])
    extracted = count if config.whole else min(config.sentences, count)
    chosen = random.Random(config.seed).sample(range(count), extracted)
    extract_flops = sides.forward_flops(encoder, lengths["extract"][chosen]) / len(chosen)
    rounds = []
    with console.progress("round", config.rounds + 1) as bar:
        for number in range(config.rounds + 1):
            order = packing.order(len(lengths["train"]), config.seed, number)
            order = order[: config.steps * config.batch_size]
            train_flops = 3 * sides.forward_flops(encoder, lengths["train"][order]) / len(order)
            requests = {
                "train": {"order": order.tolist(), "epoch": number},
                "extract": {"index": chosen},
                "rate": {"sizes": sides.SIZES, "repeats": sides.REPEATS},
            }
            flops = {"train": train_flops, "extract": extract_flops}
            for job, request in requests.items():
                for side, worker in workers.items():
                    if side not in JOBS[job].sides:
                        continue
                    entry = {"round": number, "job": job, "side": side}
                    entry |= worker.ask(job, **request)
                    entry |= speed_of(entry, flops.get(job))
                    if number > 0:
                        rounds.append(entry)
            bar.update(number + 1)
    return rounds


def agreement(
    config: Config, workers: Mapping[str, Worker], num_texts: int
) -> dict[str, dict[str, float]]:
    """How alike the vectors of every peer and of adapt are: the ``mean`` and the ``least`` cosine
    of some texts' two vectors.
    """
    index = list(range(min(COMPARED, num_texts)))
    vectors = {}
    for side, worker in workers.items():
        if side in JOBS["extract"].sides:
            path = config.out / f"{side}.features"
            worker.ask("extract", index=index, features=str(path))
            of_side = np.fromfile(path, np.float32).reshape(len(index), -1)
            vectors[side] = of_side / np.linalg.norm(of_side, axis=1, keepdims=True)
            path.unlink()
    ours = vectors.pop("adapt")
    found = {}
    for side, theirs in vectors.items():
        cosines = (ours * theirs).sum(1)
        found[side] = {"mean": float(cosines.mean()), "least": float(cosines.min())}
    return found


def speed_of(entry: Mapping[str, Any], flops: float | None) -> dict[str, float]:
    """The speed of a side in a round, and with the FLOPs of an example its GFLOP/s."""
    if flops is None:  # the machine's rate: the fastest of the sizes
        return {"speed": max(float(np.median(rates)) for rates in entry["rates"].values())}
    speed = entry["examples"] / max(entry["seconds"], 1e-9)
    return {"speed": speed, "gflops": speed * flops / 1e9}


def extract_memory(config: Config, texts: list[str], count: int) -> float:
    """Peak RssAnon in MB of ``adapt extract`` as a user runs it, on the first ``count`` texts,
    which are repeated as needed.
    """
    path = config.out / f"memory-{count}.csv"
    out = config.out / f"memory-{count}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        for text in itertools.islice(itertools.cycle(texts), count):
            writer.writerow([text])
    command = [sys.executable, "-m", "adapt", "extract", "--checkpoint", config.checkpoint]
    command += ["--data", str(path), "--out", str(out), "--text-column", "text"]
    peak = peak_memory(command, config.out / f"memory-{count}.log")
    shutil.rmtree(out)
    path.unlink()
    return peak


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a job and side: the median of its speed, the least and the most, and the share of the
    machine's matrix products; for a peer also the ratio of adapt's speed to its own.
    """
    entries: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for entry in rounds:
        entries.setdefault((entry["job"], entry["side"]), {})[entry["round"]] = entry
    rate = median_of(entries["rate", "adapt"].values(), "speed")
    rows = []
    for job in JOBS:
        for side, name in JOBS[job].sides.items():
            if (job, side) not in entries:
                continue
            by_round = entries[job, side]
            speeds = [entry["speed"] for entry in by_round.values()]
            row = {"job": job, "side": side, "name": name, "median": float(np.median(speeds))}
            row |= {"least": min(speeds), "most": max(speeds)}
            if side != "adapt":
                row |= ratios(entries[job, "adapt"], by_round)
            if job != "rate":
                row["share"] = median_of(by_round.values(), "gflops") / rate
            rows.append(row)
    return rows


def median_of(entries: Iterable[Mapping[str, Any]], name: str) -> float:
    """The median of a figure over the rounds."""
    return float(np.median([entry[name] for entry in entries]))


def ratios(
    ours: Mapping[int, Mapping[str, Any]], theirs: Mapping[int, Mapping[str, Any]]
) -> dict[str, float]:
    """adapt's speed over a peer's, round by round: the median, the least and the most."""
    found = [ours[number]["speed"] / entry["speed"] for number, entry in theirs.items()]
    median = float(np.median(found))
    return {"ratio": median, "ratio_least": min(found), "ratio_most": max(found)}

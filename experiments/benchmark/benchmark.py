"""How fast is it, side by side with what users can pick instead, on the same data in the same
minutes?

    python -m experiments.benchmark                                  # a peer that is not installed is skipped, and said so
    python -m experiments.benchmark --peers torch-venv/bin/python --keras keras-venv/bin/python
    python -m experiments.benchmark --device --peers torch-venv/bin/python       # on a GPU or TPU: see below

Full fine-tuning (the steps: compilation excluded, dropout on) and extraction (tokenization
included), in turn with transformers + torch and sentence-transformers, and with keras-hub on JAX.
Each side is a process of its own that stays warm, and one works at a time. Also: what share of the
machine's matrix products each reaches, and the anonymous memory of extraction with N and 4 N
sentences. Expect ratios that hold from run to run, and absolute figures that do not: quote the
ratio. Some 15 minutes on 2 cores; leave the machine alone meanwhile (a note says if it was not).

With --device: BERT-base, BERT-large, ViT-L/16 and GPT-2-XL by full, top:25% and frozen on the
accelerator that is there, in bfloat16, in turn with transformers + torch: examples/s, model FLOPs
by the measured rate of matrix products, peak memory.
"""

import contextlib
import csv
import dataclasses
import itertools
import os
import platform
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapt.cli import console, inputs, plots
from adapt.cli.flags import first_nondefault_flag
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, open_run, write_json
from adapt.data import bundled, packing, tables
from adapt.errors import StrategyError, TrainingError
from adapt.models import EncoderConfig
from adapt.pretrained import hub
from adapt.tasks import TASKS
from experiments.benchmark import device
from experiments.benchmark.aot.shapes import MODELS, STRATEGIES
from experiments.benchmark.workers import Worker, command, peak_memory

JOBS = {
    "train": (
        "full fine-tuning, examples/s",
        {"adapt": "adapt", "torch": "transformers + torch", "keras": "keras-hub on JAX"},
    ),
    "extract": ("extraction, sentences/s", {"adapt": "adapt", "torch": "sentence-transformers"}),
    "rate": ("float32 matrix products, GFLOP/s", {"adapt": "JAX", "torch": "torch"}),
}
OF_DEVICE = (
    "models",
    "strategies",
    "tokens",
    "remat",
    "torch_compile",
)  # flags that go with --device
OF_SPEED = (
    "checkpoint",
    "data",
    "text_column",
    "label_column",
    "keras",
    "sentences",
    "whole",
    "memory",
    "cores",
)  # and without
LEARNING = {"rate": 5e-5, "decay": 0.01, "clip": 1.0}
SIZES = [1024, 1536, 2048]  # of the matrices whose products give the machine's rate
REPEATS = 5
DISTURBED = 0.05  # share of the cores that others used in a round, above which a note says so
FORMULA = (
    "L (n (8 D^2 + 4 D M) + 4 D n^2) FLOP an example of n tokens forward, three times that for a "
    "training step"
)


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = "minilm"  # a BERT folder in the Hugging Face layout, or a bundled name
    data: str = (
        "reviews"  # a file, or a bundled set: its train part to train on, all of it to extract
    )
    text_column: str = "text"
    label_column: str = "label"
    peers: Path = Path(
        sys.executable
    )  # the interpreter that has torch, transformers, sentence-transformers
    keras: Path = Path(sys.executable)  # the interpreter that has keras-hub and jax
    rounds: int = 5  # that count; one more before them warms up
    steps: int = 10  # of training, a round
    batch_size: int | None = None  # default: 32, with --device by the model
    sentences: int = 2048  # of extraction, a round: a fixed random choice
    whole: bool = False  # extract all of the data in every round
    memory: int = 4096  # N of the memory measurement; 0: none
    cores: int = 2
    seed: int = 0
    out: Path = Path("runs/benchmark")
    overwrite: bool = False
    device: bool = False  # steps on this machine's accelerator in place of all that: those of the flags below, in bfloat16
    models: tuple[str, ...] = MODELS
    strategies: tuple[str, ...] = STRATEGIES
    tokens: int | None = None  # an example; default: as many as the model has positions
    remat: Literal["none", "block", "dots"] = "none"
    torch_compile: bool = False  # the peer's encoder by torch.compile


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    if flag := first_nondefault_flag(config, OF_SPEED if config.device else OF_DEVICE):
        why = (
            "does not go with --device: leave one of them out"
            if config.device
            else "goes with --device: give that too"
        )
        raise StrategyError(f"{flag} {why}")
    for name in ("rounds", "steps", "batch_size", "sentences", "cores"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise StrategyError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if config.seed < 0:
        raise StrategyError(f"--seed {config.seed} must be at least 0")
    if config.steps < 2 and not config.device:
        raise StrategyError(
            f"--steps {config.steps} must be at least 2, since the first one compiles"
        )
    if config.device:
        device.cells(config)  # refuses what can't be
        with open_run(config.out, config):
            return device.main(config)
    config = dataclasses.replace(
        config, batch_size=32 if config.batch_size is None else config.batch_size
    )
    pretrained, table, train_table = read(config)
    with open_run(config.out, config):
        texts, lengths = write_task(config, pretrained, table, train_table)
        with contextlib.ExitStack() as stack:
            workers, libraries, skipped = start(config, stack)
            rounds = measure(config, workers, pretrained.config, lengths)
        memory = {
            n: extract_memory(config, texts, n) for n in (config.memory, 4 * config.memory) if n
        }
        result = {
            "summary": summary(rounds),
            "memory_mb": memory,
            "skipped": skipped,
            "machine": machine(config),
            "libraries": libraries,
            "flops": FORMULA,
            "rounds": rounds,
        }
        write_json(config.out / "benchmark.json", result)
        show(config, result, plot(config, result))
    return result


def read(config: Any) -> tuple[hub.Pretrained, tables.Table, tables.Table]:
    """(checkpoint, all rows, the rows to train on)."""
    pretrained = hub.load(config.checkpoint)
    if pretrained.tokenizer is None or pretrained.config.family != "bert":
        raise StrategyError(
            f"{config.checkpoint} is not a BERT encoder with a tokenizer, which all sides can load"
        )
    table = inputs.read(config.data)
    tables.check_texts(table, config.text_column)
    return (
        pretrained,
        table,
        inputs.read(config.data, split="train") if config.data in bundled.SETS else table,
    )


def write_task(
    config: Any, pretrained: hub.Pretrained, table: tables.Table, train_table: tables.Table
) -> tuple[list[str], dict[str, np.ndarray]]:
    """task.json, the data as every side gets it -> (all texts, the lengths in tokens of what a job
    works on).
    """
    classification = TASKS["classification"]
    names = classification.label_names(train_table, config.label_column, [config.text_column])
    labels = classification.encode_labels(train_table, config.label_column, names)
    tokenizer = pretrained.tokenizer
    assert tokenizer is not None  # read
    train_texts, texts = (list(part.rows[config.text_column]) for part in (train_table, table))
    ids = tokenizer.encode(train_texts)[0]
    all_ids = tokenizer.encode(texts)[0]
    task = {
        "train": train_texts,
        "labels": np.asarray(labels).tolist(),
        "ids": [ids[row].tolist() for row in range(len(ids))],
        "texts": texts,
        "classes": len(names),
        "max_length": tokenizer.max_length,
        "epochs": config.rounds + 1,
    }
    write_json(config.out / "task.json", task)
    return texts, {"train": ids.lengths, "extract": all_ids.lengths}


def start(
    config: Any, stack: contextlib.ExitStack
) -> tuple[dict[str, Worker], dict[str, dict[str, str]], dict[str, str]]:
    """(the sides that answer, the versions of their libraries, why others are skipped)."""
    settings = {
        "checkpoint": str(hub.resolve(config.checkpoint)),
        "task": str(config.out / "task.json"),
        "batch_size": config.batch_size,
        "cores": config.cores,
        "seed": config.seed,
        "learning": LEARNING,
    }
    workers = {}
    libraries = {}
    skipped = {}
    for name, interpreter in {
        "adapt": sys.executable,
        "torch": config.peers,
        "keras": config.keras,
    }.items():
        try:
            worker = Worker(name, command(name, interpreter), config.out / f"{name}.log")
            stack.callback(worker.close)
            answer = worker.ask("start", side=name, **settings)
            libraries[name], worker.start_up = answer["versions"], answer["wall"]
            workers[name] = worker
        except (TrainingError, OSError) as fault:
            if name == "adapt":
                raise
            skipped[name] = f"{fault}; looked for with {interpreter}"
            flag = "--peers" if name == "torch" else "--keras"
            console.warn(
                f"skipped {JOBS['train'][1][name]}: {fault}; looked for with {interpreter}, name "
                f"another with {flag}"
            )
    return workers, libraries, skipped


def measure(
    config: Any, workers: dict[str, Worker], encoder: EncoderConfig, lengths: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """All rounds, the sides in turn. Round 0 compiles and warms up: it is not among what comes
    back.
    """
    count = len(lengths["extract"])
    rounds = []
    chosen = random.Random(config.seed).sample(
        range(count), count if config.whole else min(config.sentences, count)
    )
    with console.progress("round", config.rounds + 1) as bar:
        for number in range(config.rounds + 1):
            order = packing.order(len(lengths["train"]), config.seed, number)[
                : config.steps * config.batch_size
            ]
            asked = {
                "train": {"order": order.tolist(), "epoch": number},
                "extract": {"index": chosen},
                "rate": {"sizes": SIZES, "repeats": REPEATS},
            }
            work = {
                "train": 3 * forward_flops(encoder, lengths["train"][order]) / len(order),
                "extract": forward_flops(encoder, lengths["extract"][chosen]) / len(chosen),
            }
            for (job, request), (name, worker) in itertools.product(asked.items(), workers.items()):
                if name not in JOBS[job][1]:
                    continue
                entry = {"round": number, "job": job, "side": name} | worker.ask(job, **request)
                if job == "rate":
                    entry["speed"] = max(
                        float(np.median(rates)) for rates in entry["rates"].values()
                    )
                else:
                    entry["speed"] = entry["examples"] / max(entry["seconds"], 1e-9)
                    entry["gflops"] = entry["speed"] * work[job] / 1e9
                rounds += [entry] if number else []
            bar.update(number + 1)
    return rounds


def forward_flops(c: EncoderConfig, lengths: np.ndarray) -> float:
    """Of all matrix products for examples of these lengths, by FORMULA; padding is not work and is
    not counted.
    """
    tokens = float(lengths.sum())
    pairs = float((lengths.astype(np.float64) ** 2).sum())
    return c.layers * (tokens * (8 * c.width**2 + 4 * c.width * c.mlp_width) + 4 * c.width * pairs)


def extract_memory(config: Config, texts: list[str], count: int) -> float:
    """Peak RssAnon in MB of ``adapt.cli.extract`` as a user runs it, on ``count`` of the texts,
    repeated as needed.
    """
    path = config.out / f"memory-{count}.csv"
    out = config.out / f"memory-{count}"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["text"], *([text] for text in itertools.islice(itertools.cycle(texts), count))]
        )
    flags = {
        "--checkpoint": config.checkpoint,
        "--data": path,
        "--out": out,
        "--text-column": "text",
    }
    words = [
        sys.executable,
        "-m",
        "adapt",
        "extract",
        *(str(word) for flag in flags.items() for word in flag),
    ]
    peak = peak_memory(words, config.out / f"memory-{count}.log")
    shutil.rmtree(out)
    path.unlink()
    return peak


def summary(rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a job and side: median, least and most; adapt's speed over the side's, round by round,
    and its median.
    """
    speeds: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for entry in rounds:
        speeds.setdefault((entry["job"], entry["side"]), {})[entry["round"]] = entry
    rate = float(np.median([entry["speed"] for entry in speeds["rate", "adapt"].values()]))
    rows = []
    for job, (_, names) in JOBS.items():
        for side in (side for side in names if (job, side) in speeds):
            found = speeds[job, side]
            values = [entry["speed"] for entry in found.values()]
            row = {
                "job": job,
                "side": side,
                "name": names[side],
                "median": float(np.median(values)),
            }
            row |= {"least": min(values), "most": max(values)}
            if side != "adapt":
                ratios = [
                    speeds[job, "adapt"][number]["speed"] / entry["speed"]
                    for number, entry in found.items()
                ]
                row |= {
                    "ratio": float(np.median(ratios)),
                    "ratio_least": min(ratios),
                    "ratio_most": max(ratios),
                }
            if job != "rate":
                row["share"] = (
                    float(np.median([entry["gflops"] for entry in found.values()])) / rate
                )
            rows.append(row)
    return rows


def machine(config: Any) -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.partition(": ")[2] for line in lines if line.startswith("model name")), model
        )
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "cpu": model,
        "cores": min(config.cores, there or 1),
        "system": platform.platform(),
        "date": when,
    }


def show(config: Config, result: dict[str, Any], plot: Path) -> None:
    for job, (title, _) in JOBS.items():
        rows = []
        for row in (row for row in result["summary"] if row["job"] == job):
            ratio = (
                f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
                if "ratio" in row
                else ""
            )
            share = f"{row['share']:.0%}" if "share" in row else ""
            span = f"{row['least']:.1f}-{row['most']:.1f}"
            rows.append((row["name"], f"{row['median']:.1f}", span, ratio, share))
        columns = ("", "median", "min-max", "adapt / peer", "share")
        console.table(title, columns, rows)
    note = f"share: model FLOPs, padding not counted, of JAX's matrix products; by hand, {FORMULA}"
    console.say(note)
    for count, megabytes in result["memory_mb"].items():
        console.say(f"RssAnon of extraction with {count} sentences: {megabytes:.0f} MB")
    worst = max(result["rounds"], key=lambda entry: entry["foreign"])
    if worst["foreign"] > DISTURBED:
        console.warn(
            f"others used up to {worst['foreign']:.0%} of the cores (round {worst['round']}): "
            "measure on a quiet machine"
        )
    console.say(f"rounds    {config.out / 'benchmark.json'}\nplot      {plot}")


def plot(config: Config, result: dict[str, Any]) -> Path:
    """A bar a side with its rounds as points; ratios are written on the peers' bars."""
    jobs = [job for job in JOBS if job != "rate"]
    figure, axes = plots.figure(len(jobs), size=(7, 2.2 * len(jobs)))
    for axis, job in zip(axes[:, 0], jobs, strict=True):
        rows = [row for row in result["summary"] if row["job"] == job]
        names = [row["name"] for row in rows]
        colors = ["#4477aa" if row["side"] == "adapt" else "#bbbbbb" for row in rows]
        axis.barh(names, [row["median"] for row in rows], color=colors, height=0.6)
        for place, row in enumerate(rows):
            points = [
                e["speed"] for e in result["rounds"] if (e["job"], e["side"]) == (job, row["side"])
            ]
            axis.plot(points, [place] * len(points), ".", color="black", ms=4, alpha=0.6)
            times = f"  (adapt: {row['ratio']:.2f} times)" if "ratio" in row else ""
            axis.annotate(
                f"{row['median']:.0f}{times}",
                (max(points), place),
                (8, 0),
                textcoords="offset points",
                va="center",
            )
        axis.margins(x=0.35)
        axis.set_xlim(left=0)
        axis.invert_yaxis()
        axis.set_xlabel(
            f"{JOBS[job][0]} ({config.checkpoint} on {config.data}, {result['machine']['cores']} "
            "cores)"
        )
    return plots.save(figure, config.out / "benchmark.png")


if __name__ == "__main__":
    launch(Config, main)

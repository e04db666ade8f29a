"""One accelerator: train steps of well-known encoders in bfloat16, in turn with transformers +
torch.

Every measurement is a process that has the device to itself, so that its peak of memory is its own;
the sides alternate. Weights are random, examples of full length. Speeds exclude compilation and
include sending the batch.
"""

import contextlib
import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from adapt.cli import console
from adapt.errors import MeshError, StrategyError, TrainingError
from adapt.export.layout import write_config
from adapt.files import write_text
from adapt.run_folder import write_json
from experiments.benchmark.aot.compiling import (
    Case,
    model_flops,
    num_frozen_stages,
    resolve_strategy,
    tokens_per_example,
)
from experiments.benchmark.aot.shapes import SHAPES
from experiments.benchmark.options import DeviceOptions, interpreter
from experiments.benchmark.table_files import (
    command_line,
    ratio_text,
    source_line,
    table_text,
    versions_text,
    write_table,
)
from experiments.benchmark.workers import Worker, command

LEARNING = {"rate": 1e-4, "decay": 0.01, "clip": 1.0}
WARM = 2  # steps before those that count
NAMES = {"adapt": "adapt", "torch": "transformers + torch"}
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # or the peak would be what JAX set aside
# What JAX and torch say when the memory of a device does not suffice.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")


def make_cases(config: DeviceOptions) -> list[Case]:
    """Every model and strategy asked for. Raises :class:`StrategyError` and
    :class:`CheckpointError`.
    """
    cases = []
    for model, spec in itertools.product(config.models, config.strategies):
        strategy = resolve_strategy(model, spec)
        batch_size = config.batch_size
        if batch_size is None:
            batch_size = SHAPES[model].examples
        tokens = tokens_per_example(model, batch_size, config.tokens)
        case = Case(model, strategy, "", "", batch_size, tokens, config.remat, scan=False)
        if case not in cases:
            cases.append(case)
    if not cases:
        raise StrategyError("--models and --strategies: give at least one each")
    return cases


def main(config: DeviceOptions) -> dict[str, Any]:
    """All rounds of all cases; what is written as benchmark.json."""
    cases = make_cases(config)
    rounds = measure_all(config, cases)
    measured = [entry for entry in rounds if "speed" in entry]
    if not measured:
        raise MeshError(f"nothing could be measured: {rounds[0]['error'].partition(' (see ')[0]}")
    warn_of_cpu({kind_of_device(entry) for entry in measured})
    result = {
        "summary": summary(cases, rounds),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
    }
    write_json(config.out / "benchmark.json", result)
    page = device_table(config, result)
    write_text(config.out / "device.md", page)
    if config.tables is not None:
        write_table(config.tables, "device", page)
    console.say(page)
    return result


def measure_all(config: DeviceOptions, cases: Sequence[Case]) -> list[dict[str, Any]]:
    """An entry a case, round and side. What failed once is not tried again: it would fail again."""
    rounds = []
    failed = set()
    turns = list(itertools.product(cases, range(config.rounds), NAMES))
    with console.progress("measuring", len(turns)) as bar:
        for done, (case, number, side) in enumerate(turns, 1):
            if (case, side) not in failed:
                entry = measure(config, case, side, number)
                rounds.append(entry)
                what = f"{case.model}, {case.strategy}"
                if "speed" in entry:
                    console.say(f"{what}, {NAMES[side]}: {entry['speed']:.1f} examples/s")
                else:
                    failed.add((case, side))
                    console.warn(f"{what}: {entry['error']}")
            bar.update(done)
    return rounds


def measure(config: DeviceOptions, case: Case, side: str, number: int) -> dict[str, Any]:
    """The entry of one process of one side: its speed, the peak of memory and the rate of products;
    ``error`` where it failed, or ran out of memory.
    """
    file_name = f"{case.model}-{case.strategy}-{side}.log".replace(":", "")
    python = interpreter(config.peers)
    settings = settings_of(config, case, side)
    entry: dict[str, Any] = {"case": dataclasses.asdict(case), "side": side, "round": number}
    try:
        worker = Worker(NAMES[side], command(side, python), config.out / file_name, ENVIRONMENT)
        with contextlib.closing(worker):
            started = worker.ask("start", side="device", **settings)
            entry["libraries"] = started["versions"]
            worker.ask("train", steps=WARM)
            entry |= worker.ask("train", steps=config.steps)
            entry["peak_bytes"] = worker.ask("peak")["bytes"]
            entry["rate"] = worker.ask("rate", repeats=3)["flops"]
            entry["speed"] = entry["examples"] / entry["seconds"]
    except (TrainingError, OSError) as error:
        entry["error"] = str(error)
        if side == "torch" and "libraries" not in entry:
            entry["error"] += f"; looked for with {python}, name another with --peers"
    return entry


def settings_of(config: DeviceOptions, case: Case, side: str) -> dict[str, Any]:
    """What a side is started with."""
    settings: dict[str, Any] = {"cores": os.cpu_count(), "seed": config.seed}
    if side == "adapt":
        return settings | {"case": dataclasses.asdict(case)}
    shape = SHAPES[case.model]
    return settings | {
        "shape": write_config(shape.config),
        "pooling": shape.head.pooling,
        "classes": shape.head.classes,
        "batch_size": case.batch_size,
        "tokens": case.tokens,
        "num_frozen": num_frozen_stages(case),
        "learning": LEARNING,
        "compile": config.torch_compile,
    }


def kind_of_device(entry: Mapping[str, Any]) -> str:
    """Where it ran; the sides may name the same accelerator differently."""
    return "cpu" if entry["libraries"]["device"] == "cpu" else "accelerator"


def warn_of_cpu(kinds: set[str]) -> None:
    """Say so where a side did not see an accelerator."""
    if kinds == {"cpu"}:
        console.warn("no accelerator was seen: this is the CPU")
    elif "cpu" in kinds:
        console.warn(
            "a side ran on the CPU, and not beside one on an accelerator: install JAX, or torch, "
            "for that"
        )


def summary(cases: Sequence[Case], rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a case: of each side the medians of examples/s, the share of the rate of products, the
    peak; and their ratio.

    The rate is the fastest that any side measured there in the whole run; model FLOPs are counted
    by hand, padding and what is computed again left out. Sides on different devices have no ratio.
    """
    rates: dict[str, float] = {}
    for entry in rounds:
        if "speed" in entry:
            kind = kind_of_device(entry)
            rates[kind] = max(entry["rate"], rates.get(kind, 0.0))
    rows = []
    for case in cases:
        row: dict[str, Any] = {"case": dataclasses.asdict(case), "rates": rates}
        speeds = {}
        for side in NAMES:
            entries = [e for e in rounds if (e["case"], e["side"]) == (row["case"], side)]
            row[side] = summary_of_side(case, entries, rates)
            speeds[side] = [entry["speed"] for entry in entries if "speed" in entry]
        if all(speeds.values()) and len(rates) == 1:
            pairs = zip(speeds["adapt"], speeds["torch"], strict=False)
            ratios = [ours / theirs for ours, theirs in pairs]
            row["ratio"] = statistics.median(ratios)
            row["ratio_least"] = min(ratios)
            row["ratio_most"] = max(ratios)
        rows.append(row)
    return rows


def summary_of_side(
    case: Case, entries: Sequence[Mapping[str, Any]], rates: Mapping[str, float]
) -> dict[str, Any]:
    """A side's figures for one case; ``error`` where nothing was measured."""
    measured = [entry for entry in entries if "speed" in entry]
    if not measured:
        return {"error": entries[0]["error"]}
    speed = statistics.median(entry["speed"] for entry in measured)
    flops_per_example = model_flops(case, 1) / case.batch_size
    peaks = [entry["peak_bytes"] for entry in measured]
    return {
        "speed": speed,
        "utilisation": flops_per_example * speed / rates[kind_of_device(measured[0])],
        "peak_bytes": None if None in peaks else max(peaks),
    }


COLUMNS = (
    "model",
    "trains",
    "remat",
    "examples",
    "adapt: examples/s",
    "of the rate",
    "GiB",
    "torch: examples/s",
    "of the rate",
    "GiB",
    "adapt / torch",
)


def device_table(config: DeviceOptions, result: Mapping[str, Any]) -> str:
    """device.md: a row a case."""
    rows = []
    for row in result["summary"]:
        case = row["case"]
        size = f"{case['batch_size']} x {case['tokens']}"
        cells = [case["model"], case["strategy"], case["remat"], size]
        for side in NAMES:
            cells += cells_of_side(row[side])
        cells.append(ratio_text(row) if "ratio" in row else "")
        rows.append(cells)

    measured = [entry for entry in result["rounds"] if "speed" in entry]
    names = {kind_of_device(entry): entry["libraries"]["device"] for entry in measured}
    rates = result["summary"][0]["rates"]
    devices = [f"{name} ({rates[kind] / 1e12:.3g} TFLOP/s)" for kind, name in names.items()]
    versions = versions_text(entry["libraries"] for entry in measured)
    what = "bfloat16, examples of full length; the rate is that of matrix products"
    command = command_line("experiments.benchmark", config)
    source = source_line(command, what, f"{' and '.join(devices)}, {result['date']}", versions)
    return table_text(source, COLUMNS, rows, right=8)


def cells_of_side(side: Mapping[str, Any]) -> list[str]:
    """Three cells: examples/s, the share of the rate, the peak in GiB."""
    if "error" in side:
        out_of_memory = any(words in side["error"] for words in OUT_OF_MEMORY)
        return ["out of memory" if out_of_memory else "failed", "", ""]
    peak = ""
    if side["peak_bytes"] is not None:
        peak = f"{side['peak_bytes'] / 2**30:.1f}"
    return [f"{side['speed']:.1f}", f"{side['utilisation']:.0%}", peak]

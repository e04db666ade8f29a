"""How long is a training step of well-known encoders on the CPU, beside transformers + torch?

    python -m experiments.benchmark.shape_steps    # without torch: adapt alone
    python -m experiments.benchmark.shape_steps --peers torch/bin/python \\
        --tables docs/tables

The shapes are those of the published config.json, with random weights. Examples are of full length,
one a row, so packing brings nothing. Everything is float32; dropout where the model has it, AdamW,
clipping. torch computes attention by its scaled_dot_product_attention, as transformers does by
default. Each side is a process of its own, one works at a time, and compiling is left out. A step
that trains the top blocks is also measured with the states of the frozen blocks at hand, as
adapt's cache brings them. Some 15 minutes on 2 cores; leave the machine
alone meanwhile (the table says if it was not).
"""

import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from adapt.cli import console
from adapt.cli.launch import launch
from adapt.cli.run_folder import open_run
from adapt.errors import StrategyError, TrainingError
from adapt.run_folder import check_out, write_json
from experiments.benchmark import sides
from experiments.benchmark.accelerator.finetuning import TORCH_SIDE
from experiments.benchmark.accelerator.steps import ADAPT_SIDE, torch_settings
from experiments.benchmark.aot.compiling import (
    Case,
    num_frozen_stages,
    resolve_strategy,
    tokens_per_example,
)
from experiments.benchmark.benchmark import ratios
from experiments.benchmark.options import OutputOptions, RoundOptions, TorchOptions, interpreter
from experiments.benchmark.speed_report import DISTURBED
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    ratio_text,
    source_line,
    table_text,
    versions_text,
    write_table,
)
from experiments.benchmark.workers import Worker

PEER = "transformers + torch"
CACHED = "adapt, cached"
COLUMNS = ("a step of", "trains", "adapt, s", f"{PEER}, s", "ratio")
PRODUCTS = "float32 matrix products, GFLOP/s"

Entry = dict[str, Any]  # a side in a round: what it did, and its `speed` in steps or GFLOP/s


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """What is measured."""

    title: ClassVar[str] = "steps"

    # encoders by their names in aot/shapes.py
    models: tuple[str, ...] = ("roberta-base", "modernbert-base")
    # what trains: full, top:K
    strategies: tuple[str, ...] = ("full", "top:1")
    # examples a step
    batch_size: int = 8
    # of an example
    tokens: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ShapeOptions, RoundOptions, TorchOptions, OutputOptions):
    """The flags of the command."""

    steps: int = 3
    out: Path = Path("runs/shape_steps")


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, None, config.overwrite)
    cases = make_cases(config)
    with open_run(config.out, config), contextlib.ExitStack() as stack:
        workers = start_workers(config, stack)
        entries: list[Entry] = []
        libraries: dict[str, dict[str, str]] = {}
        with console.progress("case", len(cases)) as bar:
            for number, case in enumerate(cases, 1):
                libraries |= start_case(config, workers, case)
                entries += measure_steps(config, workers, case)
                bar.update(number)
        entries += measure_products(config, workers)
        result = {
            "summary": summary(entries),
            "machine": sides.machine(config.cores),
            "others": statistics.median(entry["foreign"] for entry in entries),
            "libraries": libraries,
            "rounds": entries,
        }
        write_json(config.out / "shape_steps.json", result)
    rows = table_rows(result["summary"])
    console.table("seconds a step", COLUMNS, rows)
    if config.tables is not None:
        text = table_text(source_of(config, result), COLUMNS, rows)
        write_table(config.tables, "shape_steps", text)
    return result


def make_cases(config: Config) -> list[Case]:
    """The steps that are measured. Raises :class:`CheckpointError` and :class:`StrategyError` for
    what can't be.
    """
    for name in ("rounds", "steps", "cores"):
        if getattr(config, name) < 1:
            raise StrategyError(f"--{name} {getattr(config, name)} must be at least 1")
    cases = []
    for model in config.models:
        for spec in config.strategies:
            strategy = resolve_strategy(model, spec)
            tokens = tokens_per_example(model, config.batch_size, config.tokens)
            case = Case(
                model,
                strategy,
                topology="",
                mesh="",
                batch_size=config.batch_size,
                tokens=tokens,
                remat="none",
                scan=False,
                compute_dtype="float32",
            )
            cases.append(case)
    return cases


def start_workers(config: Config, stack: contextlib.ExitStack) -> dict[str, Worker]:
    """The processes of both sides, which the ``stack`` ends."""
    commands = {
        "adapt": [sys.executable, "-m", ADAPT_SIDE],
        "torch": [interpreter(config.peers), "-m", TORCH_SIDE],
    }
    workers = {}
    for side, command in commands.items():
        try:
            worker = Worker(side, command, config.out / f"{side}.log")
        except OSError as error:
            skip(side, error)
            continue
        stack.callback(worker.close)
        workers[side] = worker
    return workers


def skip(side: str, error: Exception) -> None:
    console.warn(f"skipped {PEER if side == 'torch' else side}: {error}; name another with --peers")


def start_case(config: Config, workers: dict[str, Worker], case: Case) -> dict[str, dict[str, str]]:
    """Start a case on both sides; the versions of their libraries. Without torch its side is
    dropped from the workers.
    """
    common = {"side": "steps", "cores": config.cores, "seed": config.seed}
    started = workers["adapt"].ask("start", case=dataclasses.asdict(case), **common)
    versions = {"adapt": started["versions"]}
    if "torch" in workers:
        try:
            started = workers["torch"].ask("start", **torch_settings(case), **common)
            versions["torch"] = started["versions"]
        except TrainingError as error:
            skip("torch", error)
            del workers["torch"]
    return versions


def measure_steps(config: Config, workers: Mapping[str, Worker], case: Case) -> list[Entry]:
    """An entry a side and round, the sides in turn. Round 0 compiles and warms up: it is left
    out.
    """
    requests: dict[str, Entry] = {side: {} for side in workers}
    if num_frozen_stages(case):
        requests[CACHED] = {"has_states": True}
    entries = []
    for number in range(config.rounds + 1):
        for side, request in requests.items():
            worker = workers["adapt" if side == CACHED else side]
            entry = {"model": case.model, "strategy": case.strategy, "side": side, "round": number}
            entry |= worker.ask("train", steps=config.steps, **request)
            if number > 0:
                entries.append(entry | {"speed": config.steps / entry["seconds"]})
    return entries


def measure_products(config: Config, workers: Mapping[str, Worker]) -> list[Entry]:
    """The rate of matrix products, of the fastest size: an entry a side and round."""
    entries = []
    for number in range(config.rounds):
        for side, worker in workers.items():
            entry = {"model": PRODUCTS, "strategy": "", "side": side, "round": number}
            entry |= worker.ask("rate", sizes=sides.SIZES, repeats=sides.REPEATS)
            rates = entry["rates"].values()
            entries.append(entry | {"speed": max(statistics.median(of_size) for of_size in rates)})
    return entries


def summary(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """A row for each thing that adapt did: the median ``speed`` of adapt, and where torch is there
    that of torch and adapt's over torch's, round by round.
    """
    by_side: dict[tuple[str, str, str], dict[int, Entry]] = {}
    for entry in entries:
        key = (entry["model"], entry["strategy"], entry["side"])
        by_side.setdefault(key, {})[entry["round"]] = entry
    rows = []
    for (model, strategy, side), ours in by_side.items():
        if side == "torch":
            continue
        row = {"model": model, "strategy": strategy, "side": side, "adapt": median_speed(ours)}
        theirs = by_side.get((model, strategy, "torch"))
        if theirs is not None:
            row |= {"torch": median_speed(theirs), **ratios(ours, theirs)}
        rows.append(row)
    return rows


def median_speed(rounds: Mapping[int, Entry]) -> float:
    return statistics.median(entry["speed"] for entry in rounds.values())


def table_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of the table: of a step its seconds, of matrix products their rate."""
    texts = []
    for row in rows:
        trains = row["strategy"]
        if row["side"] == CACHED:
            trains += ", states of the frozen blocks cached"
        name = row["model"]
        peer = figure_text(name, row["torch"]) if "torch" in row else ""
        ratio = ratio_text(row) if "torch" in row else ""
        texts.append([name, trains, figure_text(name, row["adapt"]), peer, ratio])
    return texts


def figure_text(name: str, speed: float) -> str:
    return f"{speed:.0f}" if name == PRODUCTS else f"{1 / speed:.2f}"


def source_of(config: Config, result: Mapping[str, Any]) -> str:
    """The line above the table; it says where the machine was not left alone."""
    num_tokens = config.batch_size * config.tokens
    what = (
        f"Random weights, float32, batches of {config.batch_size} x {config.tokens} = "
        f"{num_tokens:,} tokens; medians of {config.rounds} rounds in turn (least to most), of "
        f"{config.steps} steps each"
    )
    if result["others"] > DISTURBED:
        what += f"; on a busy machine: others used {result['others']:.0%} of the cores meanwhile"
    command = command_line("experiments.benchmark.shape_steps", config)
    where = machine_text(result["machine"])
    versions = versions_text(result["libraries"].values())
    return source_line(command, what, where, versions)


if __name__ == "__main__":
    launch(Config, main)

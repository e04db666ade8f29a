"""One accelerator: train steps of well-known encoders in bfloat16, in turn with transformers +
torch.

Every measurement is a process that has the device to itself, so that its peak of memory is its own;
the sides alternate. Weights are random, examples of full length. Speeds exclude compilation and
include sending the batch.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from adapt.cli import console
from adapt.cli.run_folder import write_json
from adapt.errors import MeshError, StrategyError, TrainingError
from adapt.export.layout import write_config
from experiments.benchmark import peers
from experiments.benchmark.aot.compiling import (
    Case,
    make_training,
    model_flops,
    num_frozen_stages,
    resolve_strategy,
    tokens_per_example,
)
from experiments.benchmark.aot.shapes import SHAPES
from experiments.benchmark.workers import Worker

if TYPE_CHECKING:  # it imports this file
    from experiments.benchmark.benchmark import Config

LEARNING = {"rate": 1e-4, "decay": 0.01, "clip": 1.0}
WARM = 2  # steps before those that count
NAMES = {"adapt": "adapt", "torch": "transformers + torch"}
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # or the peak would be what JAX set aside


class Adapt:
    """One cell of the table, with the functions that the experiments use."""

    def __init__(self, case: dict[str, Any], cores: int, seed: int):
        import jax
        import numpy as np

        from adapt.cli.launch import compilation_cache
        from adapt.cli.run_folder import versions
        from adapt.data import packing
        from adapt.ragged import ragged
        from adapt.training.step import init_state

        compilation_cache()
        made = Case(**case)
        shape = SHAPES[made.model]
        rng = np.random.default_rng(seed)
        key = jax.random.key(seed)
        model, labels, tx, self.step = make_training(made)
        self.frozen, self.state = init_state(jax.jit(model.init)(key), labels, tx, key)
        self.batches, self.seen, c, count = [], set(), shape.config, made.batch_size
        for _ in range(2):
            if c.is_image:
                pixels = rng.standard_normal(
                    (count, c.image_size, c.image_size, c.channels), np.float32
                )
                batch = packing.image_batch(pixels, made.tokens, count)
            else:
                tokens = ragged(list(rng.integers(1, c.vocabulary, (count, made.tokens))))
                every = np.arange(count)
                batch = packing.assemble(
                    tokens, every, every, np.zeros_like(every), (count, made.tokens, count)
                )
            self.batches.append(
                batch
                | packing.pad_labels(
                    rng.integers(0, shape.head.classes, count).astype(np.int32), count
                )
            )
        self.device, self.versions = (
            jax.local_devices()[0],
            versions() | {"device": jax.local_devices()[0].device_kind},
        )

    def train(self, steps: int) -> dict[str, float]:
        from adapt.training.loop import run_steps

        batches = itertools.islice(itertools.cycle(self.batches), steps)
        ((self.state, record),) = run_steps(
            self.step, self.frozen, self.state, batches, steps, self.seen
        )
        return {
            "examples": record["timed_examples"],
            "seconds": record["seconds"],
            "loss": record["loss"],
        }

    def peak(self) -> dict[str, int | None]:
        """The most bytes of the device in use at once since the start; None where it keeps no
        count, as a CPU.
        """
        return {"bytes": (self.device.memory_stats() or {}).get("peak_bytes_in_use")}

    def rate(self, repeats: int) -> dict[str, float]:
        """FLOP/s of bfloat16 matrix products, the fastest of two sizes, many between two looks at
        the device.
        """
        import jax
        import jax.numpy as jnp

        product = jax.jit(lambda a, b: a @ b)
        found = []
        for size in peers.rate_sizes(self.device.platform != "cpu"):
            a = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16) / math.sqrt(size)

            def many(a: Any = a) -> Any:
                b = a
                for _ in range(peers.PRODUCTS):
                    b = product(b, a)
                return b.block_until_ready()

            found.append(max(peers.matmul_rates(many, size, repeats)) * 1e9 * peers.PRODUCTS)
        return {"flops": max(found)}


def cells(config: "Config") -> list[Case]:
    """Every model and strategy asked for. Raises :class:`StrategyError` and
    :class:`CheckpointError`.
    """
    every = []
    for model, spec in itertools.product(config.models, config.strategies):
        strategy = resolve_strategy(model, spec)
        batch_size = SHAPES[model].examples if config.batch_size is None else config.batch_size
        tokens = tokens_per_example(model, batch_size, config.tokens)
        every.append(Case(model, strategy, "", "", batch_size, tokens, config.remat, scan=False))
    if not every:
        raise StrategyError("--models and --strategies: give at least one each")
    return list(dict.fromkeys(every))


def measure(config: "Config", case: Case, side: str, round_number: int) -> dict[str, Any]:
    """One process of one side: start, warm up, steps, memory, the rate of products. ``error`` where
    it failed, or ran out.
    """
    shape = SHAPES[case.model]
    log = config.out / f"{case.model}-{case.strategy}-{side}.log".replace(":", "")
    if side == "adapt":
        command = [sys.executable, "-m", "experiments.benchmark.device"]
        settings = {"case": dataclasses.asdict(case)}
    else:
        command = [str(config.peers), "-P", peers.__file__]
        settings = {
            "shape": write_config(shape.config),
            "pooling": shape.head.pooling,
            "classes": shape.head.classes,
        }
        settings |= {
            "batch_size": case.batch_size,
            "tokens": case.tokens,
            "still": num_frozen_stages(case),
            "learning": LEARNING,
        }
        settings |= {"compile": config.torch_compile}
    entry = {"case": dataclasses.asdict(case), "side": side, "round": round_number}
    with contextlib.ExitStack() as stack:
        try:
            worker = Worker(NAMES[side], command, log, ENVIRONMENT)
            stack.callback(worker.close)
            settings |= {"side": "device", "cores": os.cpu_count(), "seed": config.seed}
            entry["libraries"] = worker.ask("start", **settings)["versions"]
            worker.ask("train", steps=WARM)
            entry |= worker.ask("train", steps=config.steps)
            entry["peak_bytes"] = worker.ask("peak")["bytes"]
            entry["rate"] = worker.ask("rate", repeats=3)["flops"]
            entry["speed"] = entry["examples"] / entry["seconds"]
        except (TrainingError, OSError) as fault:
            missing = side == "torch" and "libraries" not in entry
            entry["error"] = (
                f"{fault}; looked for with {config.peers}, name another with --peers"
                if missing
                else str(fault)
            )
    return entry


def main(config: "Config") -> dict[str, Any]:
    """All rounds of all cells -> what is written as benchmark.json."""
    every = cells(config)
    rounds = []
    failed = set()
    turns = list(itertools.product(every, range(config.rounds), NAMES))
    with console.progress("measuring", len(turns)) as bar:
        for done, (case, number, side) in enumerate(turns, 1):
            if (case, side) not in failed:
                entry = measure(config, case, side, number)
                rounds.append(entry)
                if "speed" in entry:
                    console.say(
                        f"{case.model}, {case.strategy}, {NAMES[side]}: {entry['speed']:.1f} "
                        "examples/s"
                    )
                if "error" in entry:  # it would fail again
                    failed.add((case, side))
                    console.warn(f"{case.model}, {case.strategy}: {entry['error']}")
            bar.update(done)
    if not any("speed" in entry for entry in rounds):
        raise MeshError(f"nothing could be measured: {rounds[0]['error'].partition(' (see ')[0]}")
    devices = {on(entry) for entry in rounds if "speed" in entry}
    if "cpu" in devices:
        console.warn(
            "a side ran on the CPU, and not beside one on an accelerator: install JAX, or torch, "
            "for that"
            if len(devices) > 1
            else "no accelerator was seen: this is the CPU"
        )
    result = {
        "summary": summary(every, rounds),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": rounds,
    }
    write_json(config.out / "benchmark.json", result)
    page = markdown(result)
    (config.out / "device.md").write_text(page, "utf-8")
    console.say(page)
    return result


def on(entry: dict[str, Any]) -> str:
    """Where it ran; the sides may name the same accelerator differently."""
    return "cpu" if entry["libraries"]["device"] == "cpu" else "accelerator"


def summary(every: list[Case], rounds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a cell: of each side the medians of examples/s, the share of the rate of products, the
    peak; and their ratio.

    The rate is the fastest that any side measured there in the whole run; model FLOPs are counted
    by hand, padding and what is computed again left out. Sides on different devices have no ratio.
    """
    measured = [entry for entry in rounds if "speed" in entry]
    rates = {
        where: max(entry["rate"] for entry in measured if on(entry) == where)
        for where in map(on, measured)
    }
    where = {entry["side"]: on(entry) for entry in measured}
    rows = []
    for case in every:
        row: dict[str, Any] = {"case": dataclasses.asdict(case), "rates": rates}
        of_case = [entry for entry in rounds if entry["case"] == dataclasses.asdict(case)]
        speeds = {
            side: [e["speed"] for e in of_case if e["side"] == side and "speed" in e]
            for side in NAMES
        }
        for side, found in speeds.items():
            if not found:
                row[side] = {"error": next(e["error"] for e in of_case if e["side"] == side)}
                continue
            speed = statistics.median(found)
            peaks = [e["peak_bytes"] for e in of_case if e["side"] == side and "speed" in e]
            used = model_flops(case, 1) / case.batch_size * speed / rates[where[side]]
            row[side] = {
                "speed": speed,
                "utilisation": used,
                "peak_bytes": max(peaks) if None not in peaks else None,
            }
        if all(speeds.values()) and len(rates) == 1:
            ratios = [ours / theirs for ours, theirs in zip(*speeds.values(), strict=False)]
            row |= {
                "ratio": statistics.median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        rows.append(row)
    return rows


COLUMNS = (
    "model",
    "trains",
    "remat",
    "examples",
    "adapt: examples/s",
    "of the rate",
    "GiB",
    "torch: examples/s",
)
COLUMNS += ("of the rate", "GiB", "adapt / torch")


def markdown(result: dict[str, Any]) -> str:
    """README's table."""
    rows = []
    for row in result["summary"]:
        case = row["case"]
        cells = []
        for side in NAMES:
            cells += shown(row[side])
        ratio = (
            f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
            if "ratio" in row
            else ""
        )
        size = f"{case['batch_size']} x {case['tokens']}"
        rows.append([case["model"], case["strategy"], case["remat"], size, *cells, ratio])
    notes = {
        on(entry): entry["libraries"]["device"] for entry in result["rounds"] if "speed" in entry
    }
    rates = result["summary"][0]["rates"]
    said = [
        f"{name}, {result['date']}: bfloat16 matrix products at {rates[place] / 1e12:.3g} TFLOP/s"
        for place, name in notes.items()
    ]
    return "\n".join([*console.markdown_table(COLUMNS, rows, right=8), "", *said, ""])


def shown(side: dict[str, Any]) -> list[str]:
    if "error" in side:
        memory = any(
            word in side["error"] for word in ("RESOURCE_EXHAUSTED", "OutOfMemory", "out of memory")
        )
        return ["out of memory" if memory else "failed", "", ""]
    peak = f"{side['peak_bytes'] / 2**30:.1f}" if side["peak_bytes"] is not None else ""
    return [f"{side['speed']:.1f}", f"{side['utilisation']:.0%}", peak]


if __name__ == "__main__":
    peers.serve({"device": Adapt})

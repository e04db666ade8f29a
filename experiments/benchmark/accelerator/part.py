"""The process of one part: ``python -m experiments.benchmark.accelerator.part NAME SETTINGS``.

Rows are written as they come, so that those of a part that is ended at its limit are there.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from adapt.errors import AdaptError
from experiments.benchmark.accelerator import (
    attention_checks,
    extraction,
    finetuning,
    inputs,
    kernel_checks,
    rate,
    rows,
    settings,
    steps,
    training_checks,
)
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings

MEASURES: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "inputs": inputs.measure,
    "rate": rate.measure,
    "kernel": kernel_checks.measure,
    "attention": attention_checks.measure,
    "training": training_checks.measure,
    "finetune": finetuning.measure,
    "finetune-peers": finetuning.measure_peers,
    "extract": extraction.measure,
    "extract-peers": extraction.measure_peers,
    "steps": steps.measure,
}


def run(name: str, told: Settings) -> None:
    """Measure one part, and write its rows."""
    started = time.perf_counter()
    for row in MEASURES[name](told):
        seconds = time.perf_counter() - started
        rows.append(told.rows, {"part": name, "at": round(seconds, 2)} | row)


if __name__ == "__main__":
    try:
        run(sys.argv[1], settings.read(Path(sys.argv[2])))
    except AdaptError as error:
        sys.exit(f"error: {error}")

"""Whole runs of `adapt finetune`, each a process of its own, with a cache of their own."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from adapt.cli.flags import flag
from adapt.pretrained.assets import cache_folder
from adapt.run_folder import write_json
from experiments.benchmark.options import WholeRunOptions
from experiments.benchmark.workers import peak_memory

RECORDED = ("accuracy", "examples_per_second", "seconds", "steps")  # of a run's result.json


def use_own_cache(out: Path) -> None:
    """Set ADAPT_CACHE to a folder for these runs alone, which has the assets and compiled programs,
    but nothing of a prefix.
    """
    home = cache_folder()
    own = out.absolute() / "cache"
    own.mkdir(exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    for entry in home.iterdir():
        if entry.name != "prefix" and not (own / entry.name).exists():
            (own / entry.name).symlink_to(entry)
    os.environ["ADAPT_CACHE"] = str(own)


def prefix_folder() -> Path:
    """Where the runs keep what a frozen prefix makes of the data."""
    return Path(os.environ["ADAPT_CACHE"]) / "prefix"


def command(config: WholeRunOptions, out: Path, **flags: Any) -> list[str]:
    """`adapt finetune` with these flags, and those that all runs have."""
    flags = {
        "checkpoint": config.checkpoint,
        "out": out,
        "batch_size": config.batch_size,
        "patience": 0,
        **flags,
        "text_column": config.text_column,
        "label_column": config.label_column,
    }
    words = [sys.executable, "-m", "adapt", "finetune"]
    for name, value in flags.items():
        words += [flag(name), str(value)]
    return words


def whole_run(
    config: WholeRunOptions, strategy: str, seed: int, number: int = 0, **flags: Any
) -> dict[str, Any]:
    """A run of finetune: its ``wall`` seconds from start to end, its peak RssAnon in MB, and what
    its result.json says. With `resume`, one that was done before is read.
    """
    out = config.out / f"{strategy.replace(':', '')}-{seed}-{number}"
    record = config.out / f"{out.name}.json"
    if config.resume and record.exists():
        return json.loads(record.read_text("utf-8"))
    all_flags = {
        "train": config.data,
        "strategy": strategy,
        "seed": seed,
        "epochs": config.epochs,
        **flags,
    }
    words = command(config, out, **all_flags)
    started = time.perf_counter()
    memory = peak_memory(words, config.out / f"{out.name}.log")
    wall = time.perf_counter() - started
    result = json.loads((out / "result.json").read_text("utf-8"))
    run = {name: result[name] for name in RECORDED}
    run |= {"wall": wall, "memory_mb": memory}
    write_json(record, run)
    shutil.rmtree(out)  # its checkpoints, of every round, would fill the disk
    return run

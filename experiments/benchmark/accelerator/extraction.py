"""`adapt extract` against sentence-transformers' `encode`, by its best batch of several."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import numpy as np

from experiments.benchmark.accelerator.finetuning import (
    COMPILED,
    NOTHING_COMPILED,
    run_command,
    torch_worker,
)
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import Settings

COMPARED = 256  # texts whose vectors are compared
PRECISIONS = ("bfloat16", "float32")


def measure(told: Settings) -> Iterator[Row]:
    """A row a run of the command: by precision, when nothing is compiled, and once more."""
    for dtype in PRECISIONS:
        for which in (NOTHING_COMPILED, COMPILED):
            out = told.scratch / f"features_{dtype}"
            shutil.rmtree(out, ignore_errors=True)
            flags = {
                "checkpoint": told.checkpoint,
                "data": told.sentences,
                "pooling": "mean",
                "dtype": dtype,
                "out": out,
            }
            log = told.logs / f"extract_{dtype}_{which.replace(' ', '_')}.log"
            row = {"side": "adapt", "dtype": dtype, "which": which}
            yield row | run_command(flags, "extract", log, out)


def measure_peers(told: Settings) -> Iterator[Row]:
    """A row a precision and batch, with few sentences, and then all with the best of these."""
    sizes = told.sizes
    settings = {
        "checkpoint": str(told.checkpoint),
        "sentences": str(told.sentences),
        "cores": os.cpu_count(),
    }
    worker = torch_worker(told, "sentence_transformers")
    with contextlib.closing(worker):
        started = worker.ask("start", side="sentences", **settings)
        common = {"side": "sentence-transformers", "status": "measured"}
        versions = started["versions"]
        common |= {"versions": versions, "platform": versions["device"]}
        for dtype in PRECISIONS:
            speeds = {}
            for batch_size in sizes.encoding_batches:
                request = {"dtype": dtype, "batch_size": batch_size}
                answer = worker.ask("encode", **request, count=sizes.few_sentences)
                speeds[batch_size] = answer["examples"] / answer["seconds"]
                row = common | request | {"examples_per_second": speeds[batch_size]}
                yield row | {"which": "few sentences"}
            best = max(speeds, key=lambda size: speeds[size])
            request = {"dtype": dtype, "batch_size": best}
            answer = worker.ask("encode", **request, count=sizes.sentences)
            speed = answer["examples"] / answer["seconds"]
            row = common | request | {"examples_per_second": speed, "which": "best batch"}
            yield row | cosines(told, dtype)


def cosines(told: Settings, dtype: str) -> Row:
    """How alike the first vectors of both sides are; nothing where adapt has none."""
    ours = told.scratch / f"features_{dtype}" / "features.npy"
    theirs = told.scratch / "sentence_transformers.npy"
    if not ours.exists():
        return {}
    vectors = [np.load(path)[:COMPARED].astype(np.float32) for path in (ours, theirs)]
    unit = [of_side / np.linalg.norm(of_side, axis=1, keepdims=True) for of_side in vectors]
    alike = (unit[0] * unit[1]).sum(1)
    return {"cosine": float(alike.mean()), "cosine_least": float(alike.min())}

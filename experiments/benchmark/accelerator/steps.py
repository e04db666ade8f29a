"""Steps of well-known encoders in bfloat16, beside transformers + torch with its fused attention.

Weights are random, examples of full length; compiling is left out, sending the batch is not. Each
step of adapt is measured in a process of its own, so that its peak of memory is its own.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from adapt.errors import TrainingError
from adapt.export.layout import write_config
from experiments.benchmark.accelerator.finetuning import torch_worker
from experiments.benchmark.accelerator.rows import Row
from experiments.benchmark.accelerator.settings import LEARNING, Settings
from experiments.benchmark.aot.compiling import (
    Case,
    model_flops,
    num_frozen_stages,
    resolve_strategy,
    tokens_per_example,
)
from experiments.benchmark.aot.shapes import SHAPES
from experiments.benchmark.workers import Worker

ADAPT_SIDE = "experiments.benchmark.accelerator.adapt_steps"
WARM = 3  # steps before those that count
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # or the peak would be what JAX set aside
# 48 blocks do not fit one chip without computing them again, and compile for minutes if unrolled.
SPECIAL = {"gpt2-xl": {"remat": "block", "scan": True}}


def make_cases(told: Settings) -> list[Case]:
    """The steps that are measured, in their order."""
    sizes = told.sizes
    cases = []
    for model, spec in sizes.cases:
        batch_size = sizes.batch_size or SHAPES[model].examples
        tokens = tokens_per_example(model, batch_size, sizes.tokens)
        strategy = resolve_strategy(model, spec)
        how: dict[str, Any] = SPECIAL.get(model, {"remat": "none", "scan": False})
        cases.append(Case(model, strategy, "", "", batch_size, tokens, **how))
    return cases


def measure(told: Settings) -> Iterator[Row]:
    """A row a case and side, and one with the rate of torch's matrix products."""
    torch = None
    with contextlib.ExitStack() as stack:
        if told.peers is not None:
            torch = torch_worker(told, "torch_steps")
            stack.callback(torch.close)
        for number, case in enumerate(make_cases(told)):
            ours = attempt(functools.partial(adapt_step, told, case))
            yield row_of(case, "adapt") | ours
            if torch is None:
                continue
            if number == 0:
                yield {"side": "torch"} | attempt(functools.partial(torch_rate, torch))
            theirs = attempt(functools.partial(torch_step, told, torch, case))
            yield row_of(case, "torch") | theirs


def row_of(case: Case, side: str) -> Row:
    """What a row says of its case. FLOPs are those of the model, counted by hand: padding and what
    is computed again are left out.
    """
    flops = model_flops(case, 1) / case.batch_size
    return {"side": side, "case": dataclasses.asdict(case), "flops_per_example": flops}


def attempt(measured: Callable[[], Row]) -> Row:
    """What is measured, or the error that came of it."""
    try:
        return measured() | {"status": "measured"}
    except (TrainingError, OSError) as error:
        return {"status": "error", "note": str(error)}


def adapt_step(told: Settings, case: Case) -> Row:
    """The figures of adapt's step."""
    name = f"adapt_{case.model}_{case.strategy}".replace(":", "")
    command = [sys.executable, "-m", ADAPT_SIDE]
    worker = Worker("adapt", command, told.logs / f"{name}.log", ENVIRONMENT)
    with contextlib.closing(worker):
        settings = {"case": dataclasses.asdict(case), "cores": os.cpu_count(), "seed": 0}
        worker.ask("start", side="steps", **settings)
        return trained(told, worker)


def trained(told: Settings, worker: Worker) -> Row:
    """The speed of a side that has started, the seconds of its first steps, its peak."""
    first = worker.ask("train", steps=WARM)
    timed = worker.ask("train", steps=told.sizes.steps)
    return {
        "speed": timed["examples"] / timed["seconds"],
        "first_seconds": first["wall"],
        "loss": timed["loss"],
        "peak_bytes": worker.ask("peak")["bytes"],
    }


def torch_rate(torch: Worker) -> Row:
    """The rate of torch's products, in FLOP/s. A side has to be started to be asked."""
    started = torch.ask("start", side="rate", cores=os.cpu_count())
    found = torch.ask("rate", repeats=3)
    return {"flops": found["flops"], "platform": started["versions"]["device"]}


def torch_step(told: Settings, torch: Worker, case: Case) -> Row:
    """The figures of torch's step. Its memory is given back for the next measurement of adapt."""
    settings = torch_settings(case)
    started = torch.ask("start", side="steps", cores=os.cpu_count(), seed=0, **settings)
    versions = started["versions"]
    found = trained(told, torch) | {"versions": versions, "platform": versions["device"]}
    torch.ask("start", side="nothing", cores=os.cpu_count())
    return found


def torch_settings(case: Case) -> dict[str, Any]:
    """What torch's side of a case is started with, but for the cores and the seed."""
    shape = SHAPES[case.model]
    return {
        "shape": write_config(shape.config),
        "pooling": shape.head.pooling,
        "classes": shape.head.classes,
        "batch_size": case.batch_size,
        "tokens": case.tokens,
        "num_frozen": num_frozen_stages(case),
        "dtype": case.compute_dtype,
        "learning": LEARNING,
    }

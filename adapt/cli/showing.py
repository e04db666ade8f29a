"""What a person sees of a fine-tuning run, before it and after it."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt import tree
from adapt.cli import console
from adapt.data import examples
from adapt.pretrained import hub
from adapt.tasks import TASKS
from adapt.training import phases


def show_start(
    config: Any,
    pretrained: hub.Pretrained,
    discarded: dict[str, Any],
    params: tree.Tree,
    runs: Sequence[phases.Run],
    sets: dict[str, examples.Examples],
) -> None:
    c = pretrained.config
    size = f"{c.layers} blocks of width {c.width}, {tree.count(params['encoder']):,} parameters"
    console.say(f"loaded    {pretrained.source}: {c.family}, {size}")
    if config.random_weights:
        console.say("weights   random, in the checkpoint's shapes: its own are not used")
    gone = ", ".join(discarded["shapes"]) or "nothing: the checkpoint had no head"
    console.say(f"discarded {discarded['parameters']:,} parameters: {gone}")
    if config.remat != "none" and all(
        run.step.prefix and run.step.prefix.depth > c.layers for run in runs
    ):
        console.warn(
            f"--remat {config.remat} does nothing with --strategy {config.strategy}: no block is in a backward pass"
        )
    console.say(
        "data      " + ", ".join(f"{len(part):,} {name}" for name, part in sets.items()) + "\n"
    )
    for name, part in sets.items():
        if pretrained.tokenizer:
            console.warn_truncated(part.truncated, pretrained.tokenizer.max_length, name)
    for run in runs:
        rates = run.rates
        rows = [
            (group, count, f"{rates[group]:.2g}" if group in rates else "-")
            for group, count in tree.summary(params, run.labels).items()
        ]
        which = f", epochs {run.first + 1} to {run.last}" if len(runs) > 1 else ""
        console.table(
            f"strategy {config.strategy}{which}", ("group", "parameters", "learning rate"), rows
        )


def show_end(config: Any, result: dict[str, Any], plot: Path) -> None:
    scores = itertools.takewhile(lambda key: key != "seconds", result)
    shown = {key: result[key] for key in scores if result[key] is not None}
    console.table("test", ("metric", "value"), list(shown.items()))
    for floor, (score, sign) in TASKS[config.task].beats.items():
        low = result.get(floor)
        got = result.get(score)
        if low is not None and got is not None and sign * (got - low) <= 0:
            console.warn(
                f"{score} {got:.4g} is no better than {floor} {low:.4g}, which looks at no input"
            )
    if result["best_phase"] < len(result["phases"]) - 1:
        which = f"phase {result['best_phase'] + 1} of {len(result['phases'])}"
        console.warn(
            f"the best validation was in {which}, at step {result['best_step']}: what trained later is not in the result"
        )
    console.say(
        f"frozen parameters unchanged: digest {result['frozen_digest_after'][:12]}"
        if result["parameters_frozen"]
        else ""
    )
    console.say(f"plot      {plot}")
    console.result(json.dumps(shown | {"out": str(config.out)}))

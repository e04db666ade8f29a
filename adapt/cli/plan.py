"""What would each strategy cost on these data, before any of them runs?

    adapt plan --checkpoint minilm --data reviews --epochs 5
    adapt plan --checkpoint minilm --data reviews --epochs 5 --measure full frozen top:1

A few steps of some programs are timed on this machine (the whole encoder forward, and the suffixes of ``frozen``,
``top:1`` and ``full``, besides ``top:L``, from which the other depths follow, since a step's cost is linear in them, and
those of ``--also``); everything else is counted. Expect the seconds, which leave out compiling, within a fifth of the real
ones on a machine as quiet as it was; --measure runs the strategies that it names afterwards and shows both.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from adapt import finetuning, tree
from adapt.cli import console, inputs
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, open_run, write_json
from adapt.cost.clock import Compiling, Laps, calibrate, finish_seconds, prepared
from adapt.cost.flops import prefix_flops, step_flops
from adapt.data.examples import Examples
from adapt.errors import DataError, StrategyError
from adapt.models import Model
from adapt.options import ImportOptions
from adapt.prefix_cache import policy, states
from adapt.pretrained import hub
from adapt.tasks import heads
from adapt.training import frozen_prefix, optim, strategies

WORTH = 0.85  # of the seconds of full fine-tuning: what saves less is not worth training less


@dataclasses.dataclass(frozen=True)
class Config(ImportOptions):
    checkpoint: str = (
        "minilm"  # a folder, a finished run, a bundled name (minilm, tiny-bert), or a hub id
    )
    data: str = "reviews"  # what finetune takes as --train
    test: str | None = (
        None  # what finetune takes as --test; default: the test part of a bundled set, else none
    )
    text_column: str = "text"
    label_column: str = "label"
    image_column: str | None = None
    task: Literal["classification", "multilabel", "regression"] = "classification"
    pooling: str | None = None
    epochs: int = 3
    batch_size: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    cache_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    max_length: int | None = None
    also: tuple[str, ...] = (
        "bitfit",
        "lora:8",
        "adapters:16",
    )  # to plan for, besides full, top:K and frozen
    steps: int = 10  # that are timed, of each program
    measure: tuple[str, ...] = ()  # strategies to run afterwards, to show both
    seed: int = 0
    out: Path = Path("runs/plan")
    overwrite: bool = False

    dropout = None
    random_weights = False
    text_pair_column = None
    layers = ()
    mix = "concat"
    class_weights = "none"
    accumulate = 1
    validation = None

    @property
    def train(self) -> str:
        return self.data


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one strategy; seconds are of a whole run, compiling left out, without and with the cache."""

    strategy: str
    cut: int
    parameters_trained: int
    optimizer_bytes: int
    flops_per_example: float
    flops_per_example_cached: float
    cache_bytes: int
    peak_bytes: int
    seconds: float
    seconds_cached: float | None  # None: there is nothing to cache

    @property
    def best(self) -> float:
        return min(self.seconds, self.seconds_cached or self.seconds)


def main(config: Config) -> dict[str, Any]:
    clock = Laps()
    compiling = Compiling()
    check_out(config.out, None, config.overwrite)
    inputs.check_ranges(config)
    if config.epochs < 1 or config.batch_size < 1 or config.steps < 1:
        raise StrategyError("--epochs, --batch-size and --steps must be at least 1")
    pretrained = inputs.load(config)
    layers = pretrained.config.layers
    for name in (*config.measure, *config.also):
        strategies.strategy(name, layers, config.epochs)
    depths = dict.fromkeys(
        ["full", *(f"top:{k}" for k in range(layers, 0, -1)), "frozen", *config.also]
    )
    if unplanned := [name for name in config.measure if name not in depths]:
        raise StrategyError(f"--measure {unplanned[0]}: it is not planned; name it in --also too")
    sets, names = read(config, pretrained)
    if config.measure and "test" not in sets:
        raise StrategyError(
            f"--measure runs finetune, which tests: {config.data} has no test part, so name one with --test"
        )
    clock.lap("set_up")
    set_up = clock.seconds["set_up"] - compiling.seconds
    with open_run(config.out, config):
        head = heads.new_head(config, pretrained, names)
        key = jax.random.fold_in(jax.random.key(config.seed), 2)
        model, params = finetuning.with_head(pretrained, head, key)
        model = model.cast(jnp.dtype(config.dtype))
        timings = calibrate(config, model, params, sets)
        timings |= {"set_up": set_up, "finish": finish_seconds(config, len(names))}
        estimates = [estimate(config, model, params, sets, timings, name) for name in depths]
        show(config, estimates)
        measured = {name: run(config, name) for name in config.measure}
        compare(estimates, measured)
        result = {
            "timings": timings,
            "strategies": [dataclasses.asdict(e) for e in estimates],
            "measured": measured,
        }
        write_json(config.out / "plan.json", result)
    return result


def read(config: Config, pretrained: hub.Pretrained) -> tuple[dict[str, Examples], list[str]]:
    """The sets that a run would have: train and validation, and test where one is named."""
    try:
        return inputs.read_sets(config, pretrained)
    except DataError as fault:
        if config.test is not None or "--test is missing" not in str(fault):
            raise
    sets, names = inputs.read_sets(dataclasses.replace(config, test=config.data), pretrained)
    return {name: part for name, part in sets.items() if name != "test"}, names


def estimate(
    config: Config,
    model: Model,
    params: tree.Tree,
    sets: dict[str, Examples],
    timings: dict[str, Any],
    name: str,
) -> Estimate:
    c = model.encoder.config
    layers = model.encoder.config.layers
    model, params, labels, tx = prepared(name, model, params)
    cut = frozen_prefix.cut(labels, layers)
    moving = optim.trainable(params, labels)
    optimizer = tree.nbytes(jax.eval_shape(tx.init, moving))

    # Depths between those that were timed lie on a line.
    low = timings["top:1"]
    high = timings[f"top:{layers}"]
    share = (int(name[4:]) - 1) / max(layers - 1, 1) if name.startswith("top:") else 0.0
    on_line = [one + share * (other - one) for one, other in zip(low, high, strict=True)]
    depth = name in ("full", "frozen") or name.startswith("top:")
    _, suffix, peak, flops = on_line if name.startswith("top:") and depth else timings[name]

    steps = config.epochs * -(-len(sets["train"]) // config.batch_size)
    blocks = min(max(cut - 1, 0), layers) / layers  # of the encoder, before the cut
    entries = entries_of(config, model, params, sets, cut)
    passes = {
        part: (config.epochs if part == "validation" else 1) * len(sets[part])
        for part in sets
        if part != "train"
    }
    each = timings["forward"] / len(sets["train"].file_sequences)  # seconds an example, forward
    save = (config.epochs + 1) * timings["finish"]["byte_saved"] * (tree.nbytes(moving) + optimizer)
    finish = timings["finish"]
    once = timings["set_up"] + finish["first_save"] + finish["score"] + finish["plot"] + save
    seconds = once + steps * (suffix + blocks * timings["prefix"][1]) + each * sum(passes.values())
    wholes = {
        entry.folder: (entry, len(sets[part].file_sequences)) for part, entry in entries.items()
    }
    missing = sum(
        count * each * blocks + entry.nbytes / policy.WRITE_RATE
        for entry, count in wholes.values()
        if not entry.is_complete
    )
    cached = once + missing + steps * suffix + each * (1 - blocks) * sum(passes.values())
    tokens = float(sets["train"].file_sequences.lengths.mean())
    after = step_flops(c, cut, tokens, tokens) if depth else flops
    return Estimate(
        name,
        cut,
        tree.count(moving),
        optimizer,
        after + prefix_flops(c, cut, tokens, tokens),
        after,
        sum(entry.nbytes for entry, _ in wholes.values()),
        int(peak),
        seconds,
        cached if cut else None,
    )


def entries_of(
    config: Config, model: Model, params: tree.Tree, sets: dict[str, Examples], cut: int
) -> dict[str, Any]:
    if not cut:
        return {}
    dtype = config.cache_dtype or config.dtype
    return {
        name: states.cached_array(params, model, cut, part, dtype) for name, part in sets.items()
    }


def show(config: Config, estimates: list[Estimate]) -> None:
    full = next(e for e in estimates if e.strategy == "full")
    rows = []
    for e in estimates:
        sizes = [
            f"{e.parameters_trained / 1e6:.3g}",
            f"{e.optimizer_bytes / 1e6:.3g}",
            f"{e.peak_bytes / 1e6:.0f}",
        ]
        flops = [
            f"{e.flops_per_example / 1e6:.0f}",
            f"{e.flops_per_example_cached / 1e6:.0f}" if e.cut else "",
        ]
        seconds = [f"{e.seconds:.0f}", f"{e.seconds_cached:.0f}" if e.seconds_cached else ""]
        rows.append(
            (e.strategy, *sizes, *flops, f"{e.cache_bytes / 1e6:.0f}" if e.cut else "", *seconds)
        )
    columns = (
        "strategy",
        "M trained",
        "opt MB",
        "peak MB",
        "MFLOP",
        "cached",
        "cache MB",
        "seconds",
        "cached",
    )
    title = f"{config.checkpoint} on {config.data}, {config.epochs} epochs in batches of {config.batch_size}"
    console.table(title, columns, rows)
    for e in estimates:
        console.say(f"{e.strategy:12}{verdict(e, full)}")
    note = (
        "MFLOP: matrix products a training example. Seconds: a whole run here, compiling left out."
    )
    console.say(f"{note} What is worth it by its accuracy, only a run can say.")


def verdict(e: Estimate, full: Estimate) -> str:
    """Whether a strategy is worth it by its cost."""
    if e is full:
        return "costs the most"
    less = f"{full.best / e.best:.1f} times cheaper than full"
    alone = (
        "without the cache, which does not pay" if e.cut else "nothing stands still to be cached"
    )
    how = "with the cache" if e.best < e.seconds else alone
    return f"{'worth it' if e.best <= WORTH * full.best else 'not worth it'}: {less}, {how}"


def run(config: Config, name: str) -> dict[str, Any]:
    """The strategy itself, in a process of its own: result.json's seconds."""
    out = config.out / name.replace(":", "")
    words: dict[str, Any] = {"train": config.data, "strategy": name, "out": out, "patience": 0}
    same = (
        "checkpoint",
        "test",
        "text_column",
        "label_column",
        "image_column",
        "task",
        "pooling",
        "epochs",
    )
    same += ("batch_size", "dtype", "cache_dtype", "max_length", "seed")
    words |= {field: getattr(config, field) for field in same}
    flags = [
        (f"--{word.replace('_', '-')}", str(value))
        for word, value in words.items()
        if value is not None
    ]
    command = [
        sys.executable,
        "-m",
        "adapt",
        "finetune",
        *(each for pair in flags for each in pair),
    ]
    console.say(f"running   {' '.join(command[1:])}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StrategyError(f"finetune --strategy {name} failed: {done.stderr.strip()[-300:]}")
    return json.loads((out / "result.json").read_text("utf-8"))["seconds"]


def compare(estimates: list[Estimate], measured: dict[str, dict[str, Any]]) -> None:
    if not measured:
        return
    rows = []
    for e in (e for e in estimates if e.strategy in measured):
        real = measured[e.strategy]["total"] - measured[e.strategy]["compile"]
        rows.append((e.strategy, f"{e.best:.1f}", f"{real:.1f}", f"{e.best / real:.2f}"))
    console.table(
        "seconds, compiling left out", ("strategy", "predicted", "measured", "ratio"), rows
    )


if __name__ == "__main__":
    launch(Config, main)

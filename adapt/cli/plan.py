"""What would each strategy cost on these data, before any of them runs?

    adapt plan --checkpoint minilm --data reviews --epochs 5
    adapt plan --checkpoint minilm --data reviews --epochs 5 --measure full frozen top:1

A few steps of some programs are timed on this machine (the whole encoder forward, and the suffixes
of ``frozen``, ``top:1`` and ``full``, besides ``top:L``, from which the other depths follow, since
a step's cost is linear in them, and those of ``--also``); everything else is counted. Expect the
seconds, which leave out compiling, within a fifth of the real ones on a machine as quiet as it was;
--measure runs the strategies that it names afterwards and shows both.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from adapt import planning
from adapt.cli import console, finetune, plots, showing
from adapt.cli.flags import changed_flags
from adapt.cli.run_folder import open_run
from adapt.cost.clock import Compiling, Laps
from adapt.cost.memory import MemoryFit, gib
from adapt.data.inputs import Columns
from adapt.devices import compute_dtype
from adapt.errors import StrategyError
from adapt.models import EncoderConfig
from adapt.options import (
    BatchOptions,
    CacheDType,
    FrozenOptions,
    HeadOptions,
    ImportOptions,
    LabelledColumnOptions,
    OutputOptions,
    TextEncoderOptions,
)
from adapt.planning import ALSO, FIT, Estimate, PlanReport
from adapt.pretrained import hub
from adapt.run_folder import check_out, write_json
from adapt.training import strategies

COLUMNS = (
    "strategy",
    "M trained",
    "optimizer MB",
    "peak MB",
    "MFLOP",
    "MFLOP cached",
    "cache MB",
    "seconds",
    "seconds cached",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanDataOptions:
    """The data of the run that is planned."""

    title: ClassVar[str] = "data"
    parameters: ClassVar[Mapping[str, str]] = {"inputs": "data"}

    # what finetune takes as --train
    data: str = "reviews"
    # what finetune takes as --test; default: the test part of a bundled set, else none
    test: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrategiesOptions(FrozenOptions):
    """The strategies, and the cache of what is frozen."""

    title: ClassVar[str] = "strategy"

    # to plan for, besides full, top:K and frozen
    also: tuple[str, ...] = ALSO
    # strategies to run afterwards, to show both
    measure: tuple[str, ...] = ()
    # steps that are timed, of each program
    steps: int = 10
    # of the states that are kept; default: that of the computation
    cache_dtype: CacheDType | None = None
    # GiB that a step may take; default: nine tenths of the device's, and none where it has no figure
    memory: float | None = None
    # the strategy whose micro-batches and remat are fitted to the memory
    fit: str = FIT


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRunOptions(OutputOptions):
    """The seed, and where results go."""

    title: ClassVar[str] = "run"

    out: Path = Path("runs/plan")
    # of the new head and the order of the examples
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    TextEncoderOptions,
    LabelledColumnOptions,
    PlanDataOptions,
    HeadOptions,
    StrategiesOptions,
    BatchOptions,
    PlanRunOptions,
    ImportOptions,
):
    """None means: chosen by the task, the family or the data."""

    checkpoint: str = "minilm"
    # classification, multilabel, regression, or one of your own with a row of outputs an example
    task: str = "classification"


def main(config: Config) -> dict[str, Any]:
    laps = Laps()
    compiling = Compiling()
    check_out(config.out, None, config.overwrite, may_be_remote=True)
    run = finetune_config(config)
    planning.check_task(config.task)
    pretrained = hub.load(run.checkpoint)
    check_measured(config, pretrained.config)
    workload = planning.prepare_workload(
        pretrained,
        config.data,
        None,
        run,
        config.also,
        test=config.test,
        columns=Columns.of(config),
        steps=config.steps,
        seed=config.seed,
    )
    laps.lap("set_up")
    set_up = laps.seconds["set_up"] - compiling.seconds

    with open_run(config.out, config) as folder:
        showing.show_loaded(pretrained)
        console.say(f"computed  {showing.dtype_line(config.dtype)}")
        console.say(f"data      {showing.sizes(workload.sets)}")
        with tempfile.TemporaryDirectory(dir=folder.path) as name:
            plot_seconds = time_plot(Path(name))
            overhead = planning.measure_overhead(Path(name), workload, set_up, plot_seconds)
        fit = planning.fit_to_memory(workload, config.fit, config.memory)
        if fit is not None:
            show_fit(fit, config.frozen_dtype)
        with console.progress("timing", 0) as bar:
            estimates, timings = planning.estimate_strategies(
                workload, config.also, overhead, on_progress=bar.show
            )
        show(config, PlanReport(estimates, timings, overhead, fit))
        measured = {name: run_strategy(folder.path, run, name) for name in config.measure}
        show_measured(estimates, measured)
        finish = dataclasses.asdict(overhead)
        set_up = finish.pop("set_up")
        result = {
            "timings": timings.to_json() | {"set_up": set_up, "finish": finish},
            "strategies": [dataclasses.asdict(estimate) for estimate in estimates],
            "measured": measured,
            "dtype": compute_dtype(config.dtype),
            "fit": None if fit is None else fit.to_json(),
        }
        write_json(folder.path / "plan.json", result)
    return result


def finetune_config(config: Config) -> finetune.Config:
    """The flags of the runs that are planned for: those of ``finetune``."""
    return finetune.Config(
        checkpoint=config.checkpoint,
        max_length=config.max_length,
        image_size=config.image_size,
        long=config.long,
        dtype=config.dtype,
        train=config.data,
        test=config.test,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        label_column=config.label_column,
        image_column=config.image_column,
        quoting=config.quoting,
        task=config.task,
        pooling=config.pooling,
        cache_dtype=config.cache_dtype,
        frozen_dtype=config.frozen_dtype,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        patience=0,  # as many epochs as are planned for
        import_=config.import_,
    )


def check_measured(config: Config, encoder: EncoderConfig) -> None:
    """Raise :class:`StrategyError` for strategies to run that are not planned."""
    for name in config.measure:
        strategies.strategy_for(encoder, name, config.epochs)
    planned = planning.planned_strategies(encoder.own_blocks, config.also)
    for name in config.measure:
        if name not in planned:
            raise StrategyError(f"`measure` {name}: it is not planned; name it in `also` too")


def time_plot(folder: Path) -> float:
    """Seconds of drawing the plot of a run."""
    records = [
        {"step": 1, "loss": 1.0},
        {"step": 1, "validation_loss": 1.0, "validation_accuracy": 0.5},
    ]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    started = time.perf_counter()
    plots.plot_history(folder, "accuracy")
    return time.perf_counter() - started


def show(config: Config, report: PlanReport) -> None:
    """Print the table of all strategies, and a line on each."""
    estimates = report.estimates
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    batches = f"batches of {config.batch_size}"
    title = f"{config.checkpoint} on {config.data}, {epochs} in {batches}"
    console.table(title, COLUMNS, [cells(estimate) for estimate in estimates])
    for estimate in estimates:
        console.say(f"{estimate.strategy:12}{verdict(estimate, report.full)}")
    console.say(
        "MFLOP: matrix products a training example. Seconds: a whole run here, compiling left "
        "out. What is worth it by its accuracy, only a run can say."
    )


def show_fit(fit: MemoryFit, frozen_dtype: str | None = None) -> None:
    """Print what fits the memory, as flags."""
    parts = "at once" if fit.accumulate == 1 else f"{fit.micro_batch} at once"
    console.say(
        f"memory    {fit.strategy}: {fit.batch_size} examples, {parts} ({fit.tokens:,} tokens), "
        f"take {gib(fit.nbytes)} of {gib(fit.memory)} GiB"
    )
    if fit.largest > fit.batch_size:
        console.say(f"          {fit.largest} examples at once would fit")
    flags = f"--batch-size {fit.batch_size} --accumulate {fit.accumulate} --remat {fit.remat}"
    if frozen_dtype is not None:
        flags += f" --frozen-dtype {frozen_dtype}"
    console.say(f"flags     {flags}")


def cells(estimate: Estimate) -> tuple[str, ...]:
    """A row of the table; without a cache its columns are empty."""
    flops_cached = cache_bytes = seconds_cached = ""
    if estimate.seconds_cached is not None:
        flops_cached = f"{estimate.flops_per_example_cached / 1e6:.0f}"
        cache_bytes = f"{estimate.cache_bytes / 1e6:.0f}"
        seconds_cached = f"{estimate.seconds_cached:.0f}"
    return (
        estimate.strategy,
        f"{estimate.parameters_trained / 1e6:.3g}",
        f"{estimate.optimizer_bytes / 1e6:.3g}",
        f"{estimate.peak_bytes / 1e6:.0f}",
        f"{estimate.flops_per_example / 1e6:.0f}",
        flops_cached,
        cache_bytes,
        f"{estimate.seconds:.0f}",
        seconds_cached,
    )


def verdict(estimate: Estimate, full: Estimate) -> str:
    """Whether a strategy is worth it by its cost."""
    if estimate is full:
        return "costs the most"
    if estimate.best < estimate.seconds:
        how = "with the cache"
    elif estimate.cut:
        how = "without the cache, which does not pay"
    else:
        how = "nothing is frozen that could be cached"
    worth = "worth it" if estimate.is_worth_it(full) else "not worth it"
    return f"{worth}: {full.best / estimate.best:.1f} times cheaper than full, {how}"


def run_strategy(folder: Path, run: finetune.Config, name: str) -> dict[str, Any]:
    """The seconds of a strategy's run, in a process of its own, as its result.json has them."""
    out = folder / name.replace(":", "")
    run = dataclasses.replace(run, strategy=name, out=out)
    command = ["adapt", "finetune", *changed_flags(run)]
    console.say(f"running   {' '.join(command)}")
    with console.progress("running", 1):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        raise StrategyError(f"finetune --strategy {name} failed: {done.stderr.strip()[-300:]}")
    return json.loads((out / "result.json").read_text("utf-8"))["seconds"]


def show_measured(estimates: list[Estimate], measured: dict[str, dict[str, Any]]) -> None:
    """Print what was predicted of the runs, and what they took."""
    if not measured:
        return
    rows = []
    for estimate in estimates:
        if estimate.strategy not in measured:
            continue
        seconds = measured[estimate.strategy]
        real = seconds["total"] - seconds["compile"]
        ratio = estimate.best / real
        rows.append((estimate.strategy, f"{estimate.best:.1f}", f"{real:.1f}", f"{ratio:.2f}"))
    columns = ("strategy", "predicted", "measured", "ratio")
    console.table("seconds, compiling left out", columns, rows)

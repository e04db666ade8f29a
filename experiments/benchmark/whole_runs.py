"""What does a whole run cost, from the start of the process to its result, against what users can
pick instead?

    python -m experiments.benchmark.whole_runs --peers torch-venv/bin/python --keras keras-venv/bin/python
    python -m experiments.benchmark.whole_runs --growth        # only: how cost and memory grow with examples and epochs

adapt's runs are real ones: `finetune` as a user starts it, with an empty cache, and once more with
another seed on the cache that is there then; each is done `--rounds` times and the run with the
median time is the one that counts. A peer's run would take hours for all strategies, so it is
computed: its start-up, its steps at the median of what a step took in the rounds, in which all
sides take their steps in turn, and the same validations and test as adapt's at the rate of its
steps with a frozen encoder. The ceiling is the peer's time over the least that adapt's own work
could take: its matrix products at the machine's own rate. Some 65 minutes on 2 cores; leave the
machine alone meanwhile. With --resume, runs of adapt that are done are kept.
"""

import contextlib
import csv
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.cli.run_folder import check_out, open_run, write_json
from adapt.data import packing
from adapt.pretrained import hub
from adapt.pretrained.assets import cache_folder
from experiments.benchmark import benchmark
from experiments.benchmark.workers import Worker, peak_memory


@dataclasses.dataclass(frozen=True)
class Config:
    checkpoint: str = "minilm"  # a BERT folder in the Hugging Face layout, or a bundled name
    data: str = "reviews"
    text_column: str = "text"
    label_column: str = "label"
    peers: Path = Path(
        sys.executable
    )  # the interpreter that has torch, transformers, sentence-transformers
    keras: Path = Path(sys.executable)  # the interpreter that has keras-hub and jax
    strategies: tuple[str, ...] = ("full", "top:2", "top:1", "frozen")
    epochs: int = 5
    batch_size: int = 32
    rounds: int = 5  # that count; one more before them warms up
    steps: int = 10  # of each strategy and side, a round
    sentences: int = 1024  # that sentence-transformers encodes, a round
    growth: bool = False  # measure how cost and memory grow, and nothing else
    sizes: tuple[int, ...] = (1000, 2000, 4000, 8000)  # examples, for --growth
    cores: int = 2
    seed: int = 0
    out: Path = Path("runs/whole_runs")
    overwrite: bool = False
    resume: bool = False


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, config.resume, config.overwrite)
    pretrained, table, train_table = benchmark.read(config)
    with open_run(config.out, config):
        if config.growth:
            result = growth(
                config,
                list(train_table.rows[config.text_column]),
                list(train_table.rows[config.label_column]),
            )
            write_json(config.out / "growth.json", result)
            return result
        _, lengths = benchmark.write_task(config, pretrained, table, train_table)
        own_cache(config)
        real: dict[str, dict[str, list[Any]]] = {name: {} for name in config.strategies}
        rounds: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack:
            workers, libraries, skipped = benchmark.start(config, stack)
            start_up = {name: worker.start_up for name, worker in workers.items()}
            with console.progress("round", config.rounds + 1) as bar:
                for number in range(config.rounds + 1):
                    for name in config.strategies if number else ():
                        for which, run in whole_runs(config, name, number).items():
                            real[name].setdefault(which, []).append(run)
                    found = measure(config, workers, lengths, pretrained, number)
                    rounds += (
                        [{"round": number} | each for each in found] if number else []
                    )  # the first one warms up
                    bar.update(number + 1)
        result = {
            "machine": benchmark.machine(config),
            "libraries": libraries,
            "skipped": skipped,
            "adapt": {
                name: {which: middle(runs) for which, runs in found.items()}
                for name, found in real.items()
            },
            "runs": real,
            "rounds": rounds,
            "start_up": start_up,
            "tested": len(lengths["extract"]) - len(lengths["train"]),
        }
        result["table"] = summary(config, result, pretrained.config, lengths["train"])
        result["encoding_share"] = statistics.median(
            each["share"] for each in rounds if "share" in each
        )
        write_json(config.out / "whole_runs.json", result)
        show(result)
        console.say(f"plot      {plot(config, result)}")
    return result


def own_cache(config: Config) -> None:
    """An ADAPT_CACHE of its own for these runs, which has the assets and compiled programs, but
    nothing of a prefix.
    """
    home = cache_folder()
    own = config.out.absolute() / "cache"
    own.mkdir(exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    for entry in home.iterdir():
        if entry.name != "prefix" and not (own / entry.name).exists():
            (own / entry.name).symlink_to(entry)
    os.environ["ADAPT_CACHE"] = str(own)


def command(config: Config, out: Path, **flags: Any) -> list[str]:
    flags = {
        "checkpoint": config.checkpoint,
        "out": out,
        "batch_size": config.batch_size,
        "patience": 0,
    } | flags
    flags |= {"text_column": config.text_column, "label_column": config.label_column}
    words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items()]
    return [
        sys.executable,
        "-m",
        "adapt",
        "finetune",
        *(word for pair in words for word in pair),
    ]


def whole_runs(config: Config, name: str, number: int) -> dict[str, dict[str, Any]]:
    """The ``number``-th run of a strategy with an empty cache and, where all is frozen, one more
    with another seed on it.
    """
    shutil.rmtree(Path(os.environ["ADAPT_CACHE"]) / "prefix", ignore_errors=True)
    runs = {"first": whole_run(config, name, config.seed, number)}
    return runs | (
        {"second": whole_run(config, name, config.seed + 1, number)} if name == "frozen" else {}
    )


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median time, with the least and the most of all."""
    walls = sorted(run["wall"] for run in runs)
    median = next(run for run in runs if run["wall"] == statistics.median_low(walls))
    return median | {"wall_least": walls[0], "wall_most": walls[-1]}


def whole_run(
    config: Config, name: str, seed: int, number: int = 0, **flags: Any
) -> dict[str, Any]:
    """A run of finetune as a process of its own: seconds from start to end, peak RssAnon in MB, and
    its result.json.
    """
    out = config.out / f"{name.replace(':', '')}-{seed}-{number}"
    noted = config.out / f"{out.name}.json"
    if config.resume and noted.exists():
        return json.loads(noted.read_text("utf-8"))
    flags = {
        "train": config.data,
        "strategy": name,
        "seed": seed,
        "epochs": config.epochs,
        "overwrite": None,
    } | flags
    words = command(
        config, out, **{key: value for key, value in flags.items() if value is not None}
    )
    started = time.perf_counter()
    memory = peak_memory(words, config.out / f"{out.name}.log")
    wall = time.perf_counter() - started
    result = json.loads((out / "result.json").read_text("utf-8"))
    kept = {key: result[key] for key in ("accuracy", "examples_per_second", "seconds", "steps")}
    write_json(noted, found := kept | {"wall": wall, "memory_mb": memory})
    shutil.rmtree(out)  # its checkpoints, of every round, would fill the disk
    return found


def measure(
    config: Config,
    workers: dict[str, Worker],
    lengths: Any,
    pretrained: hub.Pretrained,
    number: int,
) -> list[dict[str, Any]]:
    """Steps of every strategy on every side, in turn; what encoding takes; logistic regressions;
    the machine's rate.
    """
    order = packing.order(len(lengths["train"]), config.seed, number)[
        : config.steps * config.batch_size
    ].tolist()
    found = []
    for name in config.strategies:
        for side, worker in workers.items():
            if side == "keras" and name.startswith("top"):
                continue
            worker.ask("strategy", name=name)
            found.append(
                {"job": name, "side": side} | worker.ask("train", order=order, epoch=number)
            )
    rates = workers["adapt"].ask("rate", sizes=benchmark.SIZES, repeats=benchmark.REPEATS)["rates"]
    rate = max(map(statistics.median, rates.values()))
    every = list(range(len(lengths["extract"])))
    own = workers["adapt"].ask("extract", index=every)
    share = (
        benchmark.forward_flops(pretrained.config, lengths["extract"])
        / own["seconds"]
        / (1e9 * rate)
    )
    found += [
        {"job": "rate", "side": "adapt", "gflops": rate},
        {"job": "encode", "side": "adapt", "share": share} | own,
    ]
    if "torch" in workers:
        index = packing.order(len(every), config.seed, number)[: config.sentences].tolist()
        found.append(
            {"job": "encode", "side": "torch"} | workers["torch"].ask("extract", index=index)
        )
        kept = (Path(os.environ["ADAPT_CACHE"]) / "prefix").glob("*/values.bin")
        size = len(lengths["train"]) * 4 * pretrained.config.width
        for features in [file for file in kept if file.stat().st_size == size][:1]:
            found.append(
                {"job": "probe", "side": "torch"}
                | workers["torch"].ask("probe", features=str(features))
            )
    return found


def summary(
    config: Config, result: dict[str, Any], encoder: Any, lengths: Any
) -> list[dict[str, Any]]:
    """A row a strategy and peer: seconds of both whole runs, their ratio, the ratio of the steps,
    and the ceiling.
    """

    def median(job: str, side: str) -> float | None:
        found = [
            e["seconds"] / e["examples"]
            for e in result["rounds"]
            if (e["job"], e["side"]) == (job, side)
        ]
        return statistics.median(found) if found else None

    rate = 1e9 * statistics.median(e["gflops"] for e in result["rounds"] if e["job"] == "rate")
    once = benchmark.forward_flops(encoder, lengths)
    held = 0.1 * len(lengths)  # for validation
    trained = (len(lengths) - held) * config.epochs
    evaluated = held * config.epochs + result["tested"]
    rows: list[dict[str, Any]] = []
    for name in config.strategies:
        first = result["adapt"][name]["first"]
        kept = name.startswith("top:") and int(name[4:])
        # The least that has to be multiplied: the prefix once, the suffix three times in every
        # epoch and once to evaluate.
        share = (encoder.layers if name == "full" else kept or 0) / encoder.layers
        passes = (1 - share) * (len(lengths) + result["tested"]) + share * (3 * trained + evaluated)
        least = once / len(lengths) * passes
        own = median(name, "adapt")
        for side in ("torch", "keras"):
            if (step := median(name, side)) is None:
                continue
            forward = (
                median("frozen", side) or 0.0
            )  # a step of a head on a frozen encoder is a forward pass
            whole = result["start_up"][side] + trained * step + evaluated * forward
            row = {
                "strategy": name,
                "peer": benchmark.JOBS["train"][1][side],
                "seconds": first["wall"],
                "peer_seconds": whole,
            }
            row |= {"ratio": whole / first["wall"], "steps_ratio": step / own if own else None}
            rows.append(row | {"ceiling": whole / (least / rate), "matmul_gflops": rate / 1e9})
            if "second" in result["adapt"][name]:
                again = result["adapt"][name]["second"]
                computed = whole - result["start_up"][side]  # start-up counted in neither
                rows[-1]["second_ratio"] = computed / (
                    again["seconds"]["total"] - again["seconds"]["set_up"]
                )
    encode = median("encode", "torch")
    fit = median("probe", "torch")
    if encode and fit and "frozen" in result["adapt"]:
        whole = (
            result["start_up"]["torch"]
            + encode * (len(lengths) + result["tested"])
            + fit * len(lengths)
        )
        first = result["adapt"]["frozen"]["first"]
        row = {
            "strategy": "frozen",
            "peer": "sentence-transformers + logistic regression",
            "seconds": first["wall"],
        }
        rows.append(
            row
            | {
                "peer_seconds": whole,
                "ratio": whole / first["wall"],
                "ceiling": whole / (once * (1 + result["tested"] / len(lengths)) / rate),
            }
        )
    return rows


def show(result: dict[str, Any]) -> None:
    cell = lambda value, form: "" if value is None else format(value, form)
    rows = []
    for row in result["table"]:
        numbers = [
            cell(row.get(key), form)
            for key, form in (("seconds", ".0f"), ("peer_seconds", ".0f"), ("ratio", ".1f"))
        ]
        more = [cell(row.get(key), ".1f") for key in ("ceiling", "steps_ratio", "second_ratio")]
        rows.append((row["strategy"], row["peer"], *numbers, *more))
    columns = (
        "strategy",
        "against",
        "adapt s",
        "peer s",
        "ratio",
        "ceiling",
        "steps alone",
        "second run",
    )
    console.table("whole runs", columns, rows)
    console.say(f"encoding reaches {result['encoding_share']:.0%} of the machine's matrix products")


def plot(config: Config, result: dict[str, Any]) -> Path:
    """Seconds of a whole run by strategy, a bar a side on a logarithmic scale, ratios on the peers'
    bars.
    """
    bars: list[tuple[str, str, float, str, str]] = []
    for name in config.strategies:
        run = result["adapt"][name]
        bars.append(
            (
                f"{name}   adapt",
                name,
                run["first"]["wall"],
                "#4477aa",
                f"{run['first']['wall']:.0f} s",
            )
        )
        if "second" in run:
            again = run["second"]["wall"]
            bars.append(
                ("same cache, another seed   adapt", name, again, "#88bbdd", f"{again:.0f} s")
            )
        for row in (row for row in result["table"] if row["strategy"] == name):
            text = f"{row['peer_seconds']:.0f} s, {row['ratio']:.1f} times adapt's"
            bars.append((row["peer"], name, row["peer_seconds"], "#bbbbbb", text))
    figure, axes = plots.figure(size=(8.5, 0.42 * len(bars) + 1.1))
    axis = axes[0, 0]
    place = 0.0
    places = []
    for number, bar in enumerate(bars):
        place += 1.5 if number and bar[1] != bars[number - 1][1] else 1.0
        places.append(place)
    drawn = axis.barh(places, [bar[2] for bar in bars], color=[bar[3] for bar in bars], height=0.8)
    axis.bar_label(drawn, [bar[4] for bar in bars], padding=4, fontsize=9)
    axis.set_yticks(places, [bar[0] for bar in bars], fontsize=9)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(1, max(bar[2] for bar in bars) * 8)
    cores = result["machine"]["cores"]
    axis.set_xlabel(
        f"seconds of a whole run: {config.checkpoint} on {config.data}, {config.epochs} epochs, "
        f"{cores} cores"
    )
    return plots.save(figure, config.out / "whole_runs.png")


def growth(config: Config, texts: list[str], labels: list[Any]) -> dict[str, Any]:
    """Seconds and peak RssAnon of top:1 with the cache: for one epoch of more and more examples,
    and for more epochs.
    """
    own_cache(config)
    test = write_csv(config.out / "test.csv", texts[:200], labels[:200])
    found: dict[str, list[dict[str, Any]]] = {"examples": [], "epochs": []}
    plans = [("examples", size, 1) for size in config.sizes] + [
        ("epochs", config.sizes[1], n) for n in (1, 2, 4, 8)
    ]
    with console.progress("runs", len(plans)) as bar:
        for number, (what, size, epochs) in enumerate(plans, 1):
            data = write_csv(config.out / f"{size}.csv", texts[:size], labels[:size])
            flags = {
                "train": data,
                "test": test,
                "cache": "on",
                "overwrite": None,
                "epochs": epochs,
            }
            run = whole_run(config, "top:1", 100 + number, **flags)
            found[what].append({"examples": size, "epochs": epochs} | run)
            bar.update(number)
    for what, runs in found.items():
        rows = []
        for run in runs:
            seconds = run["seconds"]
            parts = (seconds["encode"], seconds["train"] - seconds["compile"], seconds["evaluate"])
            shown = [f"{part:.1f}" for part in parts]
            rows.append(
                (
                    run["examples"],
                    run["epochs"],
                    *shown,
                    f"{run['wall']:.0f}",
                    f"{run['memory_mb']:.0f}",
                )
            )
        columns = (
            "examples",
            "epochs",
            "encode s",
            "train s",
            "evaluate s",
            "wall s",
            "RssAnon MB",
        )
        console.table(f"more {what}, top:1 with the cache", columns, rows)
    return found


def write_csv(path: Path, texts: list[str], labels: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text", "label"], *zip(texts, labels, strict=True)])
    return path


if __name__ == "__main__":
    launch(Config, main)

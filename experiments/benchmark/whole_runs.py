"""What does a whole run cost, from the start of the process to its result, against what users can
pick instead?

    python -m experiments.benchmark.whole_runs --peers torch/bin/python \\
        --keras keras/bin/python --tables docs/tables
    python -m experiments.benchmark.whole_runs --growth

adapt's runs are real ones: `adapt finetune` as a user starts it, with an empty cache, and once more
with another seed on the cache that is there then; each is done `--rounds` times and the run with
the median time is the one that counts. A peer's run would take hours for all strategies, so it is
computed: its start-up, its steps at the median of what a step took in the rounds, in which all
sides take their steps in turn, and the same validations and test as adapt's at the rate of its
steps with a frozen encoder. The ceiling is the peer's time over the least that adapt's own work
could take: its matrix products at the machine's own rate. Some 65 minutes on 2 cores; leave the
machine alone meanwhile. With --resume, runs of adapt that are done are kept. With --growth, how
cost and memory grow with examples and epochs is measured, and nothing else.
"""

import contextlib
import dataclasses
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapt.cli import console
from adapt.cli.launch import launch
from adapt.cli.run_folder import open_run
from adapt.data import packing
from adapt.models import EncoderConfig
from adapt.options import HELD_OUT
from adapt.run_folder import check_out, write_json
from experiments.benchmark import growth, sides, whole_runs_report
from experiments.benchmark.finetune_runs import prefix_folder, use_own_cache, whole_run
from experiments.benchmark.options import WholeRunOptions
from experiments.benchmark.workers import Worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(growth.GrowthRun):
    """The flags of the command."""

    out: Path = Path("runs/whole_runs")


def main(config: Config) -> dict[str, Any]:
    check_out(config.out, config.resume, config.overwrite)
    source = sides.read(config)
    with open_run(config.out, config):
        if config.growth:
            rows = source.train_table.rows
            texts = list(rows[config.text_column])
            return growth.main(config, texts, list(rows[config.label_column]))
        task = sides.write_task(config, source)
        use_own_cache(config.out)
        encoder = source.pretrained.config
        with contextlib.ExitStack() as stack:
            started = sides.start(config, config.batch_size, sides.trainers(config), stack)
            runs, rounds = take_rounds(config, started.workers, encoder, task.lengths)
        start_up = {name: worker.start_up for name, worker in started.workers.items()}
        median_runs = {}
        for strategy, of_strategy in runs.items():
            median_runs[strategy] = {which: middle(found) for which, found in of_strategy.items()}
        result = {
            "machine": sides.machine(config.cores),
            "libraries": started.libraries,
            "skipped": started.skipped,
            "adapt": median_runs,
            "runs": runs,
            "rounds": rounds,
            "start_up": start_up,
            "tested": len(task.lengths["extract"]) - len(task.lengths["train"]),
        }
        result["table"] = summary(config, result, encoder, task.lengths["train"])
        shares = [entry["share"] for entry in rounds if "share" in entry]
        result["encoding_share"] = statistics.median(shares)
        write_json(config.out / "whole_runs.json", result)
        whole_runs_report.show(result)
        console.say(f"plot      {whole_runs_report.plot(config, result)}")
        whole_runs_report.write_tables(config, result, len(task.lengths["train"]))
    return result


# By strategy, the ``first`` runs, with an empty cache, and the ``second`` ones.
Runs = dict[str, dict[str, list[dict[str, Any]]]]


def take_rounds(
    config: Config,
    workers: Mapping[str, Worker],
    encoder: EncoderConfig,
    lengths: Mapping[str, np.ndarray],
) -> tuple[Runs, list[dict[str, Any]]]:
    """(whole runs of adapt, entries of what all sides did in turn). Round 0 warms up: it has no
    whole runs, and its entries are left out.
    """
    runs: Runs = {strategy: {} for strategy in config.strategies}
    rounds = []
    with console.progress("round", config.rounds + 1) as bar:
        for number in range(config.rounds + 1):
            if number > 0:
                for strategy in config.strategies:
                    for which, run in runs_of_round(config, strategy, number).items():
                        runs[strategy].setdefault(which, []).append(run)
            entries = measure(config, workers, encoder, lengths, number)
            if number > 0:
                rounds += [{"round": number} | entry for entry in entries]
            bar.update(number + 1)
    return runs, rounds


def runs_of_round(config: Config, strategy: str, number: int) -> dict[str, dict[str, Any]]:
    """The ``number``-th run of a strategy with an empty cache and, where all is frozen, one more
    with another seed on it.
    """
    shutil.rmtree(prefix_folder(), ignore_errors=True)
    runs = {"first": whole_run(config, strategy, config.seed, number)}
    if strategy == "frozen":
        runs["second"] = whole_run(config, strategy, config.seed + 1, number)
    return runs


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median time, with the least and the most of all."""
    walls = sorted(run["wall"] for run in runs)
    median_wall = statistics.median_low(walls)
    median_run = next(run for run in runs if run["wall"] == median_wall)
    return median_run | {"wall_least": walls[0], "wall_most": walls[-1]}


def measure(
    config: Config,
    workers: Mapping[str, Worker],
    encoder: EncoderConfig,
    lengths: Mapping[str, np.ndarray],
    number: int,
) -> list[dict[str, Any]]:
    """Entries of one round: steps of every strategy on every side, in turn; the machine's rate;
    what encoding takes; logistic regressions.
    """
    order = packing.order(len(lengths["train"]), config.seed, number)
    order = order[: config.steps * config.batch_size].tolist()
    entries = []
    for strategy in config.strategies:
        for side, worker in workers.items():
            if side == "keras" and strategy.startswith("top"):
                continue
            worker.ask("strategy", name=strategy)
            answer = worker.ask("train", order=order, epoch=number)
            entries.append({"job": strategy, "side": side} | answer)

    adapt = workers["adapt"]
    rates = adapt.ask("rate", sizes=sides.SIZES, repeats=sides.REPEATS)["rates"]
    rate = max(statistics.median(of_size) for of_size in rates.values())
    entries.append({"job": "rate", "side": "adapt", "gflops": rate})
    num_texts = len(lengths["extract"])
    encoded = adapt.ask("extract", index=list(range(num_texts)))
    flops = sides.forward_flops(encoder, lengths["extract"])
    share = flops / encoded["seconds"] / (1e9 * rate)
    entries.append({"job": "encode", "side": "adapt", "share": share} | encoded)
    if "torch" in workers:
        chosen = packing.order(num_texts, config.seed, number)[: config.sentences].tolist()
        feature_bytes = len(lengths["train"]) * 4 * encoder.width
        entries += measure_torch(workers["torch"], chosen, feature_bytes)
    return entries


def measure_torch(torch: Worker, chosen: list[int], feature_bytes: int) -> list[dict[str, Any]]:
    """What sentence-transformers takes for the ``chosen`` texts, and scikit-learn for the features
    of the training set, if a run of adapt has left them: a file of ``feature_bytes``.
    """
    encoded = torch.ask("extract", index=chosen)
    entries = [{"job": "encode", "side": "torch"} | encoded]
    for features in prefix_folder().glob("*/values.bin"):
        if features.stat().st_size == feature_bytes:
            fitted = torch.ask("probe", features=str(features))
            entries.append({"job": "probe", "side": "torch"} | fitted)
            break
    return entries


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much a run does: its examples, and FLOPs of one pass over the training set."""

    examples: int
    epochs: int
    tested: int
    pass_flops: float

    @property
    def trained(self) -> float:
        """Examples that are trained on, in all epochs."""
        return (1 - HELD_OUT) * self.examples * self.epochs

    @property
    def evaluated(self) -> float:
        """Examples that are validated or tested on, in all epochs."""
        return HELD_OUT * self.examples * self.epochs + self.tested

    def least_flops(self, trained_share: float) -> float:
        """The least that has to be multiplied where this share of the encoder trains: what is below
        once, the rest three times in every epoch and once to evaluate.
        """
        once = (1 - trained_share) * (self.examples + self.tested)
        again = trained_share * (3 * self.trained + self.evaluated)
        return self.pass_flops / self.examples * (once + again)


def summary(
    config: WholeRunOptions, result: Mapping[str, Any], encoder: EncoderConfig, lengths: np.ndarray
) -> list[dict[str, Any]]:
    """A row a strategy and peer: seconds of both whole runs, their ratio, the ratio of the steps,
    and the ceiling.
    """
    pass_flops = sides.forward_flops(encoder, lengths)
    amounts = Amounts(len(lengths), config.epochs, result["tested"], pass_flops)
    rates = [entry["gflops"] for entry in result["rounds"] if entry["job"] == "rate"]
    rate = 1e9 * statistics.median(rates)
    rows = []
    for strategy in config.strategies:
        least = amounts.least_flops(trained_share(strategy, encoder.layers)) / rate
        for side in ("torch", "keras"):
            row = peer_row(result, strategy, side, amounts, least)
            if row is not None:
                rows.append(row | {"matmul_gflops": rate / 1e9})
    if "frozen" in result["adapt"]:
        row = features_row(result, amounts, rate)
        if row is not None:
            rows.append(row)
    return rows


def trained_share(strategy: str, layers: int) -> float:
    """The share of an encoder's blocks that train."""
    if strategy == "full":
        return 1.0
    if strategy.startswith("top:"):
        return int(strategy.removeprefix("top:")) / layers
    return 0.0


def example_seconds(result: Mapping[str, Any], job: str, side: str) -> float | None:
    """The seconds that a side takes for an example, the median over the rounds; None where it was
    not measured.
    """
    measured = []
    for entry in result["rounds"]:
        if (entry["job"], entry["side"]) == (job, side):
            measured.append(entry["seconds"] / entry["examples"])
    return statistics.median(measured) if measured else None


def peer_row(
    result: Mapping[str, Any], strategy: str, side: str, amounts: Amounts, least: float
) -> dict[str, Any] | None:
    """adapt's run against a peer's, which is computed; None where the peer took no such steps.

    ``least`` are the seconds of adapt's own matrix products.
    """
    step = example_seconds(result, strategy, side)
    if step is None:
        return None
    # A step of a head on a frozen encoder is a forward pass.
    forward = example_seconds(result, "frozen", side) or 0.0
    start_up = result["start_up"][side]
    computed = amounts.trained * step + amounts.evaluated * forward
    whole = start_up + computed
    wall = result["adapt"][strategy]["first"]["wall"]
    own_step = example_seconds(result, strategy, "adapt")
    row = {
        "strategy": strategy,
        "peer": sides.JOBS["train"].sides[side],
        "seconds": wall,
        "peer_seconds": whole,
        "ratio": whole / wall,
        "steps_ratio": step / own_step if own_step else None,
        "ceiling": whole / least,
    }
    if "second" in result["adapt"][strategy]:
        seconds = result["adapt"][strategy]["second"]["seconds"]
        # The start-up is counted in neither.
        row["second_ratio"] = computed / (seconds["total"] - seconds["set_up"])
    return row


def features_row(result: Mapping[str, Any], amounts: Amounts, rate: float) -> dict[str, Any] | None:
    """adapt's frozen run against features of sentence-transformers and a logistic regression; None
    where those were not measured. ``rate`` is the machine's, in FLOP/s.
    """
    encode = example_seconds(result, "encode", "torch")
    fit = example_seconds(result, "probe", "torch")
    if not encode or not fit:
        return None
    encoded = amounts.examples + amounts.tested
    whole = result["start_up"]["torch"] + encode * encoded + fit * amounts.examples
    wall = result["adapt"]["frozen"]["first"]["wall"]
    return {
        "strategy": "frozen",
        "peer": "sentence-transformers + logistic regression",
        "seconds": wall,
        "peer_seconds": whole,
        "ratio": whole / wall,
        "ceiling": whole / (amounts.least_flops(0.0) / rate),
    }


if __name__ == "__main__":
    launch(Config, main)

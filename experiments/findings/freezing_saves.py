"""What freezing while training saves: FLOPs, seconds, and what it costs in accuracy.

    python -m experiments.findings.freezing_saves --short
    python -m experiments.findings.freezing_saves --docs docs

Liu, Agarwal and Venkataraman 2021 (AutoFreeze): layers are frozen from below as training goes on,
and what they make of the data is kept: quicker, without loss of accuracy, where freezing all but
the last layer from the start loses some.
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

import adapt
from adapt.cli import console, plots
from adapt.cli.launch import launch
from adapt.comparison.material import Material
from adapt.comparison.trained import Seconds
from adapt.cost import flops
from adapt.run_folder import write_json
from adapt.training.strategies import as_text
from experiments.benchmark.finetune_runs import use_own_cache
from experiments.findings.cells import REVIEWS, FindingConfig, Setting, fit, some_rows
from experiments.study.options import same_flags
from experiments.study.page import Claim, Figure, Page, Table, has_flags_of, publish, source_of
from experiments.study.scores import Score, as_plain, score_of, with_interval

LAYERS = 6
# The sides by what trains in each of three epochs.
FREEZING = "freezing"
SIDES = {
    "full": ("full", "full", "full"),
    FREEZING: ("full", "top:2", "top:2"),
    "top:3": ("top:3", "top:3", "top:3"),
    "top:1": ("top:1", "top:1", "top:1"),
    "frozen": ("frozen", "frozen", "frozen"),
}
# The stages that are frozen, of the embedding and 6 blocks.
DEPTHS = {"full": 0, "top:3": 4, "top:2": 5, "top:1": 6, "frozen": 7}
TOLERANCE = 0.02  # of accuracy: what counts as no loss
ROUNDS = 3  # of timed runs, in turn
TIMED_ROWS = 300  # of a timed run, other ones in each round, so that nothing is kept from before
COLUMNS = (
    "strategy",
    "test accuracy (95% interval)",
    "TFLOP of a fit",
    "with the cache",
    "by the compiler",
    "seconds",
    "with the cache",
    "times as quick as full",
)
TITLE = "What freezing saves"
QUESTION = (
    "[AutoFreeze (Liu, Agarwal and Venkataraman 2021)](https://arxiv.org/abs/2102.01386) freezes "
    "layers as training goes on and keeps what they make of the data. By its abstract that is up to "
    "2.55 times as quick on one GPU without a loss of accuracy, while freezing all but the last "
    "layer from the start loses some. What do both give and take here?"
)
CAPTION = (
    "Test accuracy by the FLOPs of a fit; open marks compute what is frozen in every step, full "
    "ones once. Bars are 95% intervals over seeds and test examples."
)
WHY: Sequence[str] = (
    "Freezing after the first epoch saves two fifths of the seconds that training everything takes. "
    "What is kept of the frozen blocks is a part of that, .15 of freezing's seconds as the mean of "
    "three rounds, too few to decide it.",
    "It loses .007 of accuracy, uncertain by .03. All but the last block frozen from the start loses "
    ".043 and takes a quarter of the time. By the means three blocks frozen from the start are a little "
    "quicker than freezing on the way and a little worse, which has no claim here.",
)
METHOD = (
    "`freezing` trains everything for one epoch, then the last two of six blocks and the head for "
    "two; the other strategies are the same for all three epochs. Each seed draws {labels} of 1,500 "
    "film reviews, the same for every strategy; a fifth of them choose the rate, the usual one or "
    "three times that, and the best epoch. Batches have 16 examples, and the test {rows} reviews.",
    "FLOPs are of the steps of one fit, counted by hand, without the head: the frozen stages once an "
    "epoch, or with the cache once. Beside them is what `adapt.compare` counts of the same fit: its steps "
    "by the compiler, and once the states of what is frozen from the start, of the fifth that chooses, "
    "too.",
    "Seconds are of `adapt.finetune` on {timed} reviews, from the data to the finished run, without "
    "compiling: medians of {rounds} rounds after a run of each side that is not timed. Each round has "
    "reviews of its own, so that none finds what another one kept, and begins with another side. A "
    "saving's interval is over the rounds.",
)
DIFFERS = (
    "The time to freeze is fixed, after one epoch; AutoFreeze finds it by the gradients.",
    "An encoder of 6 layers and short sentences on 2 CPU cores, in place of BERT base on GPUs.",
    "A few hundred labels, in place of whole data sets, so that a run is little more than its steps.",
    'No loss of accuracy is read as "less than two points": the abstract sets no bound.',
)

Cache = Literal["on", "off"]
# The runs that are timed: a side, and whether it keeps what is frozen. `full` has nothing to keep.
TIMED: tuple[tuple[str, Cache], ...] = (
    ("full", "off"),
    (FREEZING, "off"),
    (FREEZING, "on"),
    ("top:3", "off"),
    ("top:3", "on"),
    ("top:1", "off"),
    ("top:1", "on"),
    ("frozen", "off"),
    ("frozen", "on"),
)


@dataclasses.dataclass(frozen=True)
class Side:
    """What a strategy gives and takes."""

    score: Score
    flops: float  # of a fit, what is frozen computed in every step
    flops_cached: float  # and once
    compiled: float  # of the fit of a comparison, by the compiler
    seconds: Sequence[float]  # of a run in each round
    seconds_cached: Sequence[float]  # [] where nothing is frozen

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self) | {"score": self.score.plain}


def main(config: FindingConfig) -> dict[str, Any]:
    config.check_layers(LAYERS)
    setting = config.of(REVIEWS)
    (budget,) = setting.budgets
    seconds = timed(config)
    sides = {}
    for name, phases in SIDES.items():
        fits = fit(
            config.checkpoint,
            strategy_of(name),
            setting,
            config.cells,
            resume=config.resume,
            overwrite=config.overwrite,
            name=f"{setting.data}-{budget}-{name.replace(':', '')}",
        )
        found = fits.of_budget(budget)
        steps = found[0].labelled * 4 // 5
        sides[name] = Side(
            score=fits.score(budget),
            flops=fit_flops(fits.material, phases, steps, cache="off"),
            flops_cached=fit_flops(fits.material, phases, steps, cache="on"),
            compiled=float(np.mean([cell.flops for cell in found])),
            seconds=seconds[f"{name} off"],
            seconds_cached=seconds.get(f"{name} on", []),
        )
    result = as_plain(sides)
    publish(page(config, setting, sides), result, config)
    return result


def strategy_of(name: str) -> str:
    """The strategy of a side, as the library takes it."""
    return freezing() if name == FREEZING else name


@functools.cache
def freezing() -> str:
    """Phases that train everything for an epoch, then the last two blocks."""
    first = adapt.strategy("full", LAYERS, epochs=1).phases[0]
    second = adapt.strategy("top:2", LAYERS, epochs=2).phases[0]
    return as_text(adapt.Strategy((first, second), shared_schedule=True))


def fit_flops(material: Material, phases: Sequence[str], examples: int, cache: Cache) -> float:
    """FLOPs of a fit of so many examples an epoch, by hand.

    With the cache what is frozen is computed once for epochs that freeze the same.
    """
    config = material.pretrained.config
    tokens = material.train.tokens_per_example
    span = material.train.tokens_per_sequence
    total = 0.0
    for number, phase in enumerate(phases):
        depth = DEPTHS[phase]
        total += flops.step_flops(config, depth, tokens, span)
        is_kept = cache == "on" and phase in phases[:number]
        if not is_kept:
            total += flops.prefix_flops(config, depth, tokens, span)
    return total * examples


def timed(config: FindingConfig) -> dict[str, list[float]]:
    """The seconds of a run in each round, by side and cache; with ``resume`` those that are there."""
    rows = 64 if config.short else TIMED_ROWS
    folder = config.cells / "freezing_seconds"
    flags = {"checkpoint": config.checkpoint, "rows": rows, "rounds": ROUNDS}
    program = "experiments.findings.freezing_saves"
    same_flags(folder, program, flags, resume=config.resume, overwrite=config.overwrite)
    path = folder / "seconds.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    texts, labels = some_rows("reviews", "train", (ROUNDS + 1) * rows)
    rounds = 1 if config.short else ROUNDS
    with empty_cache(folder):
        seconds = timed_rounds(config.checkpoint, texts, labels, rows, rounds)
    write_json(path, seconds)
    return seconds


@contextlib.contextmanager
def empty_cache(folder: Path) -> Iterator[None]:
    """ADAPT_CACHE is a folder in which no run has kept states of a prefix yet."""
    before = os.environ.get("ADAPT_CACHE")
    shutil.rmtree(folder / "cache", ignore_errors=True)  # of a run that was interrupted
    use_own_cache(folder)
    try:
        yield
    finally:
        del os.environ["ADAPT_CACHE"]
        if before is not None:
            os.environ["ADAPT_CACHE"] = before


def timed_rounds(
    checkpoint: str, texts: Sequence[str], labels: Sequence[str], rows: int, rounds: int
) -> dict[str, list[float]]:
    """The seconds of a run in each of ``rounds``, by side and cache, on ``rows`` other texts each."""
    spare = slice(ROUNDS * rows, None)
    for name, cache in TIMED:  # the first run of a side traces its programs
        console.say(f"seconds   not timed, {name}, cache {cache}")
        seconds_of(checkpoint, name, texts[spare], labels[spare], cache)
    seconds: dict[str, list[float]] = {f"{name} {cache}": [] for name, cache in TIMED}
    for number in range(rounds):
        part = slice(number * rows, (number + 1) * rows)
        for name, cache in turned(number):
            console.say(f"seconds   round {number + 1}, {name}, cache {cache}")
            found = seconds_of(checkpoint, name, texts[part], labels[part], cache)
            seconds[f"{name} {cache}"].append(found)
    return seconds


def turned(number: int) -> list[tuple[str, Cache]]:
    """The runs of a round in its order: every round begins a third further on, so that no run is
    early, or late, in all of them.
    """
    first = number * len(TIMED) // ROUNDS
    return [*TIMED[first:], *TIMED[:first]]


def seconds_of(
    checkpoint: str, name: str, texts: Sequence[str], labels: Sequence[str], cache: Cache
) -> float:
    """Seconds of one run of three epochs, without compiling."""
    seconds = Seconds()
    adapt.finetune(
        checkpoint,
        list(texts),
        list(labels),
        strategy=strategy_of(name),
        cache=cache,
        epochs=3,
        batch_size=16,
        max_length=64,
    )
    return seconds()


def saving(quicker: Sequence[float], slower: Sequence[float]) -> Score:
    """The share of seconds that is saved, the mean over rounds."""
    shares = 1 - np.array(quicker) / np.array(slower)
    return score_of(shares[:, None])


def claims(sides: Mapping[str, Side]) -> list[Claim]:
    """What the abstract says."""
    full = sides["full"]
    froze = sides[FREEZING]
    loss = froze.score - full.score
    return [
        Claim(
            "freezing while training, with the cache, is quicker",
            "share of full's seconds saved",
            saving(froze.seconds_cached, full.seconds),
        ),
        Claim(
            "keeping the states saves time beyond freezing",
            "share of freezing's seconds saved by the cache",
            saving(froze.seconds_cached, froze.seconds),
        ),
        Claim(
            "freezing while training loses no accuracy, or less than 2 points",
            "freezing - full + .02",
            loss.shifted(TOLERANCE),
        ),
        Claim(
            "freezing all but the last layer from the start loses accuracy",
            "full - top:1",
            full.score - sides["top:1"].score,
        ),
    ]


def table_rows(sides: Mapping[str, Side]) -> list[tuple[str, ...]]:
    """A row a side, as :data:`COLUMNS` names its values."""
    full = statistics.median(sides["full"].seconds)
    rows = []
    for name, side in sides.items():
        plain = statistics.median(side.seconds)
        cached = statistics.median(side.seconds_cached) if side.seconds_cached else plain
        has_cache = bool(side.seconds_cached)
        rows.append(
            (
                name,
                with_interval(side.score),
                f"{side.flops / 1e12:.2f}",
                f"{side.flops_cached / 1e12:.2f}" if has_cache else "",
                f"{side.compiled / 1e12:.2f}",
                f"{plain:.1f}",
                f"{cached:.1f}" if has_cache else "",
                f"{full / cached:.1f}",
            )
        )
    return rows


def page(config: FindingConfig, setting: Setting, sides: Mapping[str, Side]) -> Page:
    """The page of the finding."""
    sizes = {
        "labels": setting.budgets[0],
        "rows": setting.test_rows,
        "timed": TIMED_ROWS,
        "rounds": ROUNDS,
    }
    return Page(
        name="freezing_saves",
        title=TITLE,
        question=QUESTION,
        claims=claims(sides),
        why=WHY if has_flags_of(config, FindingConfig()) else (),
        figure=Figure(plot(sides, config.checkpoint), CAPTION),
        tables=[Table(COLUMNS, table_rows(sides), right=7, title="What freezing gives and takes")],
        method=[paragraph.format(**sizes) for paragraph in METHOD],
        differs=DIFFERS,
        source=source_of(
            "experiments.findings.freezing_saves",
            config,
            f"{config.checkpoint}, test accuracy, mean of {setting.seeds} seeds",
        ),
    )


def plot(sides: Mapping[str, Side], checkpoint: str) -> Any:
    """The accuracy by FLOPs, without the cache and with it."""
    drawn, axes = plots.figure(size=(7, 3.8))
    axis = axes[0, 0]
    colours = dict(zip(sides, (*plots.COLOURS, plots.GREY), strict=True))
    for name, side in sides.items():
        low, high = side.score.interval
        value = side.score.value
        colour = colours[name]
        plain = side.flops / 1e12
        cached = side.flops_cached / 1e12
        axis.plot([cached, plain], [value, value], color=colour, lw=1)
        axis.plot(plain, value, "o", color=colour, mfc="white", ms=6)
        bars = [[max(value - low, 0)], [max(high - value, 0)]]
        axis.errorbar(cached, value, bars, fmt="o", color=colour, ms=6, capsize=2, label=name)
    axis.set_xlim(left=0)
    axis.set_xlabel("TFLOP of a fit (open: what is frozen is computed in every step)")
    axis.set_ylabel("test accuracy")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axis.set_title(f"{checkpoint} on film reviews: what freezing saves", fontsize=11)
    return drawn


if __name__ == "__main__":
    launch(FindingConfig, main)

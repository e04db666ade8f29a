"""The fits that findings share: strategies on a bundled set, by budgets and seeds.

    fits = fit("minilm", "top:1", Setting(data="reviews", budgets=(500,)), folder, resume=True, overwrite=False)
    fits.score(500)                  # the test accuracy
    fits.score(500, test="amazon")   # on another set, of ``also_test``

Each strategy of a setting has a folder, the same for every finding: with ``resume`` what one
finding fitted is there for the next.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import adapt
from adapt.cli import console
from adapt.comparison import intervals
from adapt.comparison.cells import Cell, Cells
from adapt.comparison.comparing import prepare
from adapt.comparison.material import Material, draw_rows, scored_names, targets_of
from adapt.comparison.options import CompareOptions
from adapt.data import bundled
from adapt.data.bundled.columns import Columns
from adapt.errors import StrategyError
from adapt.options import FinetuningOptions
from adapt.run_folder import check_out
from experiments.study.options import StudyRunOptions
from experiments.study.scores import Score

SEED = 0  # of the draw of rows, the same for every seed of fits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Data, tuning and seeds of fits. Those of equal settings are the same fits."""

    data: str  # a bundled set
    budgets: tuple[int, ...]  # labelled examples, a fifth of which choose
    train_rows: int | None = None  # of the training part, from which seeds draw; None: all
    test_rows: int = 500
    also_test: tuple[str, ...] = ()  # bundled sets that are tested on, too
    task: str = "classification"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of FinetuningOptions
    epochs: int = 3
    min_steps: int = 60
    batch_size: int = 16
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)
    seeds: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingOptions:
    """What is adapted, and how often."""

    title: ClassVar[str] = "finding"

    # the encoder
    checkpoint: str = "minilm"
    # each draws other examples, another head and another order
    seeds: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingRunOptions(StudyRunOptions):
    """Where results go. With ``resume`` the fits of other findings in the folder are used."""

    # the folder to write, the same for all findings
    out: Path = Path("runs/findings")

    @property
    def cells(self) -> Path:
        """The folder of the fits."""
        return self.folder / "cells"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindingConfig(FindingOptions, FindingRunOptions):
    """The flags of the command of a finding."""

    def of(self, setting: Setting) -> Setting:
        """The setting with these options."""
        setting = dataclasses.replace(setting, seeds=self.seeds)
        return short(setting) if self.short else setting

    def check_layers(self, layers: int) -> None:
        """Raise :class:`StrategyError` for an encoder of another depth than the finding's tables."""
        found = adapt.load(self.checkpoint).config.layers
        if found != layers:
            raise StrategyError(
                f"`checkpoint` {self.checkpoint} has {found} layers, and what this finding trains "
                f"and shows is of {layers}: give another one"
            )


def short(setting: Setting) -> Setting:
    """A small part of a setting: 2 seeds, 64 labels of 300, 100 test rows, 3 epochs."""
    return dataclasses.replace(
        setting, seeds=2, budgets=(64,), train_rows=300, test_rows=100, min_steps=6
    )


# Film reviews, tested on three other domains as well. The fits are short, so a rate below the usual
# one is not among those that every side chooses of.
REVIEWS = Setting(
    data="reviews",
    budgets=(320,),
    train_rows=1500,
    test_rows=400,
    also_test=("amazon", "tweets", "nyt"),
    options={"max_length": 64},
    rates=(1.0, 3.0),
    min_steps=48,
)


@dataclasses.dataclass(frozen=True)
class Fits:
    """The fits of one strategy."""

    strategy: str
    seeds: int
    material: Material
    cells: Cells

    def of_budget(self, budget: int) -> list[Cell]:
        """The cells of a budget, one a seed."""
        return [self.cells.done[self.key(budget, seed)] for seed in range(self.seeds)]

    def score(self, budget: int, test: str = "test", metric: str | None = None) -> Score:
        """A metric on a test set, by default the task's own: scores of equal tests are paired."""
        metric = metric or self.material.metric
        by_seed = [cell.scores[test][metric] for cell in self.of_budget(budget)]
        values = np.array(by_seed, np.float64)
        tests = [self.outputs_and_targets(budget, seed, test) for seed in range(self.seeds)]
        scored_by = (self.material.task, scored_names(self.material, test), metric)
        resamples = intervals.resampled(*scored_by, tests, is_one_test=True)
        examples = intervals.scorer(*scored_by, *tests[0]).size
        return Score(float(values.mean()), resamples, values, (self.seeds, examples))

    def outputs_and_targets(self, budget: int, seed: int, test: str) -> tuple[np.ndarray, Any]:
        """(what the head gave on a test set, what it is scored against)."""
        draw = draw_rows(self.material, str(budget), seed)
        targets = targets_of(self.material, draw, seed)[test]
        return self.cells.outputs_of(self.key(budget, seed))[test], targets

    def key(self, budget: int, seed: int) -> tuple[str, str, int]:
        return self.strategy, str(budget), seed


def fit(
    pretrained: adapt.Pretrained | str,
    strategy: str,
    setting: Setting,
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    name: str | None = None,
) -> Fits:
    """The fits of a strategy at every budget of a setting, in a folder of ``folder``.

    ``name`` is of the fits, where other fits have the same data, budgets and strategy: of an
    encoder that was changed, or of other options. With ``resume`` what the folder has is used,
    and fits of other settings are refused; without it fits that are there are replaced with
    ``overwrite``, and refused else (:class:`adapt.AdaptError`).
    """
    budgets = tuple(str(budget) for budget in setting.budgets)
    name = name or f"{setting.data}-{'-'.join(budgets)}-{strategy.replace(':', '')}"
    out = folder / name
    resume = resume and (out / "config.json").exists()
    check_out(out, resume, overwrite)
    console.say(f"fits      {name}")
    options = FinetuningOptions(
        checkpoint=pretrained if isinstance(pretrained, str) else pretrained.source,
        task=setting.task,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        **setting.options,
    )
    compared = CompareOptions(
        strategies=(strategy,),
        rates=setting.rates,
        labels=budgets,
        seeds=setting.seeds,
        min_steps=setting.min_steps,
    )
    train = some_rows(setting.data, "train", setting.train_rows)
    test = some_rows(setting.data, "test", setting.test_rows)
    also_test = {}
    for other in setting.also_test:
        also_test[other] = some_rows(other, "test", setting.test_rows)
    prepared = prepare(pretrained, *train, options, compared, test=test, also_test=also_test)
    prepared.run(out, resume=resume, overwrite=overwrite)
    return Fits(strategy, setting.seeds, prepared.material, Cells(out / "cells"))


def some_rows(name: str, part: str, count: int | None) -> tuple[list[str], list[str]]:
    """(texts, labels) of a part of a bundled set: ``count`` rows, drawn once and for all."""
    columns: Columns = bundled.read(name, part)
    rows = np.arange(len(columns["text"]))
    if count is not None:
        rows = np.random.default_rng(SEED).permutation(rows)[:count]
    return [columns["text"][row] for row in rows], [columns["label"][row] for row in rows]

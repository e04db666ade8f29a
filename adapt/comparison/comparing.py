"""Strategies by rates by seeds by label budgets, on anybody's data.

    found = compare("minilm", texts, labels, strategies=("frozen", "lora:8", "full"))
    found.answers[0].best                 # the strategy with the best test score
    found.to_pandas()                     # a row a fit

For every strategy, budget and seed the examples that choose decide among the rates. The test is
looked at once, with what was chosen.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adapt import files, run_folder
from adapt.comparison import closed_form
from adapt.comparison.cells import Cell, Cells
from adapt.comparison.material import Material, check_budgets, draw_rows, read_material
from adapt.comparison.options import ALL, CLOSED_FORM, CompareOptions
from adapt.comparison.page import results_page
from adapt.comparison.summary import Answer, Row, mean_floors, summarise
from adapt.comparison.trained import Trainer, num_epochs
from adapt.data.inputs import Columns, Part, make_parts, make_table
from adapt.devices import compute_dtype
from adapt.errors import OutputError, StrategyError
from adapt.options import (
    DType,
    FinetuningOptions,
    FrozenDType,
    KeptHead,
    Long,
    Offsets,
    Quoting,
    is_of,
    spelled_verbalizer,
)
from adapt.other_names import suggests
from adapt.prepared import folder_of_run
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import warn_long
from adapt.program_cache import keep_programs
from adapt.tasks import Task, get_task
from adapt.training.events import OnProgress, counting_from

# The options of a fit that a comparison takes.
OF_FITS = (
    "checkpoint",
    "max_length",
    "image_size",
    "long",
    "dtype",
    "frozen_dtype",
    "task",
    "pooling",
    "layers",
    "mix",
    "keep_head",
    "class_weights",
    "stride",
    "template",
    "verbalizer",
    "epochs",
    "batch_size",
)

# What a config.json without these settings means: it is of an earlier version.
UNNAMED_SETTINGS = {
    "together": "auto",
    "offsets": "characters",
    "image_size": None,
    "frozen_dtype": None,
    "template": None,
    "verbalizer": None,
    "keep_head": None,
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    ``rows`` has a row for every strategy and budget, ``answers`` one for every budget, ``cells``
    everything that was fitted; ``floors`` is what scores on the test without a look at any input.
    """

    source: str  # of the checkpoint
    task: str
    metric: str  # that decides: more is better
    options: CompareOptions
    rows: Sequence[Row]
    answers: Sequence[Answer]
    floors: Mapping[str, float]
    cells: Sequence[Cell]
    examples: int  # in training, before a budget
    chosen_by: str  # which examples choose, in words
    epochs: int  # of a fit on all examples
    tested: str  # on what, in words
    # of each set: how many texts were too long, the windows made of them, tokens left out
    long: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    freezing: Sequence[str] = ()  # the strategies that freeze kernels of the encoder

    def __repr__(self) -> str:
        options = self.options
        said = []
        for answer in self.answers:
            also = "" if answer.cheapest == answer.best else f", {answer.cheapest} is as good"
            said.append(f"{answer.labels}: {answer.best} {answer.score:.3f}{also}")
        return (
            f"Comparison({len(options.strategies)} strategies on {self.source}, "
            f"{options.seeds} seeds, test {self.metric} by labels: {'; '.join(said)})"
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row a fit; the test scores are those of the rates that were chosen."""
        import pandas

        return pandas.DataFrame(list(self.fits()))

    def to_markdown(self) -> str:
        """The page that `adapt compare` writes, without its plots: answers, and a table a budget."""
        return results_page(self, "adapt.compare")

    def fits(self) -> Iterator[dict[str, Any]]:
        """A row a fit, as plain values."""
        for cell in self.cells:
            yield from cell.rows()

    def summary(self) -> dict[str, Any]:
        """Everything but the fits, as JSON has it."""
        return without_nan(
            {
                "checkpoint": self.source,
                "task": self.task,
                "metric": self.metric,
                "tested": self.tested,
                "examples": self.examples,
                "floors": dict(self.floors),
                "long": {name: dict(counts) for name, counts in self.long.items()},
                "rows": [dataclasses.asdict(row) for row in self.rows],
                "answers": [dataclasses.asdict(answer) for answer in self.answers],
            }
        )


def without_nan(value: Any) -> Any:
    """A value as JSON has it: lists for tuples, None for a score that is not defined."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(one) for one in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


@suggests
def compare(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any = None,
    *,
    test: Any = None,
    validation: Any = None,
    also_test: Mapping[str, Any] | None = None,
    strategies: Sequence[str] = CompareOptions.strategies,
    rates: Sequence[float] = CompareOptions.rates,
    budgets: Sequence[int | str] = (ALL,),
    seeds: int = 5,
    min_steps: int = 60,
    score: str | None = None,
    together: Literal["auto", "on", "off"] = "auto",
    task: str = "classification",
    epochs: int = 3,
    batch_size: int = 32,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    image_column: str | None = None,
    quoting: Quoting | None = None,
    offsets: Offsets = "characters",
    pooling: str | None = None,
    layers: tuple[int, ...] = (),
    mix: Literal["concat", "learned"] = "concat",
    keep_head: KeptHead | None = None,
    class_weights: Literal["none", "balanced"] = "none",
    stride: int | None = None,
    template: str | None = None,
    verbalizer: str | Mapping[Any, str | Sequence[str]] | None = None,
    dtype: DType = "auto",
    frozen_dtype: FrozenDType | None = None,
    max_length: int | None = None,
    image_size: int | None = None,
    long: Long | None = None,
) -> Comparison:
    """Which strategy is best on these data, which is as good for less, and with which rates?

        found = adapt.compare("minilm", texts, labels, strategies=("frozen", "lora:8", "full"))
        found = adapt.compare("minilm", "train.csv", test="test.csv", budgets=(8, 32, 128, "all"))
        found.to_pandas()

    The data are given as to :func:`adapt.finetune`, without weights. For each of ``budgets``, each
    of ``seeds`` seeds draws as many labelled examples, the same ones for every strategy. A fifth of
    them (of ``all`` a tenth) chooses among ``rates``, which are factors of the strategy's own
    learning rates, unless there is a ``validation`` set. Without a ``test`` set the examples are
    dealt into folds, and seed s is tested on fold s, on which nothing was trained or chosen.
    ``also_test`` are further sets, by name, that are tested on with what was chosen. ``score`` is
    the metric that chooses, by default the task's own.

    ``strategies`` are those of :func:`adapt.finetune`; where labels are classes also ``probe``,
    logistic regression on frozen features whose penalties are tried, and ``centroid``. A fit takes
    ``epochs`` epochs, and ``min_steps`` steps at least. With ``out`` every cell is written to that
    folder when it is done, and ``resume`` goes on. ``on_progress(done, total)`` counts cells.

    The fits of several seeds and rates train ``together``, in one program, where that is quicker
    (``auto``), wherever it can be (``on``: of strategies of one phase), or nowhere (``off``). Their
    figures are those of fits alone within round-off. The table says how many trained together.

    Intervals are of 95%, over seeds and test examples, by the bootstrap; differences are paired.
    They are not widened for the number of strategies that were compared.

    Raises :class:`AdaptError`, as :func:`adapt.finetune` does.
    """
    options = FinetuningOptions(
        checkpoint=hub.source_of(pretrained),
        max_length=max_length,
        image_size=image_size,
        long=long,
        dtype=dtype,
        frozen_dtype=frozen_dtype,
        task=task,
        pooling=pooling,
        layers=layers,
        mix=mix,
        keep_head=keep_head,
        class_weights=class_weights,
        stride=stride,
        template=template,
        verbalizer=spelled_verbalizer(verbalizer),
        epochs=epochs,
        batch_size=batch_size,
    )
    compared = CompareOptions(
        strategies=as_tuple(strategies, "strategies"),
        rates=as_tuple(rates, "rates"),
        labels=tuple(str(budget) for budget in as_tuple(budgets, "budgets")),
        seeds=seeds,
        min_steps=min_steps,
        score=score,
        together=together,
    )
    columns = Columns(
        text=text_column,
        text_pair=text_pair_column,
        label=label_column,
        image=image_column,
        offsets=offsets,
        quoting=quoting,
    )
    if out is not None:
        files.local_path(out, "out")
    folder = folder_of_run(
        out, options.checkpoint, resume=resume, overwrite=overwrite, stop_after=None
    )
    prepared = prepare(
        pretrained,
        inputs,
        labels,
        options,
        compared,
        test=test,
        validation=validation,
        also_test=also_test,
        columns=columns,
    )
    return prepared.run(folder, resume=resume, overwrite=overwrite, on_progress=on_progress)


def as_tuple(values: Any, name: str) -> tuple[Any, ...]:
    """The values of a list. Raises :class:`StrategyError` for one value alone."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise StrategyError(f"`{name}` is {values!r}: give a list")
    return tuple(values)


@dataclasses.dataclass(frozen=True)
class PreparedComparison:
    """A comparison before its first fit."""

    material: Material
    options: FinetuningOptions
    compared: CompareOptions
    settings: Mapping[str, Any]  # config.json
    freezing: Sequence[str] = ()  # the strategies that freeze kernels of the encoder

    @property
    def count(self) -> int:
        """The cells of the comparison."""
        compared = self.compared
        return len(compared.strategies) * len(compared.budgets) * compared.seeds

    def run(
        self,
        out: Path | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        settings: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Comparison:
        """Fit every cell that is not there yet. With ``out`` the folder gets config.json, the
        cells, cells.parquet and comparison.json.
        """
        if out is None:
            return self.fill(Cells(), on_progress)
        settings = dict(self.settings if settings is None else settings)
        settings["digests"] = self.material.digests
        settings["used"] = {"dtype": compute_dtype(self.options.dtype)}
        if resume:
            check_same_data(out, self.material.digests)
        with run_folder.open_run(
            out, settings, resume=resume, overwrite=overwrite, defaults=UNNAMED_SETTINGS
        ) as folder:
            folder.keep()  # every cell that is done counts
            found = self.fill(Cells(folder.path / "cells"), on_progress)
            files.write_json(folder.path / "comparison.json", found.summary())
            write_parquet(folder.path / "cells.parquet", found)
        return found

    def fill(self, cells: Cells, on_progress: OnProgress | None) -> Comparison:
        compared = self.compared
        per_strategy = len(compared.budgets) * compared.seeds
        for number, strategy in enumerate(compared.strategies):
            report = counting_from(number * per_strategy, self.count, on_progress)
            if strategy in CLOSED_FORM:
                closed_form.fill(
                    strategy, self.material, compared, self.options.pooling, cells, report
                )
            else:
                trainer = trainer_of(strategy, self.material, self.options, compared)
                fill_trained(trainer, cells, report)
        rows, answers = summarise(compared, self.material, cells)
        first = [cell for key, cell in cells.done.items() if key[0] == compared.strategies[0]]
        return Comparison(
            source=self.material.pretrained.source,
            task=self.options.task,
            metric=self.material.metric,
            options=compared,
            rows=rows,
            answers=answers,
            floors=mean_floors(first),
            cells=[cells.done[key] for key in sorted(cells.done)],
            examples=len(self.material.train),
            chosen_by=chosen_by(self.material),
            epochs=epochs_on_all(self.material, self.options, compared),
            tested=tested_on(self.material),
            long={name: part.long.counts for name, part in self.material.sets.items()},
            freezing=self.freezing,
        )


def check_same_data(out: Path, digests: Mapping[str, str]) -> None:
    """Raise :class:`OutputError` where a comparison goes on with another encoder or other data."""
    before = hub.read_json(out, "config.json").get("digests", {})
    for name in {**before, **digests}:
        if before.get(name) != digests.get(name):
            what = "encoder" if name == "encoder" else f"{name} data"
            raise OutputError(
                f"`resume`: the {what} changed since the comparison in {out} began: start anew with "
                "`overwrite`"
            )


def trainer_of(
    strategy: str, material: Material, options: FinetuningOptions, compared: CompareOptions
) -> Trainer:
    """What fits the cells of a strategy that trains."""
    options = dataclasses.replace(options, strategy=strategy, score=compared.score)
    return Trainer(material, options, compared)


def fill_trained(trainer: Trainer, cells: Cells, report: OnProgress) -> None:
    """Fit every cell of a strategy that is not there yet."""
    compared = trainer.compared
    strategy = trainer.options.strategy
    done = 0
    for budget in compared.budgets:
        missing = [seed for seed in range(compared.seeds) if (strategy, budget, seed) not in cells]
        if len(missing) < compared.seeds:
            done += compared.seeds - len(missing)
            report(done, 0)
        for cell, outputs in trainer.cells(budget, missing):
            cells.add(cell, outputs)
            done += 1
            report(done, 0)


def prepare(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any,
    options: FinetuningOptions,
    compared: CompareOptions,
    *,
    test: Any = None,
    validation: Any = None,
    also_test: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
) -> PreparedComparison:
    """The data of a comparison, read and checked; see :func:`compare`."""
    options.check()
    keep_programs()
    if is_of(validation, float):
        raise StrategyError(
            f"`validation` is {validation}: give data that choose, or leave it out for a share of "
            "the labelled examples"
        )
    pretrained = hub.loaded(pretrained)
    pretrained = hub.with_options(pretrained, options, 0)
    compared.check(pretrained.config.own_blocks, options.epochs)
    task = get_task(options.task)
    parts = make_parts(
        inputs,
        labels,
        columns or Columns(),
        validation=validation,
        test=test,
        are_images=pretrained.config.is_image,
        are_words=task.takes_words,
    )
    pretrained = task.with_options(pretrained, options, parts["train"].columns.texts)
    further = read_further(also_test or {}, parts, pretrained, task)
    material = read_material(parts, further, task, options, pretrained, compared)
    check_budgets(compared, material)
    for name, part in material.sets.items():
        warn_long(part.long, name)
    freezing = []
    for strategy in compared.strategies:
        if strategy in CLOSED_FORM:
            closed_form.check(strategy, material, options)
            continue
        plan = trainer_of(strategy, material, options, compared).check()
        if any(phase.freezes_kernels for phase in plan.phases):
            freezing.append(strategy)
    if options.frozen_dtype is not None and not freezing:
        raise StrategyError(
            f"`frozen_dtype` {options.frozen_dtype}: none of `strategies` freezes a kernel of the "
            "encoder and trains by steps: give one that does, such as lora:8"
        )
    of_fits = {
        name: value for name, value in dataclasses.asdict(options).items() if name in OF_FITS
    }
    settings = {
        "experiment": "compare",
        **dataclasses.asdict(compared),
        **of_fits,
        **{name: part.table.name for name, part in parts.items()},
    }
    settings = run_folder.as_json(settings)
    return PreparedComparison(material, options, compared, settings, freezing)


def read_further(
    also_test: Mapping[str, Any], parts: Mapping[str, Part], pretrained: Pretrained, task: Task
) -> dict[str, Part]:
    """Sets that are only tested on, by name, with the columns of the training table."""
    if not isinstance(also_test, Mapping):
        raise StrategyError("`also_test`: give a dict of sets by name")
    further = {}
    for name, data in also_test.items():
        if name in ("train", "validation", "test"):
            raise StrategyError(f"`also_test` has a set called {name}: give it another name")
        some_inputs, some_labels = data if isinstance(data, tuple) else (data, None)
        table, columns = make_table(
            some_inputs,
            some_labels,
            parts["train"].columns,
            are_images=pretrained.config.is_image,
            are_words=task.takes_words,
            name=name,
            parameter="also_test",
        )
        further[name] = Part(table, columns)
    return further


def chosen_by(material: Material) -> str:
    """Which examples choose among the rates, in words."""
    if material.validation is not None:
        return f"the {len(material.validation):,} validation examples"
    return "examples that are held out: a fifth of the labels, of all a tenth"


def epochs_on_all(material: Material, options: FinetuningOptions, compared: CompareOptions) -> int:
    """The epochs of a fit on all examples."""
    draw = draw_rows(material, ALL, seed=0)
    return num_epochs(len(draw.train), options, compared)


def tested_on(material: Material) -> str:
    """What is tested on, in words."""
    if material.folds is None:
        return f"{len(material.tests['test']):,} examples of the test set"
    count = int(material.folds.max()) + 1
    return f"a fold of the examples for each seed, of {count}"


def write_parquet(path: Path, found: Comparison) -> None:
    """A row a fit, for pandas and others."""
    import pyarrow as pa
    from pyarrow import parquet

    with files.atomic_path(path) as beside:
        parquet.write_table(pa.Table.from_pylist(list(found.fits())), beside)

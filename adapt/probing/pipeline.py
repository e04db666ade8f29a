"""A probe as one call: from labelled data to the report on every layer.

    report = probe("minilm", texts, labels, pooling=("mean", "cls"))
    report.selected["test"], report.to_pandas()

:func:`probe` is :func:`check_probe`, :func:`read_data`, :meth:`ProbeData.features` and
:func:`adapt.probing.report.probe_features`; the command makes the same calls.
"""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from adapt import tree
from adapt.data import packing, tables
from adapt.data.inputs import Columns, Part, as_list, make_parts
from adapt.data.labels import log_classes
from adapt.errors import DataError, StrategyError
from adapt.features import (
    Stream,
    measure_stored,
    table_batches,
    text_batches,
    vector_settings,
    with_prompt,
)
from adapt.options import FrozenDType, Long, Quoting, is_of, wanted
from adapt.other_names import suggests
from adapt.parallel import sharding
from adapt.parallel.multihost import is_multiprocess
from adapt.parallel.sharding import Layout
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import NO_LONG_TEXTS, LongTexts, warn_long
from adapt.probing.layers import check_poolings, layer_features, weightless_poolings
from adapt.probing.report import (
    NEIGHBOURS,
    STRENGTHS,
    Method,
    ProbeOptions,
    ProbeReport,
    check_options,
    make_splits,
    probe_features,
)
from adapt.tasks import TASKS, Task, get_task
from adapt.training.events import FrozenStored, OnProgress
from adapt.training.step import place_kernels


@suggests
def probe(
    pretrained: Pretrained | str | Path,
    inputs: Any,
    labels: Any = None,
    *,
    test: Any = None,
    task: str = "classification",
    method: Sequence[Method] | None = None,
    pooling: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    neighbours: Sequence[int] = NEIGHBOURS,
    folds: int = 5,
    seeds: int = 5,
    limit: int | None = None,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    image_column: str | None = None,
    quoting: Quoting | None = None,
    mesh: str = "",
    on_progress: OnProgress | None = None,
    long: Long | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    unscaled: bool = False,
    image_size: int | None = None,
    frozen_dtype: FrozenDType | None = None,
) -> ProbeReport:
    """Which layer holds what a task needs: heads on the frozen features of every layer, chosen by
    inner folds, tested once.

        report = adapt.probe("minilm", texts, labels, test=(more_texts, more_labels))
        report.selected["test"]                 # of the layer that the inner folds chose
        report.to_pandas()                      # a row for each method, layer and pooling

    ``pretrained``, ``inputs``, ``labels`` and ``test`` are as in :func:`adapt.finetune`. Without a
    ``test`` every fold of the rows is the test once; a bundled set by its name has one. ``task`` is
    classification or regression. ``long`` says what is read of long texts, as in
    :func:`adapt.encode`; ``image_size`` interpolates positions for pictures of so many pixels a side.
    ``limit`` draws so many examples of the data, and of the test. The
    other arguments are the options of :class:`~adapt.probing.report.ProbeOptions`, and the flags of
    ``adapt probe``. ``on_progress(done, total)`` counts heads, when all features are there.

    Raises :class:`DataError` for data that are not exactly understood, :class:`StrategyError` for
    arguments that contradict each other or the checkpoint; both are :class:`AdaptError`.
    """
    options = ProbeOptions(
        method=None if method is None else tuple(as_list(method, "method")),
        pooling=None if pooling is None else tuple(as_list(pooling, "pooling")),
        normalize=normalize,
        prompt=prompt,
        frozen_dtype=frozen_dtype,
        unscaled=unscaled,
        strengths=tuple(as_list(strengths, "strengths")),
        neighbours=tuple(as_list(neighbours, "neighbours")),
        folds=folds,
        seeds=seeds,
    )
    columns = Columns(
        text=text_column,
        text_pair=text_pair_column,
        label=label_column,
        image=image_column,
        quoting=quoting,
    )
    check_probe(options, task, limit)
    layout = sharding.make_layout(mesh)
    pretrained = hub.loaded(pretrained)
    pretrained = hub.with_image_size(hub.with_long(pretrained, long), image_size)
    options = with_own_vectors(options, pretrained)
    data = read_data(
        pretrained, inputs, labels, options, test=test, task=task, columns=columns, limit=limit
    )
    features = data.features(options.poolings, layout)
    return probe_features(features, data.labels, data.is_test, data.names, options, on_progress)


logger = logging.getLogger(__name__)

Options = TypeVar("Options", bound=ProbeOptions)


def with_own_vectors(options: Options, pretrained: Pretrained) -> Options:
    """The options with the checkpoint's own pooling, normalisation and prompt where none is asked
    for; see :func:`adapt.features.vector_settings`.

    A pooling that has weights, as a run may, can't be probed: the mean takes its place. Dense
    layers after the pooling are left out, and a warning says so: a linear head on what they read
    can do what they do, but for their activations.
    """
    asked = options.pooling[0] if options.pooling else None
    settings = vector_settings(pretrained, asked, options.normalize, options.prompt)
    if settings.dense:
        logger.warning(
            f"{pretrained.source} has {len(settings.dense)} dense layers after its pooling: a probe "
            "reads what comes before them"
        )
    own = settings.pooling if settings.pooling in weightless_poolings() else "mean"
    return dataclasses.replace(
        options,
        pooling=(own,) if options.pooling is None else options.pooling,
        normalize=settings.normalize,
        prompt=settings.prompt,
    )


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """Labelled rows to probe a checkpoint with: those that train, and then those of the test.

    ``labels`` [N] of all rows are numbers of the classes ``names``, or values where there are none.
    """

    pretrained: Pretrained
    task: Task
    parts: Sequence[Part]  # the training rows, and the test where there is one
    labels: np.ndarray
    names: list[str]
    normalize: bool = False
    prompt: str = ""  # before every text
    frozen_dtype: FrozenDType | None = None  # of the kernels on the devices; None: float32
    # of each part, once its features were computed: the texts that were too long
    long: dict[str, LongTexts] = dataclasses.field(default_factory=dict, init=False, compare=False)

    @property
    def is_test(self) -> np.ndarray:
        """Which rows are the test's, bool [N]; none of them where there is no test."""
        return np.arange(len(self.labels)) >= len(self.parts[0].table)

    @property
    def class_counts(self) -> dict[str, int]:
        """How many training rows each class has; {} where labels are values."""
        return self.task.class_counts(self.labels[~self.is_test], self.names)

    def features(
        self,
        poolings: Sequence[str],
        layout: Layout | None = None,
        on_progress: OnProgress | None = None,
    ) -> np.ndarray:
        """The features of every layer, float32 [layers + 1, poolings, N, D].

        Logs how many texts were too long. ``on_progress(done, total)`` counts examples.
        """
        count = len(self.labels)
        long = [NO_LONG_TEXTS] * len(self.parts)

        def batches() -> Iterator[tuple[Any, Any]]:
            start = done = 0
            for number, part in enumerate(self.parts):
                for streamed in self.batches(part, layout):
                    yield [start + group for group in streamed.index], streamed.batch
                    long[number] = streamed.long + long[number]
                    done += packing.num_examples(streamed.index)
                    if on_progress is not None:
                        on_progress(min(done, count), count)  # windows of a text come one by one
                start += len(part.table)

        features = layer_features(
            self.pretrained, batches(), count, poolings, layout, self.frozen_dtype
        )
        if self.normalize:
            lengths = np.linalg.norm(features, axis=-1, keepdims=True)
            features = features / np.maximum(lengths, 1e-12)
        names = (self.parts[0].table.name, "the test")
        for number, name in enumerate(names[: len(self.parts)]):
            warn_long(long[number], name)
            self.long["train" if number == 0 else "test"] = long[number]
        return features

    def stored(self, layout: Layout | None = None) -> FrozenStored | None:
        """What ``frozen_dtype`` changes, measured on the first batch; None where it is None."""
        if self.frozen_dtype is None:
            return None
        params = place_kernels(tree.drop(self.pretrained.params, "head"), self.frozen_dtype, layout)
        first = self.batches(self.parts[0], layout)
        stored, _ = measure_stored(
            self.pretrained, params, first, "float32", self.frozen_dtype, layout
        )
        return stored

    def batches(self, part: Part, layout: Layout | None) -> Stream:
        """The evaluation batches of the rows of one part: its pictures, or its texts or pairs."""
        columns = part.columns
        if columns.image is not None:
            return table_batches(
                self.pretrained, part.table, image_column=columns.image, layout=layout
            )
        chunks = self.task.sequence_chunks(part.table, columns.texts)
        if len(columns.texts) == 1:
            chunks = with_prompt(chunks, self.prompt)
        elif self.prompt:
            raise StrategyError(
                f"`prompt` {self.prompt!r} is put before single texts, and these are pairs: give "
                '`prompt` ""'
            )
        return text_batches(self.pretrained, chunks, layout)


def check_probe(options: ProbeOptions, task: str, limit: int | None) -> None:
    """Raise :class:`StrategyError` for options that contradict each other or are out of range, and
    for several processes.
    """
    if is_multiprocess():
        raise StrategyError(
            "probe is of one process: leave out `coordinator`, and give `mesh` for its devices"
        )
    check_options(options, is_regression(task))
    check_poolings(options.poolings)
    if limit is None:
        return
    if not is_of(limit, int):
        raise StrategyError(f"`limit` is {limit!r}: {wanted(int)}")
    if not 2 * options.folds <= limit < 2**31:
        raise StrategyError(f"`limit` {limit} must be at least {2 * options.folds}")


def is_regression(task: str) -> bool:
    """Whether labels are values, not classes. Raises :class:`StrategyError` for a task of other
    labels.
    """
    probed_as = get_task(task).probed_as
    if probed_as is None:
        names = sorted(name for name, other in TASKS.items() if other.probed_as)
        raise StrategyError(f"a probe has no heads for `task` {task}: give {' or '.join(names)}")
    return probed_as == "values"


def read_data(
    pretrained: Pretrained,
    inputs: Any,
    labels: Any,
    options: ProbeOptions,
    *,
    test: Any = None,
    task: str = "classification",
    columns: Columns | None = None,
    limit: int | None = None,
) -> ProbeData:
    """The labelled rows of a probe; see :func:`probe` for the arguments and the errors.

    Data that are too few for the options are refused here, before anything is computed.
    """
    learned = get_task(task)
    parts = make_parts(
        inputs,
        labels,
        columns or Columns(),
        test=test,
        are_images=pretrained.config.is_image,
    )
    train = parts["train"]
    hub.check_inputs(pretrained, train.columns.image)
    learned.check_columns(train.columns.texts, pretrained)
    names = learned.label_names(train.table, train.columns.label, train.columns.texts)
    chosen = []
    chosen_labels = []
    for part in parts.values():
        part, of_part = draw(part, encode(part, learned, names), limit)
        chosen.append(part)
        chosen_labels.append(of_part)
    count = len(chosen[0].table)
    if count < 2 * options.folds:
        raise DataError(
            f"{train.table.name}: {count} rows are too few for `folds` {options.folds}: give two "
            "for each"
        )
    data = ProbeData(
        pretrained,
        learned,
        chosen,
        np.concatenate(chosen_labels),
        names,
        bool(options.normalize),
        options.prompt or "",
        options.frozen_dtype,
    )
    make_splits(data.labels, data.is_test, options, regression=not names)
    log_classes(train.table, data.class_counts)
    return data


def encode(part: Part, task: Task, names: Sequence[str]) -> np.ndarray:
    """The labels [N] of a part, whose texts are checked: here rows have the file's numbers."""
    labels = task.encode_labels(part.table, part.columns.label, names)
    if part.columns.image is None:
        for column in part.columns.texts:
            tables.check_texts(part.table, column)
    return np.asarray(labels)


def draw(part: Part, labels: np.ndarray, limit: int | None) -> tuple[Part, np.ndarray]:
    """(the part, its labels): all rows, or ``limit`` of them, always the same ones, in their order."""
    if limit is None:
        return part, labels
    order = np.random.RandomState(0).permutation(len(part.table))
    kept = np.sort(order[:limit])
    return dataclasses.replace(part, table=part.table.select(kept)), labels[kept]

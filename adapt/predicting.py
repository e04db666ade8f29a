"""Predictions on new rows by finished runs.

(predictions,) = predict_table([adapt.load("runs/finetune")], table, ["text"])
predictions.labels                 # ["good", "bad"]
predictions.probabilities          # float [2, 2], in the order of predictions.classes
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.data.inputs import Columns, as_list, shortened_repr
from adapt.data.packing import Arrays, num_examples
from adapt.data.tables import FILE, Table, check_column, chunks
from adapt.errors import CheckpointError, DataError, StrategyError
from adapt.features import Forward, check_computed
from adapt.models import Model, cached_program
from adapt.pretrained.hub import Pretrained
from adapt.pretrained.tokenizer import LongTexts, warn_long
from adapt.program_cache import keep_programs
from adapt.tasks import Task
from adapt.tasks.base import Answers, Row, task_of
from adapt.tasks.metrics import Metric, own_scores
from adapt.training import feeding
from adapt.training.events import OnProgress
from adapt.training.loop import Index, evaluate
from adapt.training.step import Batch

ROW = "row"  # the column of a file of predictions that numbers the rows of the data, from 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predictions(Answers):
    """What a run says of N examples, in their order.

    ``labels`` are an array [N] or a list of N: the name of a class (a number where the training
    labels were numbers), a list of names (multilabel), a float (regression), the number of a
    choice, a tag for each word, of a span ``(start, end, text)`` or None, of a multitask run a dict
    of columns. ``probabilities`` are float [N, C] in the order of ``classes``, or None where the
    task has none. ``outputs`` are those of the head. ``long`` counts the texts that were longer
    than the encoder reads.
    """

    outputs: np.ndarray
    long: LongTexts
    pretrained: Pretrained  # of the run
    columns: Sequence[str]  # of the texts
    # columns of the table beside them that were to be kept
    kept: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        first = self.labels[:3]
        if isinstance(first, np.ndarray):
            first = first.tolist()
        shown = ", ".join(shortened_repr(label) for label in first)
        more = ", ..." if len(self) > 3 else ""
        return f"Predictions({len(self)}: {shown}{more})"

    @property
    def truncated(self) -> int:
        """How many texts were read in part."""
        return self.long.truncated

    @property
    def classes(self) -> tuple[Any, ...]:
        """What the columns of ``probabilities`` stand for."""
        return self.pretrained.classes

    @property
    def header(self) -> list[str]:
        """The columns of :attr:`rows`: ``prediction``, ``probability:good`` and so on."""
        return task_of(self.pretrained).header(self.pretrained, self.columns)

    @property
    def rows(self) -> Iterator[Row]:
        """A row of values for every example, as ``adapt predict`` writes it."""
        return task_of(self.pretrained).rows(self.pretrained, self)

    def to_pandas(self) -> Any:
        """A DataFrame of labels and probabilities, a row an example, after the columns that were
        kept.
        """
        import pandas

        content = {name: pandas.Series(list(values)) for name, values in self.kept.items()}
        content["prediction"] = pandas.Series(list(self.labels))
        frame = pandas.DataFrame(content)
        if self.probabilities is not None:
            names = self.header[-self.probabilities.shape[1] :]
            for name, values in zip(names, self.probabilities.T, strict=True):
                frame[name] = values
        return frame


def predict_table(
    runs: Sequence[Pretrained],
    table: Table,
    columns: Sequence[str],
    image_column: str | None = None,
    on_progress: OnProgress | None = None,
    keep_columns: Sequence[str] = (),
) -> list[Predictions]:
    """The predictions of one run, or of several that share one encoder and one pass of it.

    ``columns`` are those of the texts, as in training; ``keep_columns`` others that the predictions
    are to have beside them, as they have the name of a picture's file. Outputs are held in memory.

    Raises :class:`StrategyError` for runs or columns that do not go together, DataError for rows
    that can't be read.
    """
    tasks = [task_of(run) for run in runs]
    check_together(runs, tasks)
    tasks[0].check_columns(columns, runs[0])
    taken = [ROW]
    for prefix, run, task in zip(prefixes(runs), runs, tasks, strict=True):
        taken += [prefix + name for name in task.header(run, columns)]
    keep_columns = as_list(keep_columns, "keep_columns")
    if image_column and FILE in table.columns and FILE not in keep_columns:
        keep_columns = [FILE, *keep_columns]
    kept = kept_columns(table, keep_columns, taken)
    labels = tasks[0].no_labels(table, columns)
    part = tasks[0].examples(runs[0], table, columns, labels, image_column)
    part = tasks[0].pair_examples(part, seed=0)
    forward, params = shared_pass(runs)
    batches = counted(feeding.fed(part.eval_batches(few=True)), part.num_outputs, on_progress)
    outputs = evaluate(forward, params, batches, part.num_outputs)
    check_computed(~np.isnan(outputs), "predictions")
    predictions = []
    for run, task, of_run in zip(runs, tasks, split_outputs(runs, tasks, outputs), strict=True):
        answers = task.answers(run, of_run, part, table, columns)
        predictions.append(
            Predictions(
                labels=answers.labels,
                probabilities=answers.probabilities,
                outputs=of_run,
                long=part.long,
                pretrained=run,
                columns=columns,
                kept=kept,
            )
        )
    return predictions


def kept_columns(table: Table, names: list[str], taken: Sequence[str]) -> dict[str, list]:
    """The values of some columns of a table, whose names none of the ``taken`` columns has.

    Raises DataError for a column that is not there or holds pictures, StrategyError for a name that
    is taken or stands there twice.
    """
    for name in names:
        check_column(table, name)
        if name in taken or names.count(name) > 1:
            raise StrategyError(
                f"`keep_columns` {name}: the predictions would have two columns of this name"
            )
        if type(table.rows.features[name]).__name__ == "Image":
            raise DataError(f"`keep_columns` {name}: {table.name} has pictures in it, no values")
    content: dict[str, list] = {name: [] for name in names}
    for chunk in chunks(table, names) if names else ():
        for name in names:
            content[name] += chunk[name]
    return content


def score_table(
    run: Pretrained,
    table: Table,
    columns: Columns,
    on_progress: OnProgress | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """The metrics and the mean ``loss`` of a finished run on the labelled rows of a table, those of
    the task and ``metrics`` of one's own.

    A score that is not defined is nan. Logs how many texts were too long. Raises
    :class:`StrategyError` for columns that do not fit, DataError for rows that can't be read and
    labels that are unseen in training, and where nothing can be scored.
    """
    task = task_of(run)
    task.check_columns(columns.texts, run)
    names = run.labels or task.label_names(table, columns.label, columns.texts)
    table = task.with_character_offsets(table, columns)
    task.check_labels(table, columns.label, columns.texts)
    labels = task.encode_labels(table, columns.label, names)
    part = task.examples(run, table, columns.texts, labels, columns.image)
    warn_long(part.long, table.name)
    part = task.pair_examples(part, seed=0)
    task.check_scored(part, table.name)
    forward, params = shared_pass([run])
    batches = counted(feeding.fed(part.eval_batches()), part.num_outputs, on_progress)
    outputs = evaluate(forward, params, batches, part.num_outputs)
    check_computed(~np.isnan(outputs), "predictions")
    loss = task.mean_loss(outputs, part.targets)
    outputs = task.apply_decisions(outputs, part.targets, task.decisions_of(run.head))
    names = task.scored_names(part, task.output_names(names))
    scores = dict(task.metrics(outputs, task.truth(part), names))
    scores |= own_scores(metrics or {}, outputs, part.targets)
    return scores | {"loss": loss}


def side_by_side(predictions: Sequence[Predictions]) -> tuple[list[str], Iterator[Row]]:
    """(the header, the rows) of several runs' predictions in one table.

    With several runs the columns begin with the name of the run's folder: ``tone:prediction``.
    """
    header = []
    runs = [of_run.pretrained for of_run in predictions]
    for prefix, of_run in zip(prefixes(runs), predictions, strict=True):
        header += [prefix + name for name in of_run.header]
    rows = zip(*(of_run.rows for of_run in predictions), strict=True)
    return header, (list(itertools.chain(*of_row)) for of_row in rows)


def check_predicts(run: Pretrained) -> None:
    """Raise :class:`CheckpointError` for a run that predicts nothing."""
    if task_of(run).num_outputs == 0:
        raise CheckpointError(
            f"{run.source} was trained for embeddings ({run.task}), which extract computes: use "
            "that"
        )


def check_together(runs: Sequence[Pretrained], tasks: Sequence[Task]) -> None:
    """Raise :class:`StrategyError` unless all runs have one encoder, which reads its inputs in one
    way.
    """
    names = [folder_name(run) for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise StrategyError(
                f"two runs are called {name}: their columns would be, too; rename one folder"
            )
    if len(runs) == 1:
        return
    for run, task in zip(runs, tasks, strict=True):
        if not task.has_row_per_example:
            raise StrategyError(
                f"a run of the task {run.task} does not predict together with others: give it alone"
            )
    first = runs[0]
    encoder = tree.digest(first.params["encoder"])
    for run in runs[1:]:
        if tree.digest(run.params["encoder"]) != encoder:
            what = "encoder"
        elif input_settings(run) != input_settings(first):
            what = "way of reading inputs"
        else:
            continue
        raise StrategyError(
            f"{first.source} and {run.source} do not share one {what}: predict with each by itself "
            "(the strategy frozen keeps it)"
        )


def input_settings(run: Pretrained) -> tuple[Any, ...]:
    """What decides the arrays that a text or a picture becomes."""
    if run.tokenizer is None:
        return (run.image_settings,)
    return (run.tokenizer.max_length, run.tokenizer.long, run.tokenizer.backend.to_str())


def folder_name(run: Pretrained) -> str:
    """The name of a run's folder."""
    return Path(run.source).resolve().name


def prefixes(runs: Sequence[Pretrained]) -> list[str]:
    """What the columns of each run begin with: nothing if there is one."""
    return [f"{folder_name(run)}:" for run in runs] if len(runs) > 1 else [""]


def shared_pass(runs: Sequence[Pretrained]) -> tuple[Forward, tree.Tree]:
    """(jitted ``(params, batch)`` -> the outputs of all heads side by side, its parameters)."""
    keep_programs()
    params = {
        "encoder": runs[0].on_device()["encoder"],
        "heads": [run.on_device()["head"] for run in runs],
    }
    return outputs_of(tuple(run.model for run in runs)), params


@cached_program
def outputs_of(models: tuple[Model, ...]) -> Forward:
    """The jitted function of :func:`shared_pass`, the same one for the same models: what it has
    compiled serves the next call.
    """

    def forward(params: tree.Tree, batch: Batch) -> jax.Array:
        states = models[0].hidden_states(params, batch)
        outputs = []
        for model, head in zip(models, params["heads"], strict=True):
            inputs = jnp.concatenate([states[layer] for layer in model.input_layers], -1)
            of_run = {"encoder": params["encoder"], "head": head}
            outputs.append(model.outputs_of(of_run, inputs, batch))
        return jnp.concatenate(outputs, -1)

    return jax.jit(models[0].allow_fused_attention(forward))


def counted(
    batches: Iterator[tuple[Index, Arrays]], total: int, on_progress: OnProgress | None
) -> Iterator[tuple[Index, Arrays]]:
    """The same (index, batch), with a call of ``on_progress`` after each."""
    done = 0
    for index, batch in batches:
        yield index, batch
        done += num_examples(index)
        if on_progress is not None:
            on_progress(done, total)


def split_outputs(
    runs: Sequence[Pretrained], tasks: Sequence[Task], outputs: np.ndarray
) -> list[np.ndarray]:
    """Outputs side by side -> those of each run."""
    if len(runs) == 1:
        return [outputs]
    widths = [task.count_outputs(run.labels) for run, task in zip(runs, tasks, strict=True)]
    return np.split(outputs, np.cumsum(widths)[:-1], -1)

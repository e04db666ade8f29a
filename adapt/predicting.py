"""Predictions on new rows by finished runs.

run = hub.load("runs/finetune")
predictions = predict_table([run], table, ["text"])
predictions.header                 # ["prediction", "probability:bad", "probability:good"]
for row in predictions.rows: ...   # ["good", "0.25", "0.75"]
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adapt import tree
from adapt.data.packing import Arrays, num_examples
from adapt.data.tables import Table
from adapt.errors import CheckpointError, StrategyError
from adapt.pretrained.hub import Pretrained
from adapt.tasks import Task
from adapt.tasks.base import Row, task_of
from adapt.training.loop import Index, evaluate

OnProgress = Callable[[int, int], None]  # (done, total)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The columns of a prediction, and a row of values for every row of the table, in its order."""

    header: list[str]
    rows: Iterator[Row]  # can be read once
    truncated: int  # texts that were longer than the encoder reads


def predict_table(
    runs: Sequence[Pretrained],
    table: Table,
    columns: Sequence[str],
    image_column: str | None = None,
    on_progress: OnProgress | None = None,
) -> Predictions:
    """Predictions of one run, or of several that share one encoder and one pass of it.

    ``columns`` are those of the texts, as in training; with several runs the columns of a
    prediction begin with the name of the run's folder, as in ``tone:prediction``. Outputs are
    computed at once and held in memory, the rows made of them one by one.

    Raises :class:`StrategyError` for runs or columns that do not go together, DataError for rows
    that can't be read.
    """
    tasks = [task_of(run) for run in runs]
    check_together(runs, tasks)
    tasks[0].check_columns(columns, runs[0])
    labels = tasks[0].no_labels(table, columns)
    part = tasks[0].examples(runs[0], table, columns, labels, image_column)
    forward, params = shared_pass(runs)
    batches = counted(part.eval_batches(), part.num_outputs, on_progress)
    outputs = evaluate(forward, params, batches, part.num_outputs)
    header = []
    rows = []
    for run, task, prefix, of_run in zip(
        runs, tasks, prefixes(runs), split_outputs(runs, tasks, outputs), strict=True
    ):
        header += [prefix + name for name in task.header(run, columns)]
        rows.append(task.rows(run, of_run, part, table, columns))
    side_by_side = (list(itertools.chain(*of_row)) for of_row in zip(*rows, strict=True))
    return Predictions(header, side_by_side, part.truncated)


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
        elif reads(run) != reads(first):
            what = "way of reading inputs"
        else:
            continue
        raise StrategyError(
            f"{first.source} and {run.source} do not share one {what}: predict with each by itself "
            "(the strategy frozen keeps it)"
        )


def reads(run: Pretrained) -> tuple[Any, ...]:
    """What decides the arrays that a text or a picture becomes."""
    if run.tokenizer is None:
        return (run.image_settings,)
    return (run.tokenizer.max_length, run.tokenizer.backend.to_str())


def folder_name(run: Pretrained) -> str:
    """The name of a run's folder."""
    return Path(run.source).resolve().name


def prefixes(runs: Sequence[Pretrained]) -> list[str]:
    """What the columns of each run begin with: nothing if there is one."""
    return [f"{folder_name(run)}:" for run in runs] if len(runs) > 1 else [""]


def shared_pass(runs: Sequence[Pretrained]) -> tuple[Any, dict[str, Any]]:
    """(jitted ``(params, batch)`` -> the outputs of all heads side by side, its parameters)."""
    models = [run.model for run in runs]

    def forward(params: dict[str, Any], batch: Arrays) -> jax.Array:
        states = models[0].hidden_states(params, batch)
        outputs = []
        for model, head in zip(models, params["heads"], strict=True):
            inputs = jnp.concatenate([states[layer] for layer in model.input_layers], -1)
            outputs.append(model.apply_head(head, inputs, batch))
        return jnp.concatenate(outputs, -1)

    params = {
        "encoder": runs[0].params["encoder"],
        "heads": [run.params["head"] for run in runs],
    }
    return jax.jit(models[0].allow_fused_attention(forward)), params


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

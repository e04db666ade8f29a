"""Predictions without training: a language model says classes by words.

run = zero_shot("roberta-base", "{text} It was [MASK].", {"good": "great", "bad": "terrible"})
run.predict(["a warm film"]).labels         # ["good"]
run.evaluate(texts, labels)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from adapt import run_folder
from adapt.data.inputs import Columns
from adapt.finetuning import with_head
from adapt.options import FinetuningOptions, Quoting, spelled_verbalizer
from adapt.other_names import suggests
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.program_cache import keep_programs
from adapt.run import Run
from adapt.tasks import cloze
from adapt.tasks.base import TASKS

KINDS = {int: "int", float: "float", bool: "bool"}


@suggests
def zero_shot(
    pretrained: Pretrained | str | Path,
    template: str,
    verbalizer: str | Mapping[Any, str | Sequence[str]],
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    label_column: str = "label",
    quoting: Quoting | None = None,
    max_length: int | None = None,
) -> Run:
    """A run of the task ``cloze`` before its first step: it predicts, is scored, saved and exported as
    one that was trained.

    ``pretrained`` has a language model's head, which is kept. ``template`` and ``verbalizer`` are as in
    :func:`adapt.finetune`; a mapping's classes are what the run's labels are, numbers where they are
    numbers. The columns are those of the tables that it will read. Raises :class:`StrategyError` for
    a checkpoint without such a head, and for what is not understood.
    """
    keep_programs()
    options = FinetuningOptions(
        checkpoint=hub.source_of(pretrained),
        task=cloze.TASK.name,
        template=template,
        verbalizer=spelled_verbalizer(verbalizer),
        max_length=max_length,
    )
    options.check()
    columns = Columns(
        text=text_column, text_pair=text_pair_column, label=label_column, quoting=quoting
    )
    pretrained = hub.with_options(hub.loaded(pretrained), options)
    task = TASKS[options.task]
    task.check_columns(columns.texts, pretrained)
    prompted = task.with_options(pretrained, options, columns.texts)
    head = task.head(prompted, options, prompted.labels)
    _, params = with_head(prompted, head, jax.random.key(0))
    adapted = dataclasses.replace(
        prompted,
        head=head,
        params=params,
        task=options.task,
        label_type=label_type_of(verbalizer),
        unread={},
        stripped=(),
        notes=(),
    )
    settings = {
        "experiment": "zero_shot",
        "strategy": "zero-shot",
        "checkpoint": options.checkpoint,
        "task": options.task,
        "template": template,
        "verbalizer": options.verbalizer,
        "max_length": max_length,
        "text_column": text_column,
        "text_pair_column": text_pair_column,
        "label_column": label_column,
        "quoting": quoting,
    }
    return Run(
        pretrained=adapted,
        result={},
        settings=run_folder.as_json(settings),
        lineage=run_folder.lineage(adapted, False),
        history=[],
    )


def label_type_of(verbalizer: str | Mapping[Any, Any]) -> str:
    """What the classes of a verbalizer are: "int", "float" or "bool" where all of them are, else
    "str".
    """
    kinds = set() if isinstance(verbalizer, str) else set(map(type, verbalizer))
    return KINDS.get(kinds.pop(), "str") if len(kinds) == 1 else "str"

"""What the training experiments share: the checkpoint and the data that their flags name."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from adapt import extensions
from adapt.cli import run_folder
from adapt.data import bundled, examples
from adapt.data import tables as data
from adapt.data.labels import stratified_split
from adapt.errors import DataError, OutputError, StrategyError
from adapt.finetuning import FinetuningOptions
from adapt.options import check_ranges
from adapt.parallel.sharding import Layout
from adapt.pretrained import hub
from adapt.tasks import get_task
from adapt.tasks.base import text_columns


def check_flags(config: FinetuningOptions) -> None:
    """Raise :class:`StrategyError` for flags that contradict each other or are out of range."""
    if config.strategy == "frozen" and config.learning_rate is not None:
        raise StrategyError(
            "--learning-rate is the encoder's, and --strategy frozen does not train it: "
            "give --head-learning-rate"
        )
    is_positive = min(config.epochs, config.batch_size, config.accumulate) >= 1
    if not is_positive or config.batch_size % config.accumulate:
        raise StrategyError(
            f"--epochs {config.epochs}, --batch-size {config.batch_size} and "
            f"--accumulate {config.accumulate} must be at least 1, and --accumulate a divisor of "
            "--batch-size"
        )
    check_ranges(config)


def check_out(config: Any) -> None:
    """Refuse an output folder that exists, and one that a run between it and ``--checkpoint``
    refers to for its encoder.
    """
    run_folder.check_out(config.out, config.resume, config.overwrite)
    if config.resume and (config.out / "model.json").exists():
        extensions.check_run(config.out)
    name = config.checkpoint
    found = []
    while (folder := Path(name).expanduser().resolve()) not in found and (
        folder / "model.json"
    ).is_file():
        found.append(folder)
        name = (hub.read_json(folder, "model.json").get("base") or {}).get("source", "")
        if name and Path(name).resolve() == config.out.resolve():
            raise OutputError(
                f"--out {config.out} holds the encoder that {folder} refers to: give another --out"
            )


def load(config: Any) -> hub.Pretrained:
    """The checkpoint, with the flags that change it."""
    pretrained = hub.load(config.checkpoint)
    if config.dropout is not None:
        changed = dataclasses.replace(
            pretrained.config, dropout=config.dropout, attention_dropout=config.dropout
        )
        pretrained = dataclasses.replace(pretrained, config=changed)
    if config.max_length is not None and pretrained.tokenizer is not None:
        if not 3 <= config.max_length <= pretrained.config.positions:
            raise StrategyError(
                f"--max-length {config.max_length} must be 3 to {pretrained.config.positions}, "
                "the encoder's positions"
            )
        pretrained = dataclasses.replace(
            pretrained, tokenizer=pretrained.tokenizer.cut_to(config.max_length)
        )
    if config.random_weights:
        fresh = jax.device_get(pretrained.model.init(jax.random.key(config.seed + 1)))
        pretrained = dataclasses.replace(pretrained, params=fresh)
    return pretrained


def read(spec: str | Path, split: str | None = None) -> data.Table:
    """What :func:`adapt.data.tables.read` reads, or a bundled set: ``reviews``, ``reviews:test``."""
    name, _, part = str(spec).partition(":")
    if Path(spec).expanduser().exists():
        return data.read(spec, split=split)
    if name in bundled.SETS:
        return data.from_columns(bundled.read(name, split or part or None), str(spec))
    if "/" not in str(spec) and not Path(name).suffix:
        raise DataError(
            f"{name!r} is no file and no bundled set ({', '.join(bundled.SETS)}); on the hub, "
            "names are org/name"
        )
    return data.read(spec, split=split)


def read_sets(
    config: Any, pretrained: hub.Pretrained, layout: Layout | None = None
) -> tuple[dict[str, examples.Examples], list[str]]:
    """(train, validation and test examples, with a ``layout`` in its groups; the names of what the
    head puts out).
    """
    hub.check_inputs(pretrained, config.image_column)
    task = get_task(config.task)
    columns = text_columns(config.text_column, config.text_pair_column)
    task.check_columns(columns, pretrained)
    task.check_head(config, pretrained)
    task.check_batches(config)
    own_test = config.train in bundled.SETS
    if config.test is None and not own_test:
        raise DataError(
            f"--test is missing: {config.train} is not a bundled set with a test part of its own"
        )
    tables = {
        "train": read(config.train, split="train" if own_test else None),
        "test": read(
            config.test or config.train,
            split="test" if (config.test or config.train) in bundled.SETS else None,
        ),
    }
    if config.validation:
        if config.validation in bundled.SETS and config.validation in (config.train, config.test):
            raise StrategyError(
                f"--validation {config.validation} is the whole set, with what is trained and "
                "tested on: leave it out for 10% "
                "of --train, or name other data"
            )
        tables["validation"] = read(config.validation)
    names = task.label_names(tables["train"], config.label_column, columns)
    sets = {}
    for part, table in tables.items():
        labels = task.encode_labels(table, config.label_column, names)
        sets[part] = task.examples(pretrained, table, columns, labels, config.image_column)
    if not config.validation:
        kept, held = stratified_split(sets["train"].labels, 0.1, config.seed)
        held_out = dataclasses.replace(
            sets["train"].take(held), truncated=0
        )  # counted once, for the whole file
        sets["train"], sets["validation"] = sets["train"].take(kept), held_out
    sets = {part: task.pair_examples(made, config.seed) for part, made in sets.items()}
    sets = {part: dataclasses.replace(made, layout=layout) for part, made in sets.items()}
    return sets, task.output_names(names)

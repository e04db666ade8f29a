"""What the training experiments share: the checkpoint and the data that their flags name."""

import dataclasses
from pathlib import Path

import jax

from adapt import extensions
from adapt.cli import run_folder
from adapt.data import bundled, tables
from adapt.data.examples import Examples
from adapt.data.labels import stratified_split
from adapt.data.tables import Table
from adapt.errors import DataError, OutputError, StrategyError
from adapt.finetuning import FinetuningOptions
from adapt.options import DataOptions, ModelOptions, RunOptions, check_ranges
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


def check_out(checkpoint: str, run: RunOptions) -> None:
    """Refuse an output folder that exists, and one that a run between it and ``checkpoint`` refers
    to for its encoder.
    """
    run_folder.check_out(run.out, run.resume, run.overwrite)
    if run.resume and (run.out / "model.json").exists():
        extensions.check_run(run.out)
    out = run.out.resolve()
    source = checkpoint
    visited = []
    while True:
        folder = Path(source).expanduser().resolve()
        if folder in visited or not (folder / "model.json").is_file():
            return
        visited.append(folder)
        base = hub.read_json(folder, "model.json").get("base") or {}
        source = base.get("source", "")
        if source and Path(source).resolve() == out:
            raise OutputError(
                f"--out {run.out} holds the encoder that {folder} refers to: give another --out"
            )


def load(options: ModelOptions, seed: int) -> hub.Pretrained:
    """The checkpoint, with the flags that change it."""
    pretrained = hub.load(options.checkpoint)
    config = pretrained.config
    if options.dropout is not None:
        changed = dataclasses.replace(
            config, dropout=options.dropout, attention_dropout=options.dropout
        )
        pretrained = dataclasses.replace(pretrained, config=changed)
    if options.max_length is not None and pretrained.tokenizer is not None:
        if not 3 <= options.max_length <= config.positions:
            raise StrategyError(
                f"--max-length {options.max_length} must be 3 to {config.positions}, "
                "the encoder's positions"
            )
        tokenizer = pretrained.tokenizer.cut_to(options.max_length)
        pretrained = dataclasses.replace(pretrained, tokenizer=tokenizer)
    if options.random_weights:
        fresh = jax.device_get(pretrained.model.init(jax.random.key(seed + 1)))
        pretrained = dataclasses.replace(pretrained, params=fresh)
    return pretrained


def read(spec: str | Path, split: str | None = None) -> Table:
    """What :func:`adapt.data.tables.read` reads, or a bundled set: ``reviews``, ``reviews:test``."""
    name, _, part = str(spec).partition(":")
    if Path(spec).expanduser().exists():
        return tables.read(spec, split=split)
    if name in bundled.SETS:
        return tables.from_columns(bundled.read(name, split or part or None), str(spec))
    if "/" not in str(spec) and not Path(name).suffix:
        raise DataError(
            f"{name!r} is no file and no bundled set ({', '.join(bundled.SETS)}); on the hub, "
            "names are org/name"
        )
    return tables.read(spec, split=split)


def read_sets(
    data: DataOptions,
    options: FinetuningOptions,
    seed: int,
    pretrained: hub.Pretrained,
    layout: Layout | None = None,
) -> tuple[dict[str, Examples], list[str]]:
    """(train, validation and test examples, with a ``layout`` in its groups; the names of what the
    head puts out).
    """
    hub.check_inputs(pretrained, data.image_column)
    task = get_task(options.task)
    columns = text_columns(data.text_column, data.text_pair_column)
    task.check_columns(columns, pretrained)
    task.check_head(options, pretrained)
    task.check_batches(options)
    by_part = read_tables(data)
    names = task.label_names(by_part["train"], data.label_column, columns)
    sets = {}
    for part, table in by_part.items():
        labels = task.encode_labels(table, data.label_column, names)
        sets[part] = task.examples(pretrained, table, columns, labels, data.image_column)
    if not data.validation:
        train = sets["train"]
        rows, held_out_rows = stratified_split(train.labels, 0.1, seed)
        # What was truncated is counted once, for the whole file.
        sets["validation"] = dataclasses.replace(train.take(held_out_rows), truncated=0)
        sets["train"] = train.take(rows)
    sets = {part: task.pair_examples(made, seed) for part, made in sets.items()}
    sets = {part: dataclasses.replace(made, layout=layout) for part, made in sets.items()}
    return sets, task.output_names(names)


def read_tables(data: DataOptions) -> dict[str, Table]:
    """The tables ``train`` and ``test``, and ``validation`` where one is named."""
    train_is_bundled = data.train in bundled.SETS
    if data.test is None and not train_is_bundled:
        raise DataError(
            f"--test is missing: {data.train} is not a bundled set with a test part of its own"
        )
    test = data.test or data.train
    test_is_bundled = test in bundled.SETS
    by_part = {
        "train": read(data.train, split="train" if train_is_bundled else None),
        "test": read(test, split="test" if test_is_bundled else None),
    }
    if data.validation:
        is_whole = data.validation in bundled.SETS
        if is_whole and data.validation in (data.train, data.test):
            raise StrategyError(
                f"--validation {data.validation} is the whole set, with what is trained and "
                "tested on: leave it out for 10% of --train, or name other data"
            )
        by_part["validation"] = read(data.validation)
    return by_part

"""Many runs as one table: what each was configured with, where it comes from, how it scored.

A column is an entry of a run's files, by its path, such as ``test.accuracy``.

    table = runs("runs")                     # every run below the folder
    table.to_pandas().groupby("strategy")["test.accuracy"].mean()
"""

import dataclasses
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt import buckets, files
from adapt.errors import CheckpointError, OutputError
from adapt.pretrained import hub
from adapt.run_folder import outcome_of

logger = logging.getLogger(__name__)

# Entries of result.json and lineage.json that are trees or lists of their own.
LEFT_OUT = ("scores", "phases", "discarded", "used", "outcome")


@dataclasses.dataclass(frozen=True)
class RunTable:
    """A row for every run that was found, in the order of their folders.

    A row has the ``run``'s folder and its ``outcome`` (complete, early, diverged, or stopped); the
    entries of config.json by their names, ``used.pooling`` and so on; its scores as
    ``test.accuracy``; and what else result.json and lineage.json say, as ``result.seconds.total``
    and ``lineage.created``.
    """

    rows: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        experiments = [row.get("experiment") for row in self.rows]
        counts = [f"{experiments.count(name)} {name}" for name in dict.fromkeys(experiments)]
        return f"RunTable({len(self)} runs: {', '.join(counts)})"

    @property
    def columns(self) -> list[str]:
        """The names that any row has, in the order in which they come."""
        names: dict[str, None] = {}
        for row in self.rows:
            names |= dict.fromkeys(row)
        return list(names)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a run; what a run does not have is missing."""
        import pandas

        return pandas.DataFrame([dict(row) for row in self.rows], columns=self.columns)


def runs(paths: Any) -> RunTable:
    """The runs in some folders, and in all folders below them, as a table.

        adapt.runs("runs").to_pandas()[["run", "strategy", "test.accuracy"]]

    ``paths`` are the folder of a run, a folder that contains runs, or a list of such. Other folders
    in them are passed over; a run whose files can't be read is passed over with a warning. Raises
    :class:`OutputError` for a path that is not there, and one in which there is no run that can be
    read.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise OutputError(f"`paths` is of type {type(paths).__name__}: give a list of folders")
    folders: dict[Path, None] = {}
    for path in paths:
        folders |= dict.fromkeys(folders_of(path))
    if not folders:
        raise OutputError("`paths` is empty: give the folder of a run, or one that contains runs")
    rows = []
    for folder in folders:
        try:
            rows.append(row_of(folder))
        except CheckpointError as error:
            logger.warning("passed over: %s", error)
    if not rows:
        first = next(iter(folders))
        raise OutputError(f"`paths`: none of {len(folders)} runs can be read, the first is {first}")
    return RunTable(rows)


def folders_of(path: Any) -> list[Path]:
    """The folders of runs at a path and below it, sorted. Raises :class:`OutputError` if there is
    none.
    """
    files.check_is_path(path, "paths")
    folder = files.to_path(os.path.expanduser(path))
    if not buckets.exists(folder):
        raise OutputError(f"`paths` {folder} does not exist")
    found = sorted(remote_folders(folder) if files.is_remote(folder) else local_folders(folder))
    if not found:
        raise OutputError(
            f"`paths` {folder} holds no run: give what finetune or pretrain wrote, or a folder that "
            "contains such"
        )
    return found


def local_folders(folder: Path) -> Iterator[Path]:
    """The folders with model.json and config.json; what is in a run is not looked at."""
    for name, below, names in os.walk(folder):
        if "model.json" in names and "config.json" in names:
            below.clear()
            yield Path(name)
        # A hidden folder is a run that is being replaced.
        below[:] = [one for one in below if not one.startswith(".")]


def remote_folders(folder: Path) -> Iterator[Path]:
    """The same in a bucket, whose files are listed at once."""
    names = buckets.list_files(str(folder))
    for name in names:
        parent, _, file = name.rpartition("/")
        config = f"{parent}/config.json".lstrip("/")
        if file == "model.json" and config in names:
            yield folder / parent if parent else folder


def row_of(folder: Path) -> dict[str, Any]:
    """The row of a run. Raises :class:`CheckpointError` for a file that can't be read."""
    settings = hub.read_json(folder, "config.json")
    lineage = read_optional(folder, "lineage.json")
    result = read_optional(folder, "result.json")
    row: dict[str, Any] = {"run": str(folder), "outcome": outcome_of(result)}
    row |= {name: value for name, value in settings.items() if name != "used"}
    row |= flat(settings.get("used") or {}, "used")
    for split, scores in (result.get("scores") or {}).items():
        row |= flat(scores, split)
    row |= flat(without(result), "result")
    row |= flat(without(lineage), "lineage")
    return row


def read_optional(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run; {} where it is not there (yet)."""
    return hub.read_json(folder, name) if (folder / name).exists() else {}


def without(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is one value or a few of them."""
    return {name: value for name, value in content.items() if name not in LEFT_OUT}


def flat(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """``{"seconds": {"total": 3}}`` as ``{"result.seconds.total": 3}``."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}.{name}")
        else:
            values[f"{prefix}.{name}"] = value
    return values

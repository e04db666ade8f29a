"""metrics.jsonl: the records and validations of a run, one JSON object a line."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapt.errors import CheckpointError, OutputError
from adapt.files import parse_json
from adapt.parallel.multihost import is_lead_process
from adapt.training.events import Event, Stepped, Validated

Record = dict[str, Any]  # a line


def record_of(event: Event) -> Record | None:
    """The line of some steps or of a validation; None for any other event."""
    if isinstance(event, Stepped):
        rates = {f"rate_{group}": rate for group, rate in event.rates.items()}
        return {"epoch": event.epoch, **event.record, **rates}
    if isinstance(event, Validated):
        return {"epoch": event.epoch, **validation_record(event)}
    return None


def validation_record(event: Validated) -> Record:
    """The line of a validation, ``validation_`` before its names."""
    record: Record = {"step": event.step, "validation_loss": event.loss}
    for name, value in event.scores.items():
        record[f"validation_{name}"] = finite(value)
    return record


def finite(value: float) -> float | None:
    """``value``, or None where it is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None


class MemoryLog:
    """A callback that keeps the records of steps and validations in memory."""

    def __init__(self, record_of: Callable[[Event], Record | None] = record_of):
        self.record_of = record_of
        self.kept: list[Record] = []

    def __call__(self, event: Event) -> None:
        record = self.record_of(event)
        if record is not None:
            self.kept.append(record)

    def records(self) -> list[Record]:
        """What was logged until now."""
        return self.kept


class MetricsLog:
    """A callback that appends the records of steps and validations to a file.

    With several processes only the lead one writes. A checkpoint remembers the ``size`` of the
    file, and a resumed run cuts it back to that: what was logged after the checkpoint will be
    logged again.
    """

    def __init__(self, path: Path, record_of: Callable[[Event], Record | None] = record_of):
        self.path = path if is_lead_process() else Path(os.devnull)
        self.record_of = record_of

    def __call__(self, event: Event) -> None:
        record = self.record_of(event)
        if record is not None:
            self.write(record)

    def write(self, record: Record) -> None:
        """Append a line. Nothing stays open, so nothing is left unwritten when a disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from None

    def records(self) -> list[Record]:
        """What was written until now."""
        return read_records(self.path)

    @property
    def size(self) -> int:
        """Bytes written; 0 in a process that does not write."""
        return self.path.stat().st_size

    def cut_back(self, size: int) -> None:
        """Make the file, or keep its first ``size`` bytes."""
        if is_lead_process():
            self.path.touch()
            os.truncate(self.path, min(size, self.size))


def read_records(path: Path) -> list[Record]:
    """The records of a metrics.jsonl; [] where there is no such file.

    A last line without a line break is left out: its process was killed while it wrote. Raises
    :class:`CheckpointError` for any other line that is no record.
    """
    if not path.is_file():
        return []
    records = []
    with path.open("rb") as file:
        complete = [line for line in file if line.endswith(b"\n")]
    for number, line in enumerate(complete, 1):
        try:
            record = parse_json(line.decode())
            if not isinstance(record, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            raise CheckpointError(
                f"{path}: line {number} is no record ({error}): delete the line"
            ) from None
        records.append(record)
    return records

"""metrics.jsonl: the records and validations of a run, one JSON object a line."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapt.errors import OutputError
from adapt.parallel.multihost import is_lead_process
from adapt.training.events import Event, Stepped, Validated


class MetricsLog:
    """A callback that appends steps and validations to a file.

    Of several processes only the lead one writes. A checkpoint remembers the ``size`` of the file,
    and a resumed run cuts it back to that: what was logged after the checkpoint will be logged
    again.
    """

    def __init__(self, path: Path):
        self.path = path if is_lead_process() else Path(os.devnull)

    def __call__(self, event: Event) -> None:
        record = record_of(event)
        if record is not None:
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a line. Nothing stays open, so nothing is left unwritten when a disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from None

    def records(self) -> list[dict[str, Any]]:
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


def record_of(event: Event) -> dict[str, Any] | None:
    """The line of some steps or of a validation; None for any other event."""
    if isinstance(event, Stepped):
        rates = {f"rate_{group}": rate for group, rate in event.rates.items()}
        return {"epoch": event.epoch, **event.record, **rates}
    if isinstance(event, Validated):
        return {"epoch": event.epoch, **validation_record(event)}
    return None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; none where there is no such file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def validation_record(event: Validated) -> dict[str, float | None]:
    """The line of a validation, ``validation_`` before its names."""
    record: dict[str, float | None] = {"step": event.step, "validation_loss": event.loss}
    for name, value in event.scores.items():
        record[f"validation_{name}"] = finite(value)
    return record


def finite(value: float) -> float | None:
    """``value``, or None where it is not finite: JSON has no NaN."""
    return value if math.isfinite(value) else None

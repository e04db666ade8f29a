"""What a fine-tuning run must know to go on after a stop, and how it is saved."""

import dataclasses
from pathlib import Path
from typing import Any

from adapt import tree
from adapt.cli import console
from adapt.training import checkpoint
from adapt.training.phases import Run, changed
from adapt.training.step import State


@dataclasses.dataclass
class Progress:
    """What the loop must know to go on after a stop, beside the state."""

    best_score: float | None = None
    best_loss: float = 0.0
    best_step: int = 0
    stale: int = 0  # epochs since the best
    step: int = 0
    saved: int = 0  # step of the last save
    examples: float = 0.0
    seconds: float = 0.0
    tokens: float = 0  # of examples, and
    slots: float = 0  # of the rows that they were packed in
    metrics_bytes: int = 0
    phase: int = 0
    best_phase: int = 0
    phases: list[dict[str, Any]] = dataclasses.field(
        default_factory=list
    )  # that began: frozen digest, cached or not, the cache

    def cached(self, phase: Run) -> bool | None:
        """Whether this phase used the cache before a stop; None if it had not begun."""
        return self.phases[phase.number]["cached"] if phase.number < len(self.phases) else None

    def count(self, record: dict[str, float]) -> None:
        """Add what a record of the loop tells."""
        self.step = int(record["step"])
        self.examples += record["timed_examples"]
        for name in ("seconds", "tokens", "slots"):
            setattr(self, name, getattr(self, name) + record[name])


def begin(
    saves: Path,
    phase: Run,
    frozen: tree.Tree,
    stored: tree.Tree,
    state: State,
    progress: Progress,
    metrics: console.Metrics,
    caches: bool,
) -> None:
    """Note that a phase begins, and save what it has: a good checkpoint to keep, whenever the run stops."""
    progress.phase, progress.stale = phase.number, 0
    progress.phases = [
        *progress.phases[: phase.number],
        {"digest": tree.digest(frozen), "cached": caches},
    ]
    checkpoint.save_frozen(saves, changed(frozen, stored), phase.number)
    save(saves, state, progress, metrics, best=False)


def save(
    saves: Path, state: State, progress: Progress, metrics: console.Metrics, best: bool
) -> None:
    progress.saved, progress.metrics_bytes = int(state.step), metrics.size
    checkpoint.save(saves, state, {"progress": dataclasses.asdict(progress)}, best, progress.phase)

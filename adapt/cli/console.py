"""What a person sees and what a run leaves: tables, progress, metrics.jsonl, plots. Quiet when not on a terminal."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table

from adapt.errors import OutputError
from adapt.parallel.multihost import is_lead_process

console = Console(
    highlight=False, markup=False, emoji=False, soft_wrap=True
)  # result lines: printed always
if not console.is_terminal:
    console.width = 120  # a file or a pipe has no width of its own
chat = Console(
    highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=not console.is_terminal
)  # what only a person watches


def warn(sentence: str) -> None:
    """A line on stderr that begins with ``note:``."""
    if not is_lead_process():
        return
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False).print(
        f"note: {sentence}"
    )


class NoteHandler(logging.Handler):
    """Shows what the library warns of as a note; ``translate`` is applied to the sentence before."""

    def __init__(self, translate: Callable[[str], str]):
        super().__init__(logging.WARNING)
        self.translate = translate

    def emit(self, record: logging.LogRecord) -> None:
        warn(self.translate(record.getMessage()))


@contextlib.contextmanager
def notes_on_stderr(translate: Callable[[str], str]) -> Iterator[None]:
    """Inside, warnings of the loggers of adapt are notes on stderr, and nothing else shows them."""
    handler = NoteHandler(translate)
    loggers = [logging.getLogger(name) for name in ("adapt", "experiments")]
    propagated = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, propagated, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def warn_truncated(count: int, longest: int, where: str) -> None:
    """Say how many texts of ``where`` were cut to ``longest`` tokens, if any were."""
    if count:
        what = "1 text is" if count == 1 else f"{count:,} texts are"
        warn(f"{where}: {what} longer than {longest} tokens and truncated")


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], out: Console = chat
) -> None:
    """A small table; numbers to the right."""
    view = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2),
    )
    for index, name in enumerate(columns):
        view.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        view.add_row(
            *(
                f"{cell:,}"
                if isinstance(cell, int)
                else f"{cell:.4g}"
                if isinstance(cell, float)
                else str(cell)
                for cell in row
            )
        )
    out.print(view)
    out.print()


class Progress:
    """A progress bar with the loss, examples a second and the time left; nothing when not on a terminal."""

    def __init__(self, bar: bars.Progress, task: bars.TaskID):
        self.bar, self.task = bar, task

    def set_total(self, total: int) -> None:
        """For a number that is known only after the beginning."""
        self.bar.update(self.task, total=total)

    def show(self, done: int, total: int) -> None:
        """A callback for what reports (done, total)."""
        self.bar.update(self.task, completed=done, total=total)

    def update(self, done: int, **shown: str) -> None:
        self.bar.update(
            self.task,
            completed=done,
            shown="  ".join(f"{name} {value}" for name, value in shown.items()),
        )


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Progress]:
    """``with progress("training", steps) as bar: bar.update(step, loss="0.31")``."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[shown]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=chat, transient=True) as bar:
        yield Progress(bar, bar.add_task(what, total=total, completed=done, shown=""))


class Clock:
    """Where the seconds of a run went: ``lap(name)`` adds the time since the last lap to ``laps[name]``."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = self.laps.get(name, 0.0) + now - self.last, now

    @property
    def total(self) -> float:
        return sum(self.laps.values())


class Metrics:
    """metrics.jsonl: one JSON object a line. ``size`` is what a checkpoint remembers, to cut the file back to on resume."""

    def __init__(self, path: Path, size: int = 0):
        self.path = path if is_lead_process() else Path(os.devnull)
        if is_lead_process():
            path.touch()
            os.truncate(path, min(size, self.size))

    def write(self, record: Mapping[str, Any]) -> None:
        try:
            with self.path.open(
                "a", encoding="utf-8"
            ) as file:  # nothing stays open, or unwritten when a disk is full
                file.write(json.dumps(record) + "\n")
        except OSError as fault:
            raise OutputError(f"cannot write {self.path}: {fault.strerror}") from None

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def plot_history(run: Path, score: str = "") -> Path:
    """history.png from metrics.jsonl: loss by step, validation loss, and below it the validation ``score`` by step."""
    path = run / "history.png"
    if not is_lead_process():
        return path
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_metrics(run / "metrics.jsonl")
    training = [r for r in records if "loss" in r]
    checks = [r for r in records if "validation_loss" in r]
    scored = [r for r in checks if r.get(f"validation_{score}") is not None] if score else []
    figure, axes = plt.subplots(
        2 if scored else 1,
        1,
        figsize=(7, 5.6 if scored else 3.6),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    axis = axes[0, 0]
    axis.plot(
        [r["step"] for r in training],
        [r["loss"] for r in training],
        ".-",
        color="#4477aa",
        lw=1.2,
        ms=3,
        label="training",
    )
    if checks:
        axis.plot(
            [r["step"] for r in checks],
            [r["validation_loss"] for r in checks],
            "o-",
            color="#cc6677",
            ms=4,
            label="validation",
        )
    axis.set_ylabel("loss (nats)" if score != "pearson" else "squared error")
    axis.legend(frameon=False)
    if scored:
        below = axes[1, 0]
        below.plot(
            [r["step"] for r in scored],
            [r[f"validation_{score}"] for r in scored],
            "o-",
            color="#cc6677",
            ms=4,
        )
        best = max(scored, key=lambda r: r[f"validation_{score}"])
        below.annotate(
            f"{best[f'validation_{score}']:.3f}",
            (best["step"], best[f"validation_{score}"]),
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            fontsize=9,
        )
        below.margins(y=0.25)
        below.set_ylabel(f"validation {score.replace('_', ' ')}")
    axes[-1, 0].set_xlabel("step")
    for axis in axes[:, 0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path

"""What a person, or a log, sees of a training run while it runs.

A fit calls it with every event.

    with training_report("strategy top:2") as report:
        fit(..., callbacks=[report])
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from adapt.cli import console
from adapt.cost.memory import gib
from adapt.tasks.metrics import is_of_a_class
from adapt.training import events


@contextlib.contextmanager
def training_report(
    title: str, shows_epochs: bool = True, deciding: str | None = None
) -> Iterator["TrainingReport"]:
    """A callback of a training run; ``title`` stands above the table of what trains, ``deciding`` is
    the metric by which validation decides.
    """
    with contextlib.ExitStack() as stack:
        yield TrainingReport(title, stack, shows_epochs, deciding)


class TrainingReport:
    """Says what trains, what runs at present, compiling too, and how each validation ended.

    A terminal has a bar with the loss and the speed. A log has a line whenever something compiles,
    a line a validation, and at least one a minute.
    """

    def __init__(
        self,
        title: str,
        stack: contextlib.ExitStack,
        shows_epochs: bool = True,
        deciding: str | None = None,
    ):
        self.title = title
        self.deciding = deciding
        self.shows_epochs = shows_epochs
        self.stack = stack  # closes the bar
        self.bar = console.Progress("training", 0)
        self.step = 0
        self.steps = 0
        self.phases = 1

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Started():
                self.start(event)
            case events.PhaseStarted() if self.phases > 1:
                console.say(f"phase     {phase_line(event.phase, self.phases)}")
            case events.FrozenStored():
                console.say(f"frozen    {stored_line(event)}")
            case events.CacheChosen():
                console.say(f"cache     {'on' if event.is_used else 'off'}: {event.reason}")
            case events.CacheWaiting():
                console.say("cache     another process is computing it: waiting")
            case events.CacheProgress():
                self.bar.turn_to("encoding", event.done, event.total)
            case events.CacheReady() if event.relative_error:
                error = f"{event.relative_error:.1e} (root mean square)"
                console.say(
                    f"cache     {event.dtype} keeps the states to a relative error of {error}"
                )
            case events.Compiling():
                self.compile(event)
            case events.Evaluating():
                doing = "testing" if event.name == "test" else "validating"
                self.bar.turn_to(doing, self.step, self.steps)
            case events.Stepped():
                self.step = event.step
                self.bar.update(self.step, **values_of(event.record))
            case events.Validated():
                console.say(validation_line(event, self.shows_epochs, self.deciding))
                self.bar.turn_to("training", self.step, self.steps)

    def start(self, event: events.Started) -> None:
        self.step = event.step
        self.steps = event.steps
        self.phases = len(event.phases)
        for phase in event.phases:
            show_groups(self.title, phase, self.phases)
        if event.step:
            console.say(f"resumed   after step {event.step:,} of {event.steps:,}")
        bar = console.progress("training", event.steps, event.step)
        self.bar = self.stack.enter_context(bar)

    def compile(self, event: events.Compiling) -> None:
        """A terminal shows by itself when it compiles."""
        what = "the evaluation"
        if event.what == "step":
            shape = " x ".join(map(str, event.shape))
            what = f"a step of shape {shape}"
            self.bar.turn_to("training", self.step, self.steps)
        beside = ", beside training" if event.is_beside else ""
        if beside or not console.is_terminal():
            console.say(f"compiling {what}{beside}")


def show_groups(title: str, phase: events.PhaseSummary, phases: int) -> None:
    """The table of the groups of parameters of a phase."""
    rows = []
    for group in phase.groups:
        rate = "frozen" if group.learning_rate is None else f"{group.learning_rate:.2g}"
        rows.append((group.name, group.parameters, rate))
    if phases > 1:
        title = f"{title}, {phase_line(phase, phases)}"
    console.table(title, ("group", "parameters", "learning rate"), rows)


def phase_line(phase: events.PhaseSummary, phases: int) -> str:
    """``2 of 3, epochs 2 to 4``, counted from 1."""
    epochs = f"{phase.epochs.start + 1} to {phase.epochs.stop}"
    return f"{phase.number + 1} of {phases}, epochs {epochs}"


def stored_line(event: events.FrozenStored) -> str:
    """``512 kernels in int8, 1.02 GiB in place of 4.1 GiB; they differ by 0.8% ...``."""
    sizes = f"{size_text(event.nbytes)} in place of {size_text(event.computed_bytes)}"
    return (
        f"{event.kernels} kernels in {event.dtype}, {sizes}; they differ by "
        f"{event.kernel_error:.2%}, the encoder's outputs by {event.output_error:.2%} (root mean "
        "square)"
    )


def stored_record(stored: events.FrozenStored | None) -> dict[str, Any] | None:
    """What result.json says of kernels that no phase trains; None where they are stored as they are
    computed.
    """
    if stored is None:
        return None
    return {name: value for name, value in dataclasses.asdict(stored).items() if name != "phase"}


def size_text(nbytes: int) -> str:
    """``10.7 MB``, or from one GiB on ``1.02 GiB``."""
    return f"{gib(nbytes)} GiB" if nbytes >= 2**30 else f"{nbytes / 1e6:.3g} MB"


def values_of(record: Mapping[str, float]) -> dict[str, str]:
    """What is shown of the record of some steps."""
    speed = record["timed_examples"] / max(record["seconds"], 1e-9)
    return {"loss": f"{record['loss']:.4f}", "examples/s": f"{speed:,.0f}"}


def validation_line(
    event: events.Validated, shows_epoch: bool = True, deciding: str | None = None
) -> str:
    """``epoch 1, step 297   validation loss 0.5012   accuracy 0.7531``; of the scores of single
    classes the ``deciding`` one alone.
    """
    scores = []
    for name, value in event.scores.items():
        if name == deciding or not is_of_a_class(name):
            scores.append(f"{name} {value:.4f}")
    where = f"step {event.step:,}"
    if shows_epoch:
        where = f"epoch {event.epoch + 1}, {where}"
    return "   ".join([where, f"validation loss {event.loss:.4f}", *scores])

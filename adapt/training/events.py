"""What a training run tells while it runs, as plain data for callbacks.

    def show(event):
        if isinstance(event, events.Validated):
            print(event.step, event.scores)

    fit(plan, data, options, callbacks=[show])

A callback is called in the thread that trains, in the order of the list, and what it raises ends
the run. With several processes each calls its own. Phases and epochs are counted from 0, steps from 1
and over the whole run.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from adapt.errors import StrategyError

Outcome = Literal["complete", "early", "stopped"]  # early: no better validation for too long


@dataclasses.dataclass(frozen=True)
class GroupSummary:
    """A group of parameters, by the name that the strategy's rules give it."""

    name: str
    parameters: int
    learning_rate: float | None  # its peak; None: frozen


@dataclasses.dataclass(frozen=True)
class PhaseSummary:
    """What a phase trains, and in which epochs."""

    number: int
    epochs: range
    groups: tuple[GroupSummary, ...]


@dataclasses.dataclass(frozen=True)
class Started:
    """The run begins or, with ``step`` above 0, goes on after that step. First of all events."""

    phases: tuple[PhaseSummary, ...]
    steps: int  # of the whole run, if nothing stops it early
    step: int


@dataclasses.dataclass(frozen=True)
class PhaseStarted:
    """A phase is entered; a resumed run enters the phase in which it was stopped once more."""

    phase: PhaseSummary
    step: int


@dataclasses.dataclass(frozen=True)
class FrozenStored:
    """Frozen kernels are on the devices in fewer bytes than the computation takes.

    ``kernels`` are ``nbytes`` there in place of ``computed_bytes`` in the dtype of the computation.
    ``kernel_error`` is that of all kernels, ``output_error`` that of the encoder's states of a few
    training examples, both root mean squares relative to what is exact.
    """

    phase: int
    dtype: str
    kernels: int
    nbytes: int
    computed_bytes: int
    kernel_error: float
    output_error: float


@dataclasses.dataclass(frozen=True)
class CacheChosen:
    """Whether outputs of the frozen prefix are computed once and kept, and why.

    Not sent by a run that has no cache at all, as pre-training.
    """

    phase: int
    is_used: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class CacheProgress:
    """``done`` of ``total`` examples have gone through the frozen prefix."""

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class CacheWaiting:
    """Another process is filling the same cache: this one waits for it."""


@dataclasses.dataclass(frozen=True)
class CacheReady:
    """All outputs of the frozen prefix are there.

    ``relative_error`` is that of storing them as ``dtype``, root mean square.
    """

    phase: int
    dtype: str
    relative_error: float


@dataclasses.dataclass(frozen=True)
class Compiling:
    """A program meets a shape for the first time.

    The next call compiles it, or reads it from the compilation cache; unless that ``is_beside``
    training, in a thread.
    """

    what: Literal["step", "evaluation"]
    shape: tuple[int, ...] = ()  # rows and tokens of a step's batch
    is_beside: bool = False


@dataclasses.dataclass(frozen=True)
class Evaluating:
    """A set is about to be scored: ``validation``, or ``test``."""

    name: str


@dataclasses.dataclass(frozen=True)
class Stepped:
    """Some steps were taken, as many as are between two looks at the device.

    ``record`` is what :func:`adapt.training.loop.run_steps` yields: ``step``, ``loss``,
    ``grad_norm``, ``examples``, ``seconds`` and others. ``rates`` are the learning rates of the
    last of these steps, by group.
    """

    epoch: int
    record: Mapping[str, float]
    rates: Mapping[str, float]

    @property
    def step(self) -> int:
        return int(self.record["step"])


@dataclasses.dataclass(frozen=True)
class Validated:
    """The validation examples were scored. ``is_best``: no earlier validation was better."""

    epoch: int
    step: int
    loss: float
    scores: Mapping[str, float]  # by metric; nan where one is not defined
    is_best: bool


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint is complete."""

    step: int
    is_best: bool


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event of training, which the test may follow.

    A run whose ``outcome`` is ``stopped`` has steps left, and can go on.
    """

    step: int
    best_step: int
    outcome: Outcome


Event = (
    Started
    | PhaseStarted
    | FrozenStored
    | CacheChosen
    | CacheProgress
    | CacheWaiting
    | CacheReady
    | Compiling
    | Evaluating
    | Stepped
    | Validated
    | Saved
    | Finished
)
Callback = Callable[[Event], None]
OnProgress = Callable[[int, int], None]  # (done, total), of work that has no other events


def as_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """The functions in a list. Raises :class:`StrategyError` for one function, or what is none."""
    if not isinstance(callbacks, Iterable):
        kind = type(callbacks).__name__
        raise StrategyError(f"`callbacks` is of type {kind}: give a list of functions")
    functions = tuple(callbacks)
    for number, function in enumerate(functions):
        if not callable(function):
            raise StrategyError(f"`callbacks`[{number}] is {function!r}, which is no function")
    return functions


def counting_from(before: int, total: int, on_progress: OnProgress | None) -> OnProgress:
    """The callback of one part of several: it reports what is done of all, ``before`` at first."""

    def report(done: int, _: int) -> None:
        if on_progress is not None:
            on_progress(before + done, total)

    return report


def broadcast(callbacks: Iterable[Callback]) -> Callback:
    """One callback that calls all of them in turn."""
    callbacks = tuple(callbacks)

    def send(event: Event) -> None:
        for callback in callbacks:
            callback(event)

    return send

"""Trackers: callbacks that hand what a run logs to TensorBoard or to Weights & Biases.

    adapt.finetune(..., callbacks=[trackers.tensorboard("runs/mine/tensorboard")])
    adapt.finetune(..., callbacks=[trackers.wandb(project="films", mode="offline")])

Each needs a package of its own: tensorboardX, wandb. metrics.jsonl is written with or without them.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt import files
from adapt.errors import StrategyError
from adapt.options import Tracker
from adapt.parallel.multihost import is_lead_process
from adapt.training.events import Callback, Event, Finished
from adapt.training.metrics_log import record_of

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def tensorboard(folder: str | Path) -> Callback:
    """A callback that writes an event file of TensorBoard into ``folder``.

    Raises :class:`StrategyError` without the package tensorboardX, OutputError for a bucket.
    """
    package = imported("tensorboard")
    local = files.local_path(files.to_path(folder), "folder")

    @functools.cache
    def writer() -> Any:
        return package.SummaryWriter(str(local))  # at the first event: the folder is there then

    def log(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer().add_scalar(name, value, step)
        writer().flush()

    return tracked(log, lambda: writer().close())


def wandb(settings: Mapping[str, Any] | None = None, **options: Any) -> Callback:
    """A callback that logs to a run of Weights & Biases.

    ``settings`` become the run's config, ``options`` go to ``wandb.init``: project, name, dir, mode.
    Raises :class:`StrategyError` without the package wandb.
    """
    package = imported("wandb")

    @functools.cache
    def run() -> Any:
        return package.init(config=dict(settings or {}), **options)

    def log(step: int, values: Mapping[str, float]) -> None:
        run().log(dict(values), step=step)

    return tracked(log, lambda: run().finish())


def make_trackers(
    names: Sequence[Tracker], out: Path, settings: Mapping[str, Any]
) -> list[Callback]:
    """The trackers of a run in the folder ``out``: they write below it."""
    made = {
        "tensorboard": lambda: tensorboard(out / "tensorboard"),
        "wandb": lambda: wandb(settings, name=out.name, dir=str(files.local_path(out, "out"))),
    }
    return [made[name]() for name in names]


def tracked(
    log: Callable[[int, Mapping[str, float]], None], finish: Callable[[], None]
) -> Callback:
    """A callback that logs the numbers of steps and validations, in the lead process alone."""

    def track(event: Event) -> None:
        if not is_lead_process():
            return
        record = record_of(event)
        if record is not None:
            log(int(record["step"]), dict(grouped(record)))
        if isinstance(event, Finished):
            finish()

    return track


def grouped(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """``validation/accuracy``, ``rate/head``, ``train/loss`` and their numbers."""
    for name, value in record.items():
        if name == "step" or value is None:
            continue
        for group in ("validation", "rate"):
            if name.startswith(f"{group}_"):
                yield f"{group}/{name.removeprefix(f'{group}_')}", value
                break
        else:
            yield f"train/{name}", value


def imported(name: str) -> Any:
    """The package of a tracker. Raises :class:`StrategyError` where it is not installed."""
    package = PACKAGES[name]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise StrategyError(
            f"`track` {name} needs the package {package}: pip install {package}"
        ) from None

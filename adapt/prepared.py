"""A run that is prepared: what trains on which data, before its first step.

:mod:`adapt.finetuning` and :mod:`adapt.pretraining` prepare a kind each. Both are trained by
:meth:`PreparedRun.train`, in memory or in a folder.
"""

import abc
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from adapt import files, run_folder, tree
from adapt.cost.clock import Laps
from adapt.errors import DivergedError, StrategyError
from adapt.fitting import Fitted, Plan, TrainingData, fit
from adapt.options import TrainingOptions
from adapt.parallel import multihost
from adapt.pretrained import hub
from adapt.pretrained.hub import Pretrained
from adapt.program_cache import keep_programs
from adapt.run import Run
from adapt.training import metrics_log
from adapt.training.events import Callback, Event
from adapt.training.metrics_log import MemoryLog, MetricsLog, Record
from adapt.training.run_state import FolderCheckpoints, best_validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRun(abc.ABC):
    """A run before its first step; a subclass says what differs between kinds of training."""

    plan: Plan
    data: TrainingData
    settings: Mapping[str, Any]  # config.json of the run

    # Whether the parameters are scored before the first step, too.
    validates_first: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def training(self) -> TrainingOptions:
        """When the run logs, saves and stops."""

    @abc.abstractmethod
    def origin(self) -> dict[str, Any]:
        """Where the run comes from: lineage.json."""

    @abc.abstractmethod
    def digests(self) -> dict[str, str]:
        """The digests of the data, which have to be the same in all processes of a run."""

    @abc.abstractmethod
    def finish(self, fitted: Fitted) -> tuple[tree.Tree, dict[str, Any]]:
        """(the best parameters, what result.json says) of a run that was not stopped."""

    def params_of_model(self, params: tree.Tree) -> tree.Tree:
        """The parameters of the model that a run makes, of all that it trains."""
        return params

    def write_companions(self, folder: Path) -> None:
        """Write what trained beside the model into the folder of a run that has ended."""
        return

    def diverged_result(
        self, error: DivergedError, history: list[Record], folder: Path
    ) -> dict[str, Any]:
        """result.json of a run in ``folder`` whose loss was not finite."""
        return run_folder.diverged_result(error)

    def finished_model(self, fitted: Fitted) -> Pretrained:
        """The model that training made, still with the parameters that it began with."""
        return self.plan.pretrained

    def used(self) -> dict[str, Any]:
        """What config.json says of what was chosen where an option is None."""
        return {}

    @property
    def may_grow(self) -> Sequence[str]:
        """The options that a run which goes on may have more of."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What result.json says of the run beside its scores: what has to be known to read them."""
        return {
            "checkpoint": self.plan.pretrained.source,
            "seed": self.settings["seed"],
            "primary_metric": self.data.primary_metric,
            "dtype": self.plan.dtype,
            "commit": run_folder.commit(),
        }

    def encoder_reference(self, out: Path, digest: str) -> dict[str, str] | None:
        """The source and ``digest`` of the encoder that checkpoints refer to.

        None: they store it.
        """
        return None

    def record_of(self, event: Event) -> Record | None:
        """The line of metrics.jsonl for an event, if it has one."""
        return metrics_log.record_of(event)

    def announce(self) -> None:
        """Say what a run that begins has to say, and one that goes on said before."""
        return

    def train(
        self,
        out: Path | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        callbacks: Iterable[Callback] = (),
        laps: Laps | None = None,
        command: str | None = None,
        add_files: Callable[[Path], object] | None = None,
    ) -> Run:
        """Train to the end, and return the run with its best parameters.

        With ``out`` the folder gets config.json, lineage.json, model.json, metrics.jsonl,
        checkpoints and result.json. ``settings`` are what config.json says (default: those of the
        prepared run), ``defaults`` the settings of a run that began before there were such.
        ``laps`` may have begun with the set-up. ``command`` is the command line that result.json
        names. ``add_files`` is called with the folder when result.json is there; a folder in a
        bucket is a local one until it is complete.
        """
        keep_programs()
        if not resume:
            self.announce()
        settings = dict(self.settings if settings is None else settings)
        if self.used():
            settings["used"] = self.used()
        origin = self.origin()
        if out is None:
            log = MemoryLog(self.record_of)
            fitted = self.fit(None, [log, *callbacks], laps)
            return self.make_run(fitted, settings, origin, log.records(), command)

        with run_folder.open_run(
            out,
            settings,
            resume=resume,
            overwrite=overwrite,
            defaults=defaults,
            may_grow=self.may_grow,
        ) as folder:
            log = MetricsLog(folder.path / "metrics.jsonl", self.record_of)
            checkpoints = self.open_checkpoints(out, folder.path, origin, log, resume)
            if resume:
                checkpoints.grows = run_folder.grow(folder.path, settings, self.may_grow)
                settings = {**settings, **run_folder.extension(folder.path)}
            try:
                fitted = self.fit(checkpoints, [log, folder.keep_when_saved, *callbacks], laps)
            except DivergedError as error:
                result = self.diverged_result(error, log.records(), out)
                run_folder.write_json(folder.path / "result.json", result)
                folder.keep()
                raise
            run = self.make_run(fitted, settings, origin, log.records(), command, out)
            if run.outcome != "stopped":
                if run.pretrained.head != self.plan.pretrained.head and multihost.is_lead_process():
                    hub.save_head(folder.path, run.pretrained.head)
                self.write_companions(folder.path)
                run_folder.write_json(folder.path / "result.json", run.result)
                if add_files is not None:
                    add_files(folder.path)
        return run

    def fit(
        self,
        checkpoints: FolderCheckpoints | None,
        callbacks: Iterable[Callback],
        laps: Laps | None,
    ) -> Fitted:
        """Run the loop, with checkpoints in memory where there are none of a folder."""
        return fit(
            self.plan,
            self.data,
            self.training,
            checkpoints=checkpoints,
            callbacks=callbacks,
            laps=laps,
            validate_first=self.validates_first,
        )

    def make_run(
        self,
        fitted: Fitted,
        settings: Mapping[str, Any],
        origin: Mapping[str, Any],
        history: list[Record],
        command: str | None = None,
        folder: Path | None = None,
    ) -> Run:
        """The run as it ended. One that was stopped has its last parameters, and no result."""
        if fitted.outcome == "stopped":
            params, result = self.params_of_model(fitted.last_params()), {}
        else:
            params, result = self.finish(fitted)
            result |= self.facts() | {"command": command, "outcome": fitted.outcome}
        return Run(
            pretrained=dataclasses.replace(self.finished_model(fitted), params=params),
            result=result,
            settings=settings,
            lineage=origin,
            history=history,
            steps=fitted.steps,
            outcome=fitted.outcome,
            folder=folder,
            total_steps=self.plan.steps,
            validated=best_validation(dataclasses.asdict(fitted.progress)),
        )

    def open_checkpoints(
        self, out: Path, folder: Path, origin: Mapping[str, Any], log: MetricsLog, resume: bool
    ) -> FolderCheckpoints:
        """The checkpoints of the run's local ``folder``; a new run gets its model.json and
        lineage.json.

        Raises :class:`OutputError` where a run goes on with another encoder or other data.
        """
        digest = origin["encoder_digest"]
        if multihost.is_multiprocess():
            multihost.assert_same("what they read", {"the encoder": digest} | self.digests())
        pretrained = self.plan.pretrained
        reference = self.encoder_reference(out, digest)
        if resume:
            run_folder.check_same_origin(out, origin)
        else:
            if multihost.is_lead_process():
                hub.save_model(folder, pretrained, reference)
            run_folder.write_json(folder / "lineage.json", origin)
        return FolderCheckpoints(
            folder=folder / "checkpoints",
            resumes=resume,
            encoder=pretrained.params["encoder"] if reference else None,
            log=log,
            layout=self.plan.layout,
        )


def folder_of_run(
    out: str | Path | None,
    checkpoint: str,
    *,
    resume: bool,
    overwrite: bool,
    stop_after: int | None,
) -> Path | None:
    """The folder of a run that is to begin or to go on, as a path; None: it stays in memory.

    Raises :class:`OutputError` for a folder that can't be had, see
    :func:`adapt.run_folder.check_run_out`, and :class:`StrategyError` for what needs a folder where
    there is none.
    """
    if out is not None:
        files.check_is_path(out, "out")
        path = files.to_path(os.path.expanduser(out))
        run_folder.check_run_out(path, resume, overwrite, checkpoint)
        return path
    if resume or overwrite:
        raise StrategyError("`resume` and `overwrite` are of the folder of a run: give `out`")
    if stop_after is not None:
        raise StrategyError(
            f"`stop_after` {stop_after}: without a folder a stopped run can't go on: give `out`"
        )
    return None

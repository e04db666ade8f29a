"""The folder of a run: config.json, lineage.json, and the rules of ``resume`` and ``overwrite``.

    with open_run(out, {"experiment": "finetune", "epochs": 3}) as folder:
        ...         # writes to folder.path; after an error in here there is no folder

With several processes the lead one alone makes the folder and writes into it. A run whose folder is
in a bucket is written to a local one, see :mod:`adapt.staging`.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import adapt
from adapt import buckets, extensions, files, tree
from adapt.data.inputs import IN_MEMORY
from adapt.errors import DivergedError, OutputError, TrainingError
from adapt.options import DeviceOptions
from adapt.parallel.multihost import assert_same, barrier, is_lead_process, is_multiprocess
from adapt.pretrained.hub import Pretrained, read_json
from adapt.staging import StagedFolder, staging
from adapt.training.events import Event, Saved

# Settings that may differ between a run and its resumption; ``tables`` is a flag of the benchmark,
# ``used`` follows from the others.
UNCOMPARED = (
    "out",
    "resume",
    "overwrite",
    "stop_after",
    "tables",
    "track",
    "digests",
    "command",
    "used",
    *(field.name for field in dataclasses.fields(DeviceOptions)),
)
# Functions of one's own, by name: a run that has none does not name them.
OF_PYTHON = ("loss", "metrics", "weights", "extras")
# What a run had before it got more, by setting: its config.json does not make the same run at once.
EXTENDED = "extended_from"
UNFINISHED = "config.json.tmp"  # before it is renamed
# Settings that differ between the processes of one run.
OF_A_PROCESS = ("coordinator", "process_id", "join_timeout")
# Digests of lineage.json, and of what they are.
DIGESTS = {"encoder_digest": "the encoder of `checkpoint`", "data_digest": "the training data"}
COMMIT = re.compile("[0-9a-f]{40,64}")
# Packages that decide numbers.
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "datasets", "tokenizers", "numpy")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run writes: a local folder, ``out`` itself unless that is in a bucket.

    After a call of ``keep`` the folder stays, whatever happens: it holds something that a run can
    go on with. One in a bucket is brought up to date.
    """

    path: Path
    keep: Callable[[], None]

    def keep_when_saved(self, event: Event) -> None:
        """A callback of a training run that keeps its folder from the first checkpoint on."""
        if isinstance(event, Saved):
            self.keep()


def check_out(out: Path, resume: bool | None, overwrite: bool, may_be_remote: bool = False) -> None:
    """Raise :class:`OutputError` for an output folder that exists, before any work is done.

    ``resume`` is None where there is nothing to go on with. ``may_be_remote`` says that it can be
    written into a bucket, with one process.
    """
    if files.is_remote(out):
        check_remote(out, may_be_remote)
    if not is_lead_process():  # the lead process makes the folder, perhaps by now
        return
    if resume and overwrite:
        raise OutputError(
            "`resume` goes on with a run and `overwrite` deletes it: give one of them"
        )
    if resume and not buckets.exists(out / "config.json"):
        raise OutputError(f"`resume`: there is no run in {out} (no config.json)")
    if files.is_remote(out):
        is_free = not buckets.list_files(str(out))
    elif out.exists() and not out.is_dir():
        raise OutputError(f"`out` {out} is a file: give the name of a folder")
    else:
        is_free = not out.exists() or (out.is_dir() and not holds_anything(out))
    if not is_free and not resume and not overwrite:
        go_on = "" if resume is None else "`resume` to go on with it, "
        raise OutputError(
            f"the output folder {out} exists: give {go_on}`overwrite` to replace it, "
            "or another `out`"
        )


def check_remote(out: Path, may_be_remote: bool) -> None:
    """Raise :class:`OutputError` for a folder in a bucket that can't be written to."""
    buckets.check(out)
    if not may_be_remote:
        files.local_path(out, "out")
    if is_multiprocess():
        raise OutputError(
            f"`out` {out} is in a bucket, where a run of several processes does not write: give a "
            "folder on a disk that all of them see, and copy it there afterwards"
        )


def check_run_out(out: Path, resume: bool, overwrite: bool, checkpoint: str) -> None:
    """Raise :class:`OutputError` for an output folder that exists, and for one that holds the
    encoder of ``checkpoint``, directly or through runs that refer to each other;
    :class:`TrainingError` for a run that can only diverge again.
    """
    check_out(out, resume, overwrite, may_be_remote=True)
    if resume and (out / "model.json").exists():
        extensions.check_run(out)
    if resume:
        check_not_diverged(out)
    source = checkpoint
    visited = []
    while True:
        folder = files.absolute(os.path.expanduser(source))
        if folder in visited or not buckets.exists(folder / "model.json"):
            return
        visited.append(folder)
        base = read_json(folder, "model.json").get("base") or {}
        source = base.get("source", "")
        if source and files.absolute(source) == files.absolute(out):
            raise OutputError(
                f"`out` {out} holds the encoder that {folder} refers to: give another `out`"
            )


def check_not_diverged(out: Path) -> None:
    """Raise :class:`TrainingError` for a run whose loss was not finite: as the same run it would
    end at the same step.
    """
    if not buckets.exists(out / "result.json"):
        return
    result = read_json(out, "result.json")
    if outcome_of(result) == "diverged":
        reason = str(result.get("error", "")).partition(":")[0]
        raise TrainingError(
            f"`resume`: the run in {out} diverged ({reason}) and would end at the same step: lower "
            "`learning_rate` and start anew with `overwrite`"
        )


def diverged_result(error: DivergedError) -> dict[str, Any]:
    """What result.json says of a run that ended with this error."""
    return {"outcome": "diverged", "steps": error.steps, "error": str(error)}


@contextlib.contextmanager
def open_run(
    out: Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    defaults: Mapping[str, Any] | None = None,
    may_grow: Collection[str] = (),
) -> Iterator[RunFolder]:
    """Make the run's folder with ``settings`` as config.json, or check with ``resume`` that they
    are those of the run, where those in ``may_grow`` may be larger.

    ``settings`` are plain JSON, with the name of what is run as ``experiment``. An error inside
    leaves nothing half-written: the new folder goes, and what ``overwrite`` was to replace comes
    back, unless the folder was kept. ``defaults`` are the settings that a run had that began before
    there were such. Raises :class:`OutputError`; only a folder of the same ``experiment`` is ever
    replaced, and none that another process writes into.
    """
    shared = {
        f"`{name}`": repr(value) for name, value in settings.items() if name not in OF_A_PROCESS
    }
    assert_same("their settings", shared)

    if resume:
        check_settings(out, settings, defaults or {}, may_grow)
    if files.is_remote(out):
        with staging(str(out)) as folder:
            if resume:
                folder.resume()
            else:
                begin_staged(folder, out, settings, overwrite)
            yield RunFolder(folder.path, folder.upload)
        return
    if resume:
        with files.locked(out) if is_lead_process() else contextlib.nullcontext():
            yield RunFolder(out, nothing_to_keep)
        return

    if not is_lead_process():
        barrier("folder")
        if not (out / "config.json").exists():
            raise OutputError(
                f"`out` {out} is not on a disk that every host sees: "
                "the first process made it elsewhere"
            )
        yield RunFolder(out, nothing_to_keep)
        return

    with new_folder(out.resolve(), settings["experiment"], overwrite) as keep:
        write_json(out / "config.json", settings)
        barrier("folder")
        yield RunFolder(out, keep)


def nothing_to_keep() -> None:
    """For a folder that is not this process's to delete."""


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read back: lists for tuples, text for paths."""
    return json.loads(json.dumps(dict(settings), default=as_json_value))


def as_json_value(value: Any) -> Any:
    """What JSON has no form for: a number of NumPy as Python's, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def begin_staged(
    folder: StagedFolder, out: Path, settings: Mapping[str, Any], overwrite: bool
) -> None:
    """Make a new run's local folder. What is in the bucket stays until the first upload.

    Raises :class:`OutputError` as :func:`new_folder` does.
    """
    folder.previous = buckets.list_files(str(out)).keys()
    if folder.previous and not overwrite:
        raise being_filled(out)
    if folder.previous and command_of(out) != settings["experiment"]:
        raise not_written_by(settings["experiment"], out)
    write_json(folder.path / "config.json", settings)


@contextlib.contextmanager
def new_folder(out: Path, command: str, overwrite: bool) -> Iterator[Callable[[], None]]:
    """Make ``out`` an empty folder, and hold it; after an error inside, everything is as it was
    before.

    Unless the function that it yields was called: then the folder stays, and what it replaced is
    deleted.
    """
    new = NewFolder(out)
    if new.is_filled and not overwrite:
        raise being_filled(out)
    with contextlib.ExitStack() as held:
        if new.existed:
            held.enter_context(files.locked(out))
        new.check_replaces(command)
        try:
            new.make()
            if new.is_filled or not new.existed:
                held.enter_context(files.locked(out))
            new.is_ours = True
            yield new.keep
        except BaseException:
            new.undo()
            raise
        new.keep()


class NewFolder:
    """A folder that is made, and what it replaces, which is put aside until the new one is kept."""

    def __init__(self, out: Path):
        self.out = out
        self.previous = out.with_name(f".{out.name}.before")
        self.existed = out.exists()
        self.is_filled = self.existed and holds_anything(out)
        self.is_ours = False
        self.is_kept = False

    def check_replaces(self, command: str) -> None:
        """Raise :class:`OutputError` for a folder that another command wrote.

        What a run that was killed before it had saved anything was to replace is put back first.
        """
        if self.is_filled and self.previous.exists() and not has_saved(self.out):
            files.delete(self.out)
            self.previous.rename(self.out)
        if self.is_filled and command_of(self.out) != command:
            raise not_written_by(command, self.out)

    def make(self) -> None:
        """Put aside what is there, and make the folder."""
        if self.is_filled:
            files.delete(self.previous)
            self.out.rename(self.previous)
        make_folder(self.out, exist_ok=self.existed and not self.is_filled)

    def keep(self) -> None:
        """The new folder stays, and what it replaces is deleted."""
        if self.is_filled and not self.is_kept:
            with contextlib.suppress(OSError):
                files.delete(self.previous)
        self.is_kept = True

    def undo(self) -> None:
        """Everything is as it was before, unless the new folder is kept."""
        if self.is_kept:
            return
        if self.is_ours and self.out.exists():
            for path in self.out.iterdir():
                files.delete(path)
        if self.is_filled and (self.is_ours or not self.out.exists()):
            self.previous.replace(self.out)
        elif self.is_ours and not self.existed and self.out.exists():
            files.delete(self.out)


def holds_anything(out: Path) -> bool:
    """Whether there is anything in a folder but what a process leaves that was killed while it
    wrote the first file.
    """
    return any(path.name != UNFINISHED for path in out.iterdir())


def make_folder(out: Path, exist_ok: bool) -> None:
    """Make a folder, and those above it. Raises :class:`OutputError`."""
    try:
        out.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror or error}") from None


def being_filled(out: Path) -> OutputError:
    """The error of a folder that was free when :func:`check_out` looked."""
    return OutputError(
        f"the output folder {out} is being filled by another process: give another `out`"
    )


def not_written_by(command: str, out: Path) -> OutputError:
    """The error of a folder that ``overwrite`` does not replace."""
    return OutputError(
        f"{out} is not a folder that {command} wrote, so `overwrite` leaves it alone: "
        "remove it yourself"
    )


def outcome_of(result: Mapping[str, Any]) -> str:
    """How a run ended, by its result.json: complete, early, diverged, or stopped, where there is
    none.
    """
    if not result:
        return "stopped"
    return result.get("outcome", "complete")  # earlier runs do not say it


def has_saved(out: Path) -> bool:
    """Whether the run in ``out`` has saved anything that another run could go on with."""
    return any((out / name).exists() for name in ("result.json", "checkpoints/index.json"))


def command_of(out: Path) -> str | None:
    """The command that wrote the folder ``out``, by its config.json; None if none did."""
    try:
        return files.read_json(out / "config.json").get("experiment")
    except (OSError, ValueError, AttributeError):
        return None


def check_settings(
    out: Path,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    may_grow: Collection[str] = (),
) -> None:
    """Raise :class:`OutputError` naming the first setting that is not as it was when the run began.

    Those in ``may_grow`` may be larger. Data that were in memory may have a name by now: their
    digests are compared later.
    """
    try:
        before = {**defaults, **files.read_json(out / "config.json")}
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"`resume`: {out / 'config.json'} is not what adapt wrote: {error}"
        ) from None
    settings = with_used_dtype({**dict.fromkeys(OF_PYTHON), **settings})
    before = with_used_dtype(before)
    for name, value in settings.items():
        was = before.get(name)
        if name in UNCOMPARED or was == value or (was is not None and was == IN_MEMORY.get(name)):
            continue
        if name in may_grow and is_larger(value, was):
            continue
        mend = "give as many or more" if name in may_grow else "give the same"
        raise OutputError(f"`resume`: `{name}` was {was!r} in {out} and is {value!r} now: {mend}")


def with_used_dtype(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the dtype that was computed in where ``dtype`` is auto, which on another device
    may be another one.
    """
    used = settings.get("used") or {}
    if settings.get("dtype") == "auto" and "dtype" in used:
        return {**settings, "dtype": used["dtype"]}
    return dict(settings)


def is_larger(value: Any, before: Any) -> bool:
    """Whether a number has grown."""
    return isinstance(value, int) and isinstance(before, int) and value > before


def grow(folder: Path, settings: Mapping[str, Any], may_grow: Collection[str]) -> bool:
    """Whether a run that goes on gets more than it was to have, such as epochs.

    Its config.json then says so, and it is no longer finished: what result.json said goes.
    """
    file = folder / "config.json"
    before = files.read_json(file)
    grown = {}
    for name in may_grow:
        if is_larger(settings[name], before.get(name)):
            grown[name] = settings[name]
    if not grown:
        return False
    barrier("growing")  # every process has seen that it grows
    earlier = before.get(EXTENDED) or {}
    for name in grown:
        earlier[name] = [*earlier.get(name, []), before[name]]
    write_json(file, before | grown | {EXTENDED: earlier})
    if is_lead_process():
        (folder / "result.json").unlink(missing_ok=True)
    return True


def extension(folder: Path) -> dict[str, Any]:
    """What config.json says of a run that got more later; {} of any other."""
    before = files.read_json(folder / "config.json").get(EXTENDED)
    return {EXTENDED: before} if before else {}


def check_same_origin(out: Path, origin: Mapping[str, Any]) -> None:
    """Raise :class:`OutputError` with ``resume`` when the encoder or the data, those it is scored
    on among them, are not those that the run began with.
    """
    before = read_lineage(out)
    changed = [what for name, what in DIGESTS.items() if before.get(name) != origin[name]]
    before_sets = before.get("digests") or {}  # runs of before 2026-11-27 have none
    for name, digest in origin.get("digests", {}).items():
        if before_sets.get(name, digest) != digest:
            changed.append(f"the {name} data")
    metric = origin.get("primary_metric")
    if before.get("primary_metric", metric) != metric:
        raise OutputError(
            f"`resume`: {before['primary_metric']} decided between the validations of the run in "
            f"{out}, and {metric} does now: give the former as `score`"
        )
    if changed:
        raise OutputError(
            f"`resume`: {changed[0]} changed since the run in {out} began: "
            "start anew with `overwrite`"
        )


def read_lineage(out: Path) -> dict[str, Any]:
    """The lineage.json of the run in ``out``. Raises :class:`OutputError` where it can't be read."""
    try:
        return dict(files.read_json(out / "lineage.json"))
    except (OSError, ValueError, TypeError) as error:
        raise OutputError(
            f"`resume`: {out / 'lineage.json'} can't be read ({error}): start anew with `overwrite`"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """JSON, written atomically, by the lead process alone."""
    if is_lead_process():
        files.write_json(path, content)


def lineage(pretrained: Pretrained, random_weights: bool, **more: Any) -> dict[str, Any]:
    """Where a run's parameters come from: the source, its encoder's digest, and what the command
    adds as ``more``.
    """
    return {
        "source": pretrained.source,
        "family": pretrained.config.family,
        "random_weights": random_weights,
        "encoder_digest": tree.digest(pretrained.params["encoder"]),
        **more,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "backend": jax.default_backend(),
    }


def versions() -> dict[str, str]:
    """The versions of Python, of adapt and of the packages that decide numbers, for lineage.json."""
    found = {"python": sys.version.split()[0], "adapt-jax": adapt.__version__}
    for name in PACKAGES:
        for package in importlib.metadata.distributions(name=name):
            found[name] = package.version
            break  # the first one on the path is the one that is imported
    return found


def commit() -> str | None:
    """The git commit that is checked out where adapt runs from a clone; None where it does not.

    Whether files were changed since is not looked at. Git's own files are read: no program is
    started, and whatever is not as expected gives None.
    """
    try:
        folder = git_folder(Path(adapt.__file__).resolve().parents[1] / ".git")
        head = (folder / "HEAD").read_text("utf-8").strip()
        name = head.removeprefix("ref: ")
        found = head if name == head else read_reference(folder, name)
    except (OSError, ValueError):
        return None
    return found if COMMIT.fullmatch(found) else None


def git_folder(path: Path) -> Path:
    """The folder with HEAD: ``.git`` itself, or of a work tree the one that the file names."""
    if path.is_dir():
        return path
    return path.parent / path.read_text("utf-8").strip().removeprefix("gitdir: ")


def read_reference(folder: Path, name: str) -> str:
    """The commit of a branch, from its own file or from packed-refs; "" where there is none."""
    common = folder
    if (folder / "commondir").exists():  # of a work tree: branches are those of the repository
        common = folder / (folder / "commondir").read_text("utf-8").strip()
    if (common / name).exists():
        return (common / name).read_text("utf-8").strip()
    for line in (common / "packed-refs").read_text("utf-8").splitlines():
        found, _, packed_name = line.partition(" ")
        if packed_name == name:
            return found
    return ""

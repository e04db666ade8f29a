"""The flags that every study has, and the folder where its results are kept."""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from adapt import files
from adapt.errors import OutputError, StrategyError
from adapt.run_folder import check_out, new_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRunOptions:
    """Where results go. A study has an ``out`` of its own: runs/NAME.

    ``choices`` has what may be given to an option of the study that names something, and
    ``may_be_empty`` the options that may be empty, or 0.
    """

    title: ClassVar[str] = "run"
    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    may_be_empty: ClassVar[Collection[str]] = ()

    # a small part of the study: whether it runs; its folder is that of `out` with -short
    short: bool = False
    # the folder to write
    out: Path = Path("runs/study")
    # replace what is there
    overwrite: bool = False
    # go on with what is in the folder, if anything is; its results are of the same flags
    resume: bool = False
    # the documentation, whose page and figure are written, too; default: not
    docs: Path | None = None

    def __post_init__(self) -> None:
        check_values(self)

    @property
    def folder(self) -> Path:
        """Where results are kept: of what is short beside those of what is whole."""
        return self.out.with_name(f"{self.out.name}-short") if self.short else self.out


def check_values(config: StudyRunOptions) -> None:
    """Raise :class:`adapt.errors.StrategyError` for a number of nothing, for no values at all, and for
    a name that is none of ``config.choices``.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values = value if isinstance(value, tuple) else (value,)
        may_be_empty = field.name in config.may_be_empty
        if not values and not may_be_empty:
            raise StrategyError(f"`{field.name}`: give one or more")
        for one in values:
            is_number = isinstance(one, int | float) and not isinstance(one, bool)
            is_too_small = is_number and (one < 0 or (one == 0 and not may_be_empty))
            if is_too_small:
                raise StrategyError(f"`{field.name}` {one}: give a number above 0")
            choices = config.choices.get(field.name)
            if choices and one not in choices:
                raise StrategyError(f"`{field.name}` {one}: give some of {', '.join(choices)}")
    if config.docs is not None and config.short:
        raise StrategyError("`docs`: a page shows the whole study, so leave out `short`")
    if config.docs is not None and not config.docs.is_dir():
        raise StrategyError(f"`docs` {config.docs} is no folder: give that of the documentation")
    labels = getattr(config, "labels", 0)
    pool = getattr(config, "pool", labels)
    if labels > pool:
        raise StrategyError(f"`labels` {labels} are drawn from `pool` {pool} rows: give fewer")


def open_study(program: str, config: StudyRunOptions, chosen: Collection[str] = ()) -> None:
    """Make the folder of a study, or go on in it.

    Flags in ``chosen`` say which results are shown, each kept under their values: a study goes on
    with other ones. All others have to be the same. Raises :class:`adapt.OutputError`.
    """
    of_run = {field.name for field in dataclasses.fields(StudyRunOptions)}
    flags = {}
    for field in dataclasses.fields(config):
        if field.name not in of_run and field.name not in chosen:
            flags[field.name] = getattr(config, field.name)
    same_flags(config.folder, program, flags, resume=config.resume, overwrite=config.overwrite)


def same_flags(
    folder: Path, program: str, flags: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> None:
    """Make the folder of ``program``'s results, whose flags lie beside them in config.json.

    With ``resume`` what is there stays, and other flags are refused by name. Without it results
    are made anew: a folder with something in it is refused, or replaced with ``overwrite``. Raises
    :class:`adapt.OutputError`.
    """
    path = folder / "config.json"
    command = program.rpartition(".")[2]  # the name by which --resume knows its own folder
    content = json.loads(json.dumps({"experiment": command, **flags}))
    is_there = path.exists()
    if is_there and is_only_begun(folder, command):
        files.write_json(path, content)
        return
    check_out(folder, resume if is_there else None, overwrite)
    if resume and is_there:
        kept = files.read_json(path)
        for name, value in content.items():
            if kept.get(name) != value:
                raise OutputError(
                    f"`resume`: `{name}` was {kept.get(name)!r} in {folder} and is {value!r} now: "
                    "give the same, or `overwrite` in place of `resume`"
                )
        return
    with new_folder(folder, command, overwrite) as keep:
        files.write_json(path, content)
        keep()


def is_only_begun(folder: Path, command: str) -> bool:
    """Whether a folder has the flags of a command and no result yet: what it was stopped by may have
    been one of these flags.
    """
    results = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    if results != [folder / "config.json"]:
        return False
    return files.read_json(results[0]).get("experiment") == command

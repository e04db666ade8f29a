"""The folder of a command: its flags are the settings in config.json."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Protocol

from adapt import run_folder
from adapt.cli.flags import Options, command_name
from adapt.run_folder import RunFolder, as_json


class RunFlags(Options, Protocol):
    """The flags of a command that writes a folder; `resume` is one where it can go on with a run."""

    @property
    def overwrite(self) -> bool: ...


def open_run(out: Path, config: RunFlags) -> contextlib.AbstractContextManager[RunFolder]:
    """What :func:`adapt.run_folder.open_run` makes of the flags of a command."""
    return run_folder.open_run(
        out,
        flags_of(config),
        resume=getattr(config, "resume", False),
        overwrite=config.overwrite,
        defaults=default_flags(type(config)),
    )


def flags_of(config: Options) -> dict[str, Any]:
    """The flags of a run as config.json has them, with the name of the command as ``experiment``."""
    flags = dataclasses.asdict(config)
    flags.pop("config", None)  # its entries are among the others
    return as_json({"experiment": command_name(type(config)), **flags})


def default_flags(config: type[Options]) -> dict[str, Any]:
    """The flags of a command that have a default, as config.json has them."""
    defaults = {}
    for field in dataclasses.fields(config):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return as_json(defaults)

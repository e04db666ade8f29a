"""A config.json as the defaults of a command's flags: ``adapt finetune --config FILE``."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt import files
from adapt.data.inputs import IN_MEMORY
from adapt.errors import StrategyError
from adapt.options import DeviceOptions, is_of, wanted

# What a run's config.json has beside its flags; ``metrics`` of one's own are functions of Python.
BESIDE = ("experiment", "used", "metrics")
# Flags of one call, which a file does not decide.
OF_A_CALL = (
    "config",
    "resume",
    "overwrite",
    "stop_after",
    *(field.name for field in dataclasses.fields(DeviceOptions) if field.name != "mesh"),
)


def defaults_of(config: type, command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The values of the file that ``--config`` names, by field of ``config``; {} without one.

    Raises :class:`StrategyError` for a file that can't be read, that another ``command`` wrote, and
    for an entry that is no flag or of another type.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    name = file_in(arguments) if "config" in fields else None
    if name is None:
        return {}
    content = read_object(name)
    wrote = content.get("experiment", command)
    if wrote != command:
        raise StrategyError(f"`config` {name} is of {wrote}, not of {command}: give one of its own")
    if content.get("loss"):
        raise StrategyError(
            f"`config` {name}: the run has a loss of its own, {content['loss']}, which no flag can "
            "bring back: train it from Python"
        )
    hints = typing.get_type_hints(config)
    defaults = {}
    for entry, value in content.items():
        if entry in BESIDE or entry in OF_A_CALL:
            continue
        if entry not in fields:
            raise StrategyError(
                f"`config` {name}: there is no option {entry!r}{nearest(entry, fields)}"
            )
        if isinstance(value, list):
            value = tuple(value)
        if not is_of(value, hints[entry]):
            raise StrategyError(f"`config` {name}: {entry} is {value!r}: {wanted(hints[entry])}")
        defaults[entry] = files.to_path(str(value)) if hints[entry] is Path else value
    return defaults


def file_in(arguments: Sequence[str]) -> str | None:
    """The value of ``--config`` among the words of a command line; None without one."""
    for number, word in enumerate(arguments):
        if word == "--config" and number + 1 < len(arguments):
            return arguments[number + 1]
        if word.startswith("--config="):
            return word.removeprefix("--config=")
    return None


def read_object(name: str) -> dict[str, Any]:
    """The object in a JSON file. Raises :class:`StrategyError` for anything else."""
    path = files.to_path(name)
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise StrategyError(f"`config` {name} does not exist") from None
    except (OSError, ValueError) as error:
        raise StrategyError(f"`config` {name} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise StrategyError(f"`config` {name} holds no JSON object with options")
    return content


def nearest(entry: str, names: set[str]) -> str:
    """``: did you mean epochs?``, where a name is near."""
    found = difflib.get_close_matches(entry, sorted(names), n=1)
    return f": did you mean {found[0]}?" if found else ""


def check_named(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise :class:`StrategyError` for data of the file that were in memory, and that no flag names
    instead.
    """
    for name, unnamed in IN_MEMORY.items():
        if name in defaults and values[name] == unnamed:
            raise StrategyError(
                f"`config`: what the run had as {name} was in memory: give `{name}`"
            )

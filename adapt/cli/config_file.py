"""A config.json as the defaults of a command's flags.

It is the file that ``--config`` names, or with ``--resume`` that of the run in ``--out``.
"""

import dataclasses
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt import buckets, files
from adapt.data.inputs import IN_MEMORY
from adapt.errors import StrategyError
from adapt.options import DeviceOptions, is_of, wanted
from adapt.other_names import near_name
from adapt.run_folder import EXTENDED

# What a config.json has beside its flags; ``metrics`` of one's own are functions of Python, and
# ``command`` and ``digests`` are of a comparison.
BESIDE = (
    "experiment",
    "used",
    "metrics",
    "loss",
    "weights",
    "extras",
    "command",
    "digests",
    EXTENDED,
)
# Flags of one call, which a file does not decide; what it imports has to be named, see check_named.
OF_A_CALL = (
    "config",
    "resume",
    "overwrite",
    "stop_after",
    "import_",
    *(field.name for field in dataclasses.fields(DeviceOptions) if field.name != "mesh"),
)


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """The values of a file by field of a ``Config``, and the modules that its run imported.

    ``origin`` is how a sentence calls the file: by the flag that named it.
    """

    origin: str = ""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    imports: Sequence[str] = ()


def read(config: type, command: str, arguments: Sequence[str]) -> ConfigFile:
    """The file that the words of a command line name; one without values where they name none.

    Raises :class:`StrategyError` for a file that can't be read, that another ``command`` wrote, and
    for an entry that is no flag or of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    if "config" in fields:
        name = value_of("--config", arguments)
        if name is not None:
            origin = f"`config` {name}"
            content = read_object(name, command, origin)
            imports = content.get("import_", ())
            check_not_extended(content, arguments, origin)
            drop(content, (*BESIDE, *OF_A_CALL))
            check_entries(content, fields, origin)
            return ConfigFile(origin, typed(content, config, origin), imports)
    if "resume" in fields and "--resume" in arguments:
        out = files.to_path(value_of("--out", arguments) or str(fields["out"].default))
        if buckets.exists(out / "config.json"):
            return read_resumed(config, command, str(out / "config.json"))
    return ConfigFile()


def check_not_extended(content: Mapping[str, Any], arguments: Sequence[str], origin: str) -> None:
    """Raise :class:`StrategyError` for a run that got more epochs later, unless a flag says how
    many another one is to have: its learning rates fell as in a shorter run.
    """
    for name, before in (content.get(EXTENDED) or {}).items():
        flag = f"--{name.replace('_', '-')}"
        if value_of(flag, arguments) is None:
            steps = " to ".join(map(str, [*before, content[name]]))
            raise StrategyError(
                f"{origin}: the run was extended ({name} {steps}), which no flags repeat: give "
                f"`{name}`"
            )


def read_resumed(config: type, command: str, name: str) -> ConfigFile:
    """The file of a run that goes on: where it lies and what it computes on may have changed.

    What it needs to be imported, its model.json says; entries that are no flags are of an earlier
    version.
    """
    origin = f"`resume` {name}"
    content = read_object(name, command, origin)
    fields = {field.name for field in dataclasses.fields(config)}
    drop(content, (*BESIDE, *OF_A_CALL, "out", "mesh", *(content.keys() - fields)))
    return ConfigFile(origin, typed(content, config, origin))


def drop(content: dict[str, Any], names: Iterable[str]) -> None:
    """Remove entries, where they are there."""
    for name in names:
        content.pop(name, None)


def check_entries(content: Mapping[str, Any], names: Collection[str], origin: str) -> None:
    """Raise :class:`StrategyError` for an entry that is no flag."""
    for entry in content:
        if entry not in names:
            raise StrategyError(f"{origin}: there is no option {entry!r}{nearest(entry, names)}")


def typed(content: Mapping[str, Any], config: type, origin: str) -> dict[str, Any]:
    """The entries as the fields of ``config`` have them. Raises :class:`StrategyError` for one of
    another type.
    """
    hints = typing.get_type_hints(config)
    values = {}
    for entry, value in content.items():
        values[entry] = checked(value, hints[entry], entry, origin)
    return values


def checked(value: Any, hint: Any, entry: str, origin: str) -> Any:
    """A value of JSON as a field has it. Raises :class:`StrategyError` for one of another type."""
    if isinstance(value, list):
        value = tuple(value)
    if not is_of(value, hint):
        raise StrategyError(f"{origin}: {entry} is {value!r}: {wanted(hint)}")
    is_path = hint is Path or Path in typing.get_args(hint)
    return files.to_path(str(value)) if is_path and value is not None else value


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The value of a flag among the words of a command line; None without one."""
    for number, word in enumerate(arguments):
        if word == flag and number + 1 < len(arguments):
            return arguments[number + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def read_object(name: str, command: str, origin: str) -> dict[str, Any]:
    """The object in a JSON file. Raises :class:`StrategyError` for anything else, for what another
    ``command`` wrote, and for a run with a loss, weights or extras from Python.
    """
    if files.is_remote(name):
        buckets.check(name)
    try:
        content = files.read_json(files.to_path(name))
    except FileNotFoundError:
        raise StrategyError(f"{origin} does not exist") from None
    except (OSError, ValueError) as error:
        raise StrategyError(f"{origin} can't be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise StrategyError(f"{origin} holds no JSON object with options")
    wrote = content.get("experiment", command)
    if wrote != command:
        raise StrategyError(f"{origin} is of {wrote}, not of {command}: give one of its own")
    for entry in ("loss", "weights", "extras"):
        if content.get(entry):
            raise StrategyError(
                f"{origin}: the run was trained with its own `{entry}`, which no flag can bring "
                "back: train it from Python"
            )
    return content


def nearest(entry: str, names: Collection[str]) -> str:
    """``: did you mean epochs?``, where a name is near."""
    near = near_name(entry, sorted(names))
    return f": did you mean {near}?" if near else ""


def check_named(file: ConfigFile, values: Mapping[str, Any]) -> None:
    """Raise :class:`StrategyError` for what a file does not bring, and no flag names: data that
    were in memory, and modules, which no file imports by itself.
    """
    for name, unnamed in IN_MEMORY.items():
        if name in file.defaults and values[name] == unnamed:
            raise StrategyError(
                f"{file.origin}: what the run had as {name} was in memory: give `{name}`"
            )
    absent = [name for name in file.imports if name not in values["import_"]]
    if absent:
        raise StrategyError(
            f"{file.origin}: the run imported {absent[0]}, which a file never does by itself: "
            f"give `import={' '.join(file.imports)}`"
        )

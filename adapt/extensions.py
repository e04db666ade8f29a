"""Modules of one's own: strategies, poolings, heads, tasks, objectives and families that a program
adds.

    import_modules(["my_module"])  # as the commands do with theirs

A module adds an entry to one of these dictionaries when it is imported::

    STRATEGIES["norms"] = Method(norms)    # adapt.training.strategies; MODIFIERS change another one
    POOLINGS["ends"] = ends                # adapt.models
    HEADS["Cosine"] = Cosine               # adapt.models: under the name of the class
    TASKS["stars"] = Stars()               # adapt.tasks
    OBJECTIVES["spans"] = Spans()          # adapt.objectives
    FAMILIES["mine"] = "my_module"         # adapt.pretrained.families: a Family, or where it is

A run that uses one says in its model.json which module that is. The run's folder is data: nothing
in it is ever imported by itself.
"""

import dataclasses
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adapt.errors import AdaptError, ExtensionError
from adapt.models import HEADS, POOLINGS, Classifier
from adapt.objectives import OBJECTIVES
from adapt.pretrained import hub
from adapt.pretrained.families import FAMILIES, Family
from adapt.pretrained.hub import Pretrained
from adapt.tasks import TASKS
from adapt.training.strategies import MODIFIERS, STRATEGIES, Method

logger = logging.getLogger(__name__)

REGISTRIES: dict[str, dict[str, Any]] = {
    "strategy": STRATEGIES,
    "modifier": MODIFIERS,
    "pooling": POOLINGS,
    "head": HEADS,
    "task": TASKS,
    "objective": OBJECTIVES,
    "family": FAMILIES,
}

OWN_FOLDER = Path(__file__).parent
# (kind, name) of an entry -> the module that was imported for it
_modules: dict[tuple[str, str], str] = {}


def import_modules(names: Sequence[str]) -> None:
    """Import modules, those of the current folder first, so that they can register what they have.

    Raises :class:`ExtensionError` for one that is missing, that raises, or that takes a name which
    is taken.
    """
    for name in names:
        before = entries()
        import_module(name)
        after = entries()
        for (kind, entry), value in before.items():
            if after.get((kind, entry)) is not value:
                raise ExtensionError(
                    f"`import` {name}: it replaces the {kind} {entry!r} of "
                    f"{module_of(kind, entry, value) or 'adapt'}: give it a name of its own"
                )
        added = after.keys() - before.keys()
        _modules.update(dict.fromkeys(added, name))
        kinds = list(REGISTRIES)
        if name not in _modules.values():
            logger.warning(
                f"`import` {name}: it registers no {', '.join(kinds[:-1])} or {kinds[-1]}"
            )


def import_module(name: str) -> None:
    """Import one module, with the current folder first on the path and afterwards last.

    Last, so that a folder ``datasets`` in it is not taken for the library that is imported later.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ExtensionError(f"`import` {name}: {place_of(error)}{error}") from error
        raise ExtensionError(
            f"`import` {name}: there is no module of this name in {folder}, nor is one installed"
        ) from None
    except Exception as error:  # whatever the module raises
        what = str(error) if isinstance(error, AdaptError) else f"{type(error).__name__}: {error}"
        raise ExtensionError(f"`import` {name}: {place_of(error)}{what}") from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path and "" not in sys.path:
            sys.path.append(folder)


def place_of(error: BaseException) -> str:
    """The file and the line in which an error was raised; of adapt's own errors those of the call.
    A syntax error says its own.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, AdaptError):
        frames = [frame for frame in frames if not is_of_adapt(frame.filename)]
    if isinstance(error, SyntaxError) or not frames:
        return ""
    return f"{frames[-1].filename}, line {frames[-1].lineno}: "


def is_of_adapt(file: str) -> bool:
    """Whether a file of a traceback is adapt's, or of the dataclasses that it calls for."""
    return (
        OWN_FOLDER in Path(file).parents
        or file == dataclasses.__file__
        or file.startswith("<")  # code that has no file
    )


def entries() -> dict[tuple[str, str], Any]:
    """Everything that is registered, by kind and name."""
    found = {}
    for kind, registry in REGISTRIES.items():
        for name, value in registry.items():
            found[kind, name] = value
    return found


def module_of(kind: str, name: str, value: Any) -> str | None:
    """The module that brought an entry; None for adapt's own, and for a program's own main module."""
    if (kind, name) in _modules:
        return _modules[kind, name]
    if isinstance(value, Method):
        value = value.build
    if isinstance(value, Family):
        return module_of_family(value)
    if isinstance(value, str):
        module = value.partition(":")[0]
    else:
        module = getattr(value, "__module__", None) or type(value).__module__
    return None if is_own(module) else module


def module_of_family(family: Family) -> str | None:
    """The module that made a family: that of the first function in its fields which is not adapt's."""
    for field in dataclasses.fields(family):
        module = getattr(getattr(family, field.name), "__module__", "builtins")
        if module != "builtins" and not is_own(module):
            return module
    return None


def is_own(module: str) -> bool:
    """Whether a module is adapt's, or the program's main module."""
    return module == "__main__" or f"{module}.".startswith("adapt.")


def modules_of(used: Iterable[tuple[str, str]]) -> dict[str, str]:
    """``{"task stars": "my_module"}`` for those of the used (kind, name) that a module brought."""
    modules = {}
    for kind, name in used:
        value = REGISTRIES[kind].get(name)
        module = None if value is None else module_of(kind, name, value)
        if module is not None:
            modules[f"{kind} {name}"] = module
    return modules


def names_in(strategy: str) -> list[tuple[str, str]]:
    """The names in ``norms+decay:0.9``, of strategies and of modifiers."""
    names = []
    for word in strategy.split("+"):
        name = word.partition(":")[0].strip()
        names += [("strategy", name), ("modifier", name)]
    return names


def used_by(run: Pretrained, strategy: str = "") -> dict[str, str]:
    """:func:`modules_of` everything that a run has, and that its strategy names."""
    used = [("task", run.task), ("head", type(run.head).__name__), ("family", run.config.family)]
    if isinstance(run.head, Classifier):
        used.append(("pooling", run.head.pooling))
    return modules_of([*used, *names_in(strategy)])


def check_run(folder: Path) -> None:
    """Raise :class:`ExtensionError` for the first name of the run in ``folder`` that is not
    registered.
    """
    imports = hub.read_json(folder, "model.json").get("imports", {})
    for entry in imports:
        kind, _, name = entry.partition(" ")
        hub.check_imported(folder, imports, kind, name, REGISTRIES.get(kind, {}))

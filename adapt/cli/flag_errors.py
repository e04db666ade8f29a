"""A mistyped flag as one sentence, in place of the box that tyro draws.

wrong_flag(box, "adapt finetune", {"--epochs": int}, ["--epoch", "3"])
# there is no flag --epoch: did you mean --epochs?
"""

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

RULE = re.compile(r"[─-]{20,}")  # of dashes where the terminal has no box characters
UNKNOWN = re.compile(r"Unrecognized options: (.*)")
NO_VALUE = re.compile(r"Missing value for argument '(-[\w-]+).*'")
WRONG_CHOICE = re.compile(
    r"invalid choice '(.*)' for argument '(-[\w-]+).*'\. Expected one of \((.*)\)"
)
WRONG_TYPE = re.compile(r"Error parsing (-[\w-]+): (.*)")
ANYTHING = "a value"
WANTED = {int: "a whole number", float: "a number"}


def wrong_flag(box: str, program: str, types: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """What was wrong with the ``arguments``, by what tyro said of them in its box: one sentence.

    ``types`` are the annotations of all flags, ``program`` is what is typed before them.
    """
    said = first_paragraph(box)
    if unknown := UNKNOWN.match(said):
        return unknown_flag(unknown[1].split(", ")[0], program, list(types))
    if missing := NO_VALUE.match(said):
        return f"{missing[1]} has no value: give {wanted(types.get(missing[1]))}"
    if choice := WRONG_CHOICE.match(said):
        choices = ", ".join(re.findall(r"'([^']*)'", choice[3]))
        return f"{choice[2]} {choice[1]}: give one of {choices}"
    if mistyped := WRONG_TYPE.match(said):
        typed = " ".join([mistyped[1], *values_of(mistyped[1], arguments)])
        what = wanted(types.get(mistyped[1]))
        return f"{typed}: {mistyped[2]}" if what == ANYTHING else f"{typed}: give {what}"
    return f"{said.rstrip('.')}: see {program} --help"


def first_paragraph(box: str) -> str:
    """What stands below the title of a box, up to the next rule, on one line."""
    words = []
    for line in box.splitlines()[1:]:
        if not RULE.search(line):
            words += line.strip("│| ").split()
        elif words:
            break
    return " ".join(words)


def unknown_flag(typed: str, program: str, flags: Sequence[str]) -> str:
    """What to say of a word that is no flag, nor the value of one."""
    if not typed.startswith("-"):
        return f"{typed!r} belongs to no flag: see {program} --help"
    name = typed.partition("=")[0]
    near = difflib.get_close_matches(name, flags, n=1)
    mend = f"did you mean {near[0]}?" if near else f"see {program} --help"
    return f"there is no flag {name}: {mend}"


def values_of(name: str, arguments: Sequence[str]) -> list[str]:
    """The words that were typed after a flag, or behind its ``=``."""
    for index, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return [word.partition("=")[2]]
        if word == name:
            values = []
            for value in arguments[index + 1 :]:
                if value.startswith("--"):
                    break
                values.append(value)
            return values
    return []


def wanted(kind: Any) -> str:
    """What a flag of this type takes, in words."""
    for plain in (kind, *typing.get_args(kind)):
        if plain in WANTED:
            return WANTED[plain]
    return ANYTHING

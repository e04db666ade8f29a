"""A mistyped flag as one sentence, in place of the box that tyro draws.

wrong_flag(box, "adapt finetune", {"--epochs": int}, ["--epoch", "3"])
# there is no flag --epoch: did you mean --epochs?
"""

import re
import typing
from collections.abc import Container, Mapping, Sequence
from typing import Any

from adapt.other_names import meant_value, near_name

RULE = re.compile(r"[─-]{20,}")  # of dashes where the terminal has no box characters
ABSENT = "Missing from "  # then the flags that have to be there
UNKNOWN = re.compile(r"Unrecognized options: (.*)")
NO_VALUE = re.compile(r"Missing value for argument '(-[\w-]+).*'")
WRONG_CHOICE = re.compile(
    r"invalid choice '(.*)' for argument '(-[\w-]+).*'\. Expected one of \((.*)\)"
)
WRONG_TYPE = re.compile(r"Error parsing (-[\w-]+): (.*)")
LIKE_A_FLAG = re.compile(r"--|-[A-Za-z]$")
ANYTHING = "a value"
# Flags of other tools that say what needs no word here.
NEEDLESS = {
    "do_train": "finetune trains without it: leave it out",
    "do_eval": "what --validation and --test name is scored without it: leave it out",
    "do_predict": "adapt predict takes new rows: leave it out",
    "num_labels": "the labels of the training data are counted: leave it out",
    "load_best_model_at_end": "the best checkpoint by validation is kept: leave it out",
    "do_lower_case": "the checkpoint's folder says it: leave it out",
    "fp32": "that is the default: leave it out",
}
WANTED = {int: "a whole number", float: "a number"}


def wrong_flag(box: str, program: str, types: Mapping[str, Any], arguments: Sequence[str]) -> str:
    """What was wrong with the ``arguments``, by what tyro said of them in its box: one sentence.

    ``types`` are the annotations of all flags, ``program`` is what is typed before them.
    """
    said = first_paragraph(box)
    if unknown := UNKNOWN.match(said):
        return unknown_flag(unknown[1].split(", ")[0], program, list(types))
    strange = first_unknown(arguments, types)
    if said.startswith(ABSENT) and strange is not None:  # perhaps in place of what is absent
        return unknown_flag(strange, program, list(types))
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
    option = as_option(name)
    if option in NEEDLESS:
        return f"there is no flag {name}: {NEEDLESS[option]}"
    flag_of = {as_option(flag): flag for flag in flags}
    near = near_name(option, flag_of)
    if near is None:
        return f"there is no flag {name}: see {program} --help"
    value = meant_value(near, option)
    meant = flag_of[near] if value is None else f"{flag_of[near]} {value}"
    return f"there is no flag {name}: did you mean {meant}?"


def first_unknown(arguments: Sequence[str], flags: Container[str]) -> str | None:
    """The first word that looks like a flag and is none; None where all are."""
    for word in arguments:
        name = word.partition("=")[0]
        if LIKE_A_FLAG.match(name) and name.replace("_", "-").replace("--no-", "--") not in flags:
            return name
    return None


def as_option(flag: str) -> str:
    """``batch_size`` for ``--batch-size``."""
    return flag.lstrip("-").replace("-", "_")


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

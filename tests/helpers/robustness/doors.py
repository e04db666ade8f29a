"""Calls of adapt that a damaged input goes through, in this process, and what came of them."""

import contextlib
import importlib
import io
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adapt.cli.launch import launch
from adapt.errors import AdaptError

LONGEST = 1000  # characters of a refusal
REFUSED = "refused"
TAKEN = "taken"
TRACEBACK = "traceback"


@dataclass(frozen=True)
class Answer:
    """What a call did: it refused, took the input, or ended in a traceback; and what it said."""

    kind: str
    said: str = ""
    value: Any = None
    notes: list[str] = field(default_factory=list)


def call(function: Callable[[], Any]) -> Answer:
    """The answer of a function of the library."""
    with logged() as notes:
        try:
            value = function()
        except AdaptError as error:
            return refusal(str(error))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException:  # a panic of Rust is no Exception
            return Answer(TRACEBACK, traceback.format_exc())
    return Answer(TAKEN, value=value, notes=notes)


def refusal(words: str) -> Answer:
    """A refusal, whose further lines are indented; anything longer is as bad as a traceback."""
    first, *others = words.splitlines() or [""]
    is_clear = bool(first.strip()) and len(first) <= LONGEST
    if not is_clear or not all(line.startswith(" ") for line in others):
        return Answer(TRACEBACK, f"not one clear line: {words[:2000]!r}")
    return Answer(REFUSED, words)


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """The warnings of adapt inside, as they are logged."""
    notes: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("adapt")
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield notes
    finally:
        log.removeHandler(handler)
        log.propagate = before


def command(words: list[str]) -> Answer:
    """The answer of `adapt WORDS`, run in this process; its notes are the lines of stderr."""
    name, *flags = words
    module = importlib.import_module(f"adapt.cli.{name}")
    before = sys.argv
    sys.argv = [f"adapt {name}", *flags]
    out = io.StringIO()
    err = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            launch(module.Config, module.main, f"adapt {name}")
    except SystemExit as end:
        if end.code not in (0, None):
            return refused_by_command(end.code, err.getvalue())
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        return Answer(TRACEBACK, f"adapt {' '.join(words)}\n{traceback.format_exc()}")
    finally:
        sys.argv = before
    return Answer(TAKEN, out.getvalue(), notes=err.getvalue().splitlines())


def refused_by_command(code: Any, err: str) -> Answer:
    """The refusal of a command: notes, then ``error: ...`` as the last line that is not indented."""
    beginning, found, words = err.rpartition("error: ")
    if code != 2 or not found or (beginning and not beginning.endswith("\n")):
        return Answer(TRACEBACK, f"status {code}: {err[:2000]}")
    return refusal(words.rstrip("\n"))


def is_same(one: Any, other: Any) -> bool:
    """Whether two readings agree bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same_form = one.shape == other.shape and one.dtype == other.dtype
        return same_form and one.tobytes() == other.tobytes()
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    return type(one) is type(other) and one == other


def is_finite(value: Any) -> bool:
    """Whether no array in a reading holds NaN or infinity."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return bool(np.isfinite(value).all())
    return True

"""Faults of a family itself, such as a slip in the name of a field. They are said where it is made,
not where a checkpoint first shows them.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from adapt.errors import ExtensionError
from adapt.models import EncoderConfig, pooling_names

FIELDS = tuple(field.name for field in dataclasses.fields(EncoderConfig))


def check_rows(config: Sequence[tuple[Any, ...]], always: Iterable[str]) -> None:
    """Raise :class:`ExtensionError` for a row of a configuration that is none, and for a field that
    :class:`EncoderConfig` has not.
    """
    for row in config:
        if not isinstance(row, tuple) or len(row) not in (2, 3):
            raise ExtensionError(
                f"{row!r} in the family's config: a row is (field of EncoderConfig, entry of "
                "config.json), and a default unless the entry is required"
            )
        check_name(row[0], FIELDS, f"the row {row!r} of the family's config names the field")
    for name in always:
        check_name(name, FIELDS, "`always` of the family names the field")


def check_pooling(pooling: str) -> None:
    """Raise :class:`ExtensionError` for a pooling that is not registered."""
    check_name(pooling, pooling_names(), "the family pools by")


def check_kinds(known: Sequence[str], **named: Iterable[str]) -> None:
    """Raise :class:`ExtensionError` for a kind of head that there is not; a head of one's own has
    the kind ``the head``, a space and its class.
    """
    for where, kinds in named.items():
        for kind in kinds:
            if not kind.startswith("the head "):
                check_name(kind, known, f"{where} of the family names the kind of head")


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Raise :class:`ExtensionError` for a prefix that would run into the names after it."""
    for prefix in prefixes:
        if prefix and not prefix.endswith("."):
            raise ExtensionError(f"the prefix {prefix!r} of the family has to end in a dot")


def check_name(name: Any, known: Sequence[str], what: str) -> None:
    """Raise :class:`ExtensionError` for a name that is not known, with those that are near it."""
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    names = " or ".join(near) if near else ", ".join(known)
    raise ExtensionError(f"{what} {name!r}, which there is not: choose {names}")

"""Checks of the entries of config.json."""

import json
from typing import Any

from adapt.errors import CheckpointError
from adapt.pretrained.families.types import Entries


def check_usual(hf: Entries, **usual: Any) -> None:
    """Raise :class:`CheckpointError` for an entry of config.json that has another value than the
    one that is computed here. A null counts as false.
    """
    for entry, value in usual.items():
        found = hf.get(entry, value)
        if found is None and value is False:
            continue
        if found != value:
            raise CheckpointError(
                f"{entry} is {json.dumps(hf[entry])} in config.json: only {json.dumps(value)} is "
                "read, choose a checkpoint that has it"
            )


def check_count(value: Any, entry: str) -> None:
    """Raise :class:`CheckpointError` for an entry of config.json that is no number of something."""
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{entry} is {value!r} in config.json: give a whole number from 1 on")

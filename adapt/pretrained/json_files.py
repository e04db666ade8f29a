"""The JSON files of a checkpoint's folder that it may do without."""

from pathlib import Path
from typing import Any

from adapt import files
from adapt.errors import CheckpointError


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file.

    Raises :class:`CheckpointError` for anything else in it.
    """
    content = read(file, {})
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object: it holds {type(content).__name__}")
    return content


def read_list(file: Path) -> list[Any]:
    """The list in a JSON file; an empty one if there is no such file.

    Raises :class:`CheckpointError` for anything else in it.
    """
    content = read(file, [])
    if not isinstance(content, list):
        raise CheckpointError(f"{file} is not a JSON list: it holds {type(content).__name__}")
    return content


def read(file: Path, absent: Any) -> Any:
    """What a JSON file holds, or ``absent``."""
    if not file.exists():
        return absent
    try:
        return files.read_json(file)
    except (ValueError, OSError) as error:
        kind = "object" if isinstance(absent, dict) else "list"
        raise CheckpointError(f"{file} is not a JSON {kind}: {error}") from None

"""The flags that every study has."""

import dataclasses
from pathlib import Path
from typing import ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRunOptions:
    """Where results go. A study has an ``out`` of its own: runs/NAME."""

    title: ClassVar[str] = "run"

    # the folder to write
    out: Path = Path("runs/study")
    # replace what is there
    overwrite: bool = True
    # go on with what is in the folder; its cells are those of the same flags
    resume: bool = False
    # the documentation, whose page and figure are written, too; default: not
    docs: Path | None = None

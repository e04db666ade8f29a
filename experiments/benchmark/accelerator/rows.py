"""What is measured, as it comes: a line of JSON a row, in one file.

A row names its ``part`` and has a ``status``:

    measured             figures
    passed, failed       a check
    skipped              it can't be done here; ``note`` says why
    error                it broke; ``note`` has its last words
    over its limit       the part was ended; what it had written before is there
    not started          the time of the whole measurement was up
"""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
BAD = ("failed", "error")
PEERS = ("torch", "torch.compile", "sentence-transformers")  # sides whose errors are not adapt's


def append(path: Path, row: Row) -> None:
    """Add a row to the file, which is whole after every call.

    A process that was killed while it wrote may have left half a line: it is ended first.
    """
    with path.open("a+b") as file:
        end = file.seek(0, 2)
        file.seek(max(end - 1, 0))
        is_half = file.read() not in (b"", b"\n")
        file.write((b"\n" if is_half else b"") + json.dumps(row).encode() + b"\n")


def read(path: Path) -> list[Row]:
    """The rows of the file; half a line is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def is_bad(row: Row) -> bool:
    """Whether a check failed, or something of adapt's broke."""
    is_of_peer = row.get("side") in PEERS or row["part"].endswith("peers")
    return row["status"] in BAD and not is_of_peer

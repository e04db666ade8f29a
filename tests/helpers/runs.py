"""What two runs are compared by: their checkpoints, metrics and results."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapt import tree
from adapt.models import Model
from adapt.training import checkpoint, frozen_prefix
from tests.helpers import tiny

TIMED = ("examples_per_second", "targets_per_second", "seconds")  # of a result.json


def stored_digest(run: Path, which: str = "last") -> str:
    """The digest of every leaf of a checkpoint: parameters, optimizer state, step, key."""
    folder = run / "checkpoints"
    name = checkpoint.read_index(folder)[which]["folder"]
    return tree.digest(checkpoint.read_tree(folder / name, None))


def untimed_result(run: Path) -> dict:
    """A run's result.json without what the clock decides, and without the commands that show its
    findings, which repeat the options that were typed.
    """
    result = json.loads((run / "result.json").read_text())
    for finding in result.get("findings", []):
        finding.pop("shown_by", None)
    return {name: value for name, value in result.items() if name not in TIMED}


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics, checkpoints and results agree bit for bit."""
    metrics = [tiny.untimed(tiny.lines(run / "metrics.jsonl")) for run in (one, other)]
    assert metrics[0] == metrics[1]
    for which in ("last", "best"):
        assert stored_digest(one, which) == stored_digest(other, which)
    assert untimed_result(one) == untimed_result(other)


def count_prefixes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the depth of every frozen prefix that runs from now on, once a batch."""
    depths = []
    make_prefix = frozen_prefix.make_prefix

    def make_counted(model: Model, depth: int) -> Any:
        prefix = make_prefix(model, depth)

        def counted(params: tree.Tree, batch: Any) -> Any:
            depths.append(depth)
            return prefix(params, batch)

        return counted

    monkeypatch.setattr(frozen_prefix, "make_prefix", make_counted)
    return depths

"""Runs of the program tests/helpers/sharded.py, which has devices of its own, and what it says of each case."""

import json
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from tests.helpers.forks import Forked, Server

# What runs on several devices is compared with these.
PLAIN = [
    {"family": "bert", "strategy": "full"},
    {"family": "bert", "strategy": "frozen"},
    {"family": "vit", "strategy": "full"},
    {"family": "vit", "strategy": "frozen"},
]


def case_key(case: dict[str, Any]) -> str:
    """A case as the key of a dictionary."""
    return json.dumps({"mesh": None} | case, sort_keys=True)


def start_cases(server: Server, cases: list[dict[str, Any]], **env: str) -> Forked:
    """The program, begun."""
    words = ["tests.helpers.sharded", json.dumps(cases)]
    return server.start(words, {**server.env, **env})


def run_cases(server: Server, cases: list[dict[str, Any]], **env: str) -> dict[str, Any]:
    """{key of a case: what the program says of it}."""
    running = start_cases(server, cases, **env)
    out, words = running.communicate(timeout=900)
    assert running.returncode == 0, words[-2000:]
    reports = [json.loads(line) for line in out.splitlines()]
    return {case_key(case): report for case, report in zip(cases, reports, strict=True)}


def run_once(server: Server, path: Path, cases: list[dict[str, Any]], **env: str) -> dict[str, Any]:
    """What :func:`run_cases` gives, from a file that the first process to come here writes."""
    with filelock.FileLock(path.with_suffix(".lock")):
        if not path.exists():
            path.write_text(json.dumps(run_cases(server, cases, **env)))
    return json.loads(path.read_text())


def relative_error(one: Any, other: Any, least: float = 1e-3) -> float:
    """The largest difference of two arrays by ``other``, where that is at least ``least``."""
    one = np.array(one)
    other = np.array(other)
    return np.max(np.abs(one - other) / np.maximum(np.abs(other), least))

"""A task is one file: no other file asks which task it has."""

from pathlib import Path

import pytest

from adapt.tasks import TASKS
from tests.helpers.names import compared_words
from tests.helpers.tiny import ROOT

FILES = [
    path
    for room in ("adapt", "experiments")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ROOT / "adapt/tasks" not in path.parents
]


# What is spelled like a task, and is something else: a column of a data set, transformers' word for outputs.
OTHERS = {
    ("adapt/data/bundled/brown.py", "tags"),
    ("adapt/pretrained/hub.py", "regression"),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_task_s_name_is_compared_outside_its_file(path: Path):
    name = str(path.relative_to(ROOT))
    found = {(name, word) for word in compared_words(path.read_text("utf-8")) if word in TASKS}
    assert found <= OTHERS

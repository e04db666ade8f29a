"""A task is one file: no other file asks which task it has."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapt.tasks import TASKS
from tests.helpers.tiny import ROOT

FILES = [
    path
    for room in ("adapt", "experiments")
    for path in sorted((ROOT / room).rglob("*.py"))
    if ROOT / "adapt/tasks" not in path.parents
]


def compared(tree: ast.AST) -> Iterator[ast.expr]:
    """What is compared with something, is a case of a match, or a key of a dictionary."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from (node.left, *node.comparators)
        elif isinstance(node, ast.MatchValue):
            yield node.value
        elif isinstance(node, ast.Dict):
            yield from (key for key in node.keys if key is not None)


def words(expression: ast.expr) -> Iterator[str]:
    """The strings in an expression that is one, or a tuple, a list or a set of them."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.Tuple | ast.List | ast.Set):
        for element in expression.elts:
            yield from words(element)


# What is spelled like a task, and is something else: a column of a data set, transformers' word for outputs.
OTHERS = {
    ("adapt/data/bundled/brown.py", "tags"),
    ("adapt/pretrained/hub.py", "regression"),
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_task_s_name_is_compared_outside_its_file(path: Path):
    name = str(path.relative_to(ROOT))
    found = {
        (name, word)
        for expression in compared(ast.parse(path.read_text("utf-8")))
        for word in words(expression)
        if word in TASKS
    }
    assert found <= OTHERS

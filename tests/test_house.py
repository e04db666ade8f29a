"""The tests keep house: a folder of tests a room, and what tests share lies in tests/helpers."""

import ast
from pathlib import Path

import pytest

from adapt.pretrained.families import FAMILIES

TESTS = Path(__file__).parent
MODULES = sorted(TESTS.rglob("*.py"))
ROOMS = {
    path.name for path in (TESTS.parent / "adapt").iterdir() if (path / "__init__.py").exists()
}
ALSO = {"helpers", "experiments", "references"}


def imported(path: Path) -> list[str]:
    """The dotted names of the modules and members that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_imports_a_test(path):
    shared = [name for name in imported(path) if name.split(".")[0] == "tests"]
    assert all(name.startswith("tests.helpers") for name in shared), shared


def test_every_folder_of_tests_is_a_room_of_adapt():
    folders = {path.parent.name for path in TESTS.rglob("test_*.py") if path.parent != TESTS}
    assert folders <= ROOMS | ALSO


def test_the_files_that_are_marked_slow_are_there():
    source = (TESTS / "conftest.py").read_text("utf-8")
    listed = source.partition("SLOW_FILES = (")[2].partition(")")[0]
    for name in ast.literal_eval(f"[{listed}]"):
        assert (TESTS / name).exists(), name


def test_adapt_holds_nothing_but_its_source():
    files = [path for path in (TESTS.parent / "adapt").rglob("*") if path.is_file()]
    source = {path for path in files if path.suffix in (".py", ".pyi") or path.name == "py.typed"}
    others = {path for path in files if path.parent.name != "__pycache__"} - source
    assert source and not others


def strings_of(path: Path) -> set[str]:
    """The strings of a module's code, without its docstrings."""
    module = ast.parse(path.read_text("utf-8"))
    docstrings = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstrings.add(node.value)
    constants = [node for node in ast.walk(module) if isinstance(node, ast.Constant)]
    return {
        node.value for node in constants if isinstance(node.value, str) and node not in docstrings
    }


def test_no_module_names_a_family_but_its_own_file():
    room = TESTS.parent / "adapt"
    families = room / "pretrained" / "families"
    for path in room.rglob("*.py"):
        if path.parent != families:
            named = strings_of(path) & FAMILIES.keys()
            assert not named, f"{path} names {named}: a field of Family says it"

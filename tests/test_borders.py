"""Only adapt/cli prints, ends the process, reads flags or names one; only one file touches private parts of JAX."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "adapt").rglob("*.py")
    if path.relative_to(ROOT / "adapt").parts[0] not in ("cli", "__main__.py")
)
# What ends a process, asks for input or reads the command line.
SHELL = {
    "print",
    "input",
    "exit",
    "quit",
    "sys.exit",
    "os._exit",
    "os.abort",
    "sys.argv",
    "sys.stdout",
    "sys.stderr",
    "SystemExit",
}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# The flags of other programs that the library runs, by file.
OF_PROGRAMS = {
    "adapt/pretrained/assets.py": {
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
        "--no-deps",
        "--only-binary",
        "--ignore-requires-python",
        "--dest",
    },
    "adapt/data/bundled/packages.py": {
        "--ignore-scripts",
        "--fetch-retries",
        "--loglevel",
        "--extract",
    },
}


def dotted(node: ast.AST) -> str:
    """``sys.exit`` of the node of that name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def trespasses(path: str) -> Iterator[str]:
    """The lines of a file that are the shell's business."""
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if dotted(node) in SHELL:
            yield f"{path}:{node.lineno} {dotted(node)}"  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for flag in FLAG.findall(node.value):
                if flag not in OF_PROGRAMS.get(path, ()):
                    yield f"{path}:{node.lineno} {flag}"


@pytest.mark.parametrize("path", LIBRARY)
def test_the_library_leaves_the_shell_to_the_commands(path):
    assert not list(trespasses(path))


def test_private_parts_of_jax_are_touched_in_one_place():
    private = re.compile(r"\bjax\._src\b|\bjaxlib\._")
    touching = {
        path.relative_to(ROOT).as_posix()
        for folder in ("adapt", "experiments")
        for path in (ROOT / folder).rglob("*.py")
        if private.search(path.read_text("utf-8"))
    }
    assert {path for path in touching if not path.startswith("experiments/benchmark/aot/")} == {
        "adapt/cli/gloo.py"
    }

"""The tables that the pages in docs/ include, written by the commands that measured them.

A file has a line that says where its figures are from (the command, the machine, the versions), and
a table in Markdown.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt import files
from adapt.cli import console
from adapt.cli.flags import Options, changed_flags
from adapt.markdown import markdown_table

# Flags that say nothing about a figure, or name a path of the machine that measured it.
UNNAMED = ("peers", "keras", "onnx", "openvino", "out", "overwrite", "resume", "tables", "docs")
# Packages whose versions a table says, in this order.
PACKAGES = (
    "jax",
    "torch",
    "transformers",
    "sentence-transformers",
    "onnxruntime",
    "openvino",
    "keras-hub",
)


def command_line(program: str, config: Options) -> str:
    """The command that measures the same again."""
    return shlex.join(["python", "-m", program, *changed_flags(config, UNNAMED)])


def source_line(command: str, what: str, where: str, versions: str) -> str:
    """The first line of a file: the command, what was measured, where and when, and with what."""
    return f"Source: `{command}`. {what}. {where}; {versions}."


def machine_text(machine: Mapping[str, Any]) -> str:
    """The processor and the day of a measurement."""
    count = machine["cores"]
    cores = "1 core" if count == 1 else f"{count} cores"
    return f"{cores} of {machine['cpu']}, {machine['date'][:10]}"


def versions_text(libraries: Iterable[Mapping[str, str]]) -> str:
    """The versions of what was measured; where several sides have a package, the first one's."""
    versions: dict[str, str] = {}
    for of_side in libraries:
        versions = {**of_side, **versions}
    return ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)


def table_text(
    source: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0
) -> str:
    """The text of a file; the last ``right`` columns of its table are numbers."""
    return "\n".join([source, "", *markdown_table(columns, rows, right), ""])


def write_table(folder: Path, name: str, text: str) -> None:
    """Write ``name``.md into a folder of tables, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.md"
    files.write_text(path, text)
    console.say(f"table     {path}")


def ratio_text(row: Mapping[str, Any]) -> str:
    """``2.90 (2.20 to 3.18)``: the median of a ratio over the rounds, its least and its most."""
    return f"{row['ratio']:.2f} ({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"

"""README and the pages in docs/ as the code that stands in them."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Literal

from tests.helpers.tiny import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/api").glob("*.md"))]
FENCE = re.compile(r'```python(?: title="(?P<file>[^"]+)")?\n(?P<python>.*?)```', re.S)
# An indented block; the comment before it says that a test runs it.
INDENTED = re.compile(r"(?P<run><!-- run -->\n)?\n(?P<shell>(?:    .*\S.*\n|\n(?=    ))+)")


@dataclasses.dataclass(frozen=True)
class Block:
    """Code of a page: what to execute, a file to write, or lines of a shell, which are run or only read."""

    kind: Literal["python", "file", "shell"]
    text: str
    line: int  # of the page, from 1
    file: str = ""
    run: bool = False


def blocks(page: Path) -> list[Block]:
    """The code of a page in its order."""
    text = page.read_text("utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("python")) + 1
        kind = "file" if match["file"] else "python"
        found.append(Block(kind, match["python"], line, match["file"] or ""))
    # Indented code counts outside of fences only.
    prose = re.sub(r"```.*?```", lambda fence: "\n" * fence[0].count("\n"), text, flags=re.S)
    for match in INDENTED.finditer(prose):
        line = prose.count("\n", 0, match.start("shell")) + 1
        lines = [line.removeprefix("    ") for line in match["shell"].splitlines()]
        found.append(Block("shell", "\n".join(lines), line, run=bool(match["run"])))
    return sorted(found, key=lambda block: block.line)


def commands(block: Block) -> list[list[str]]:
    """The words of each line of a shell that begins with ``adapt`` or ``python -m experiments``, without what is before."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and (words[0] == "srun" or "=" in words[0]):
            words = words[1:]
        if words[:1] == ["adapt"]:
            found.append(words[1:])
        elif len(words) > 2 and words[1] == "-m" and words[2].startswith("experiments."):
            found.append([words[2], *words[3:]])
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures that lie in this repository."""
    targets = re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))
    return [target for target in targets if "://" not in target]

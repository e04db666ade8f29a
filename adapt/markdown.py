"""Tables in Markdown."""

from collections.abc import Sequence


def markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0
) -> list[str]:
    """The lines of a table in Markdown; the last ``right`` columns are numbers.

    >>> markdown_table(["way", "s"], [["frozen", "1.2"]], right=1)
    ['| way | s |', '| --- | ---: |', '| frozen | 1.2 |']
    """
    rules = ["---"] * (len(columns) - right) + ["---:"] * right
    lines = [columns, rules, *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]

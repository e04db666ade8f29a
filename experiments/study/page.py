"""The page of a study: what was asked, what came out, how, and whether a published claim holds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adapt import files
from adapt.cli import console, plots
from adapt.cli.flags import Options
from adapt.markdown import markdown_table
from adapt.run_folder import versions
from experiments.benchmark.sides import machine
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    source_line,
    versions_text,
)
from experiments.study.scores import Score, with_interval

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_DECIDABLE = "not decidable here"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper, in the terms of a study."""

    statement: str  # "the top half of the layers gives 90% of what fine-tuning all brings"
    measured: str  # what the margin is: "top half - 90% of full"
    margin: Score  # above 0 where the statement holds

    @property
    def verdict(self) -> str:
        """Whether it holds: by the 95% interval of the margin, which may hold 0."""
        low, high = self.margin.interval
        if low > 0:
            return REPRODUCED
        if high < 0:
            return NOT_REPRODUCED
        return NOT_DECIDABLE


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure, and what it shows in a sentence."""

    drawn: Any
    caption: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose last ``right`` columns are numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: int
    title: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """What a study's page says, in the order of its parts. Paragraphs are Markdown."""

    name: str  # of its files
    title: str
    question: str  # the first paragraph; of a finding with a link to the paper and its figure
    claims: Sequence[Claim] = ()
    why: Sequence[str] = ()  # paragraphs on what the figures say
    figure: Figure | None = None
    tables: Sequence[Table] = ()
    method: Sequence[str] = ()  # paragraphs on data, sides, tuning and seeds
    differs: Sequence[str] = ()  # what is not as in the paper, an item each
    source: str  # the command, the machine, the versions

    def text(self, image: str) -> str:
        """The Markdown; ``image`` is the way from it to the figure."""
        lines = [f"# {self.title}", "", self.question, ""]
        if self.claims:
            rows = [
                (claim.statement, claim.measured, with_interval(claim.margin, True), claim.verdict)
                for claim in self.claims
            ]
            columns = ("claim", "measured as", "here (95% interval)", "verdict")
            lines += [*markdown_table(columns, rows), ""]
        if self.figure is not None:
            lines += [f"![{self.figure.caption}]({image})", "", self.figure.caption, ""]
        for paragraph in self.why:
            lines += [paragraph, ""]
        for table in self.tables:
            if table.title:
                lines += [f"**{table.title}**", ""]
            lines += [*markdown_table(table.columns, table.rows, table.right), ""]
        if self.method:
            lines += ["## How", ""]
        for paragraph in self.method:
            lines += [paragraph, ""]
        if self.differs:
            lines += ["## What differs from the paper", ""]
            lines += [*(f"* {item}" for item in self.differs), ""]
        lines += [self.source, ""]
        return "\n".join(lines)


def source_of(program: str, config: Options, what: str) -> str:
    """The line that says how a page's figures were made: the command, the machine, the versions."""
    command = command_line(program, config)
    return source_line(command, what, machine_text(machine(2)), versions_text([versions()]))


def write_page(page: Page, out: Path, docs: Path | None) -> None:
    """Write the page and its figure into ``out``, and into the documentation where it is given."""
    write_files(page, out / f"{page.name}.md", out / f"{page.name}.png", f"{page.name}.png")
    if docs is not None:
        image = docs / "img" / f"{page.name}.png"
        write_files(page, docs / "studies" / f"{page.name}.md", image, f"../img/{page.name}.png")


def write_files(page: Page, path: Path, image_path: Path, image: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, page.text(image))
    console.say(f"page      {path}")
    if page.figure is not None:
        console.say(f"plot      {plots.save(page.figure.drawn, image_path)}")

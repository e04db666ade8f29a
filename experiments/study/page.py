"""The page of a study: what was asked, what came out, how, and whether a published claim holds."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapt import files
from adapt.cli import console, plots
from adapt.cli.flags import Options
from adapt.markdown import markdown_table
from adapt.run_folder import versions, write_json
from experiments.benchmark.sides import machine
from experiments.benchmark.table_files import (
    command_line,
    machine_text,
    source_line,
    versions_text,
)
from experiments.study.options import StudyRunOptions
from experiments.study.scores import CONFIDENCE, Score

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_DECIDABLE = "not decidable here"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement of a paper, in the terms of a study."""

    statement: str  # "the top half of the layers gives 90% of what fine-tuning all brings"
    measured: str  # what the margin is: "top half - 90% of full"
    margin: Score  # above 0 where the statement holds

    def interval_among(self, claims: int) -> tuple[float, float]:
        """The interval of the margin, so wide that those of so many claims all hold at 95%."""
        return self.margin.interval_of(1 - (1 - CONFIDENCE) / claims)

    def verdict_among(self, claims: int) -> str:
        """Whether it holds, as one of so many claims: by its interval, which may hold 0."""
        low, high = self.interval_among(claims)
        if low > 0:
            return REPRODUCED
        if high < 0:
            return NOT_REPRODUCED
        return NOT_DECIDABLE


def verdicts(claims: Sequence[Claim]) -> list[str]:
    """What came out of each of a page's claims.

    One verdict that is false by chance is wrong for the page, so the claims share the 5%
    (Bonferroni): of six each has an interval of 99.2%.
    """
    return [claim.verdict_among(len(claims)) for claim in claims]


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
            rows = []
            for claim, verdict in zip(self.claims, verdicts(self.claims), strict=True):
                low, high = claim.interval_among(len(self.claims))
                margin = f"{claim.margin.value:+.3f} ({low:+.3f} to {high:+.3f})"
                rows.append((claim.statement, claim.measured, margin, verdict))
            together = " of all claims together" if len(rows) > 1 else ""
            columns = ("claim", "measured as", f"here (95% interval{together})", "verdict")
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


def has_flags_of(config: Options, published: Options) -> bool:
    """Whether the flags are those whose figures a page's prose speaks of, but for where it goes."""
    return command_line("", config) == command_line("", published)


def publish(page: Page, result: Mapping[str, Any], config: StudyRunOptions) -> None:
    """What a study ends with: its result and its page are written, its tables and result printed.

    The result is NAME.json in the folder of the study, NAME that of the page.
    """
    write_json(config.folder / f"{page.name}.json", result)
    for table in page.tables:
        console.table(table.title, table.columns, table.rows)
    write_page(page, config.folder, config.docs)
    console.result(json.dumps(result))


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

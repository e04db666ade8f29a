"""What a command says: lines and tables on stdout, notes on stderr, and how far it is.

On a terminal there are bars, and lines break between words. In a file or a pipe, which is called a
log here, every line is printed when it is due, at least one a minute while something runs; the last
one is the result.
"""

import contextlib
import logging
import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import progress as bars
from rich.console import Console

from adapt.cost.clock import watch_compiling
from adapt.parallel.multihost import is_lead_process

if TYPE_CHECKING:
    from adapt.pretrained.tokenizer import LongTexts

MINUTE = 60.0  # the longest silence of a log, in seconds
LABEL = re.compile(r"\S{1,12} {2,}|[a-z]{9} ")  # what a line begins with: "loaded    "
MAX_UNBROKEN = 40  # characters of a column of a line
STYLE: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}

console = Console(**STYLE)
errors = Console(stderr=True, **STYLE)
last_line = time.monotonic()  # when a line was printed on stdout


def is_terminal() -> bool:
    """Whether a person watches stdout."""
    return console.is_terminal


def say(line: str = "") -> None:
    """Print a line. On a terminal it breaks between words, never inside a number, and goes on below
    its text; in a log it does not break.
    """
    global last_line
    last_line = time.monotonic()
    lines = wrap_line(line, console.width) if console.is_terminal else [line]
    for part in lines:
        console.print(part, soft_wrap=True)


def say_unbroken(line: str) -> None:
    """Print a line that is to be copied: it has no line break, whatever the width."""
    global last_line
    last_line = time.monotonic()
    console.print(line, soft_wrap=True)


def wrap_line(line: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters, unless a word is longer.

    After a label, such as ``loaded``, the others are indented as much. What three spaces set apart,
    as ``accuracy 0.75``, stays in one line.
    """
    if len(line) <= width:
        return [line]
    label = LABEL.match(line)
    indent = " " * label.end() if label else ""
    parts = re.split("( {3,})", line[len(indent) :])
    for number, part in enumerate(parts):
        if len(parts) > 1 and not part.isspace() and len(part) <= MAX_UNBROKEN:
            parts[number] = part.replace(" ", "\xa0")
    text = line[: len(indent)] + "".join(parts)
    wrapped = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\xa0", " ") for part in wrapped]


def result(line: str) -> None:
    """Print the last line of a log, which is for programs; a terminal has shown it as a table."""
    if not is_terminal():
        say(line)


def warn(sentence: str) -> None:
    """A line on stderr that begins with ``note:``."""
    if is_lead_process():
        errors.print(f"note: {sentence}", soft_wrap=not errors.is_terminal)


class NoteHandler(logging.Handler):
    """Shows what the library warns of as a note; ``translate`` is applied to the sentence before."""

    def __init__(self, translate: Callable[[str], str]):
        super().__init__(logging.WARNING)
        self.translate = translate

    def emit(self, record: logging.LogRecord) -> None:
        warn(self.translate(record.getMessage()))


@contextlib.contextmanager
def notes_on_stderr(translate: Callable[[str], str]) -> Iterator[None]:
    """Inside, warnings of the loggers of adapt are notes on stderr, and nothing else shows them."""
    handler = NoteHandler(translate)
    loggers = [logging.getLogger(name) for name in ("adapt", "experiments")]
    propagated = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, propagated, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def note_long(long: "LongTexts", where: str) -> None:
    """Say how many texts of ``where`` were too long, if any were."""
    if long.texts:
        warn(long.note(where))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a small table, numbers to the right. Cells never break, so a number does not."""
    cells = [[cell_text(cell) for cell in row] for row in rows]
    if title:
        console.print(title, style="bold", soft_wrap=not is_terminal())
    for line in table_lines(columns, cells, console.width if is_terminal() else None):
        console.print(line, soft_wrap=True)
    say()


def cell_text(cell: Any) -> str:
    """A cell as a table shows it: thousands are separated, a float has four digits, or all those
    before its point.
    """
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if 1e3 <= abs(cell) < 1e12 else f"{cell:.4g}"
    return str(cell)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> list[str]:
    """The lines of a table of at most ``width`` characters.

    Where columns do not fit side by side their headers break between words, and so does the first
    column; those that still do not fit follow below, after the first column again.
    """
    widths = []
    broken_widths = []  # with headers broken between words
    for number, name in enumerate(columns):
        cells = [row[number] for row in rows]
        widths.append(longest([name, *cells]))
        broken_widths.append(longest([*name.split(), *cells]))
    blocks = [list(range(1, len(columns)))]
    gaps = 2 * (len(columns) - 1)
    if width is not None and sum(widths) + gaps > width:
        widths = broken_widths
        left_for_first = width - sum(widths[1:]) - gaps
        widths[0] = min(widths[0], max(left_for_first, width // 3))
        blocks = column_blocks(widths, width)

    lines = []
    for block in blocks:
        chosen = [0, *block]
        chosen_widths = [widths[column] for column in chosen]
        for number, row in enumerate((columns, *rows)):
            texts = [row[column] for column in chosen]
            lines += row_lines(texts, chosen_widths, is_header=number == 0)
    return lines


def longest(texts: Sequence[str]) -> int:
    """The number of characters of the longest text; 0 of none."""
    return max((len(text) for text in texts), default=0)


def row_lines(cells: Sequence[str], widths: Sequence[int], is_header: bool) -> list[str]:
    """A row whose cells break between words: the first to the left, the others to the right.

    A header stands on the row below it, a cell on the first line of its row.
    """
    wrapped = []
    for cell, width in zip(cells, widths, strict=True):
        wrapped.append(textwrap.wrap(cell, width, break_on_hyphens=False))
    height = max(map(len, wrapped))

    columns = []
    for texts, width in zip(wrapped, widths, strict=True):
        empty = [""] * (height - len(texts))
        texts = empty + texts if is_header else texts + empty
        is_first = not columns
        align = str.ljust if is_first else str.rjust
        columns.append([align(text, width) for text in texts])

    lines = []
    for parts in zip(*columns, strict=True):
        line = "  ".join(parts)
        lines.append(line.rstrip())
    return lines


def column_blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns after the first one, in as many blocks as it takes for each to fit beside the
    first column.
    """
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for column in range(1, len(widths)):
        if blocks[-1] and used + 2 + widths[column] > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(column)
        used += 2 + widths[column]
    return blocks


@contextlib.contextmanager
def speaking(status: Callable[[], str]) -> Iterator[None]:
    """Inside, a log gets the line ``status()`` whenever it has been silent for a minute."""
    global last_line
    last_line = time.monotonic()  # what was before does not count: nothing ran
    done = threading.Event()

    def speak() -> None:
        while not done.wait(max(last_line + MINUTE - time.monotonic(), 0.1)):
            if time.monotonic() >= last_line + MINUTE:
                say(status())

    thread = threading.Thread(target=speak, daemon=True)
    if not is_terminal():
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


class Progress:
    """How far a job is: ``update(done, loss="0.31")``, and ``what`` it is doing at present.

    While JAX compiles, that is shown in its place.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what = what
        self.is_compiling = False
        self.total = total
        self.done = done
        self.shown = ""
        self.bar: bars.Progress | None = None
        self.task = bars.TaskID(0)

    def turn_to(self, what: str, done: int, total: int) -> None:
        """Say that the job is at something else now."""
        self.what = what
        self.total = total
        self.update(done)

    def show(self, done: int, total: int) -> None:
        """A callback for what reports (done, total)."""
        self.total = total
        self.update(done)

    def update(self, done: int, **shown: str) -> None:
        self.done = done
        self.shown = "  ".join(f"{name} {value}" for name, value in shown.items())
        if self.bar is not None:
            self.bar.update(
                self.task,
                completed=done,
                total=self.total,
                description=self.activity,
                shown=self.shown,
            )

    def show_compiling(self, is_compiling: bool) -> None:
        """Say that JAX compiles, or no longer."""
        self.is_compiling = is_compiling
        if self.bar is not None:
            self.bar.update(self.task, description=self.activity)

    @property
    def activity(self) -> str:
        return "compiling" if self.is_compiling else self.what

    def line(self) -> str:
        """What a log is told of it."""
        return f"{self.activity:9} {self.done:,} of {self.total:,}  {self.shown}".rstrip()


@contextlib.contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Progress]:
    """``with progress("training", steps) as bar: bar.update(step, loss="0.31")``: a bar, or in a
    log a line a minute.
    """
    job = Progress(what, total, done)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watch_compiling(job.show_compiling))
        if is_terminal():
            stack.enter_context(bar_of(job))
        else:
            stack.enter_context(speaking(job.line))
        yield job


@contextlib.contextmanager
def bar_of(job: Progress) -> Iterator[None]:
    """Inside, a terminal has a bar of the job, which is gone afterwards."""
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=max(min(40, console.width - 64), 8)),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[shown]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, transient=True) as bar:
        job.bar = bar
        job.task = bar.add_task(job.activity, total=job.total, completed=job.done, shown="")
        yield
